"""Joins the parts of a split GGUF file, as llama-gguf-split --merge does: one header, one table, the tensors in order.

join([Path("a-00001-of-00002.gguf"), Path("a-00002-of-00002.gguf")], Path("a.gguf"))
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from ..console import Advance, silent
from ..errors import DamagedError
from .file import GgufFile, MetaValue, TensorInfo, ValueType

_SPLIT_KEYS: Final = "split."
_PIECE_BYTES: Final = 1 << 22


def join(parts: Sequence[Path], dest: Path, advance: Advance = silent) -> None:
    """Writes the model that all parts make to `dest`, which no name stands for yet.

    Args:
        parts: in order.
        advance: told of every byte of tensors.

    Raises:
        DamagedError: they are not the parts of one model, or one is damaged.
    """
    files = [GgufFile.open(part) for part in parts]
    first = files[0]
    for number, file in enumerate(files):
        said = (file.get("split.no"), file.get("split.count"), file.alignment_bytes)
        if said != (number, len(files), first.alignment_bytes):
            raise DamagedError(f"is not part {number + 1} of {len(files)} of one model", where=file.path)
    rows = [(file, info) for file in files for info in file.tensors.values()]
    names = {info.name for _, info in rows}
    total = first.get("split.tensors.count", len(rows))
    if len(names) != len(rows) or total != len(rows):
        raise DamagedError(f"its parts have {len(names)} tensors, not {total}", where=first.path)
    with dest.open("wb") as out:
        _write_head(out, first, [info for _, info in rows])
        for file, info in rows:
            _pad(out, first.alignment_bytes)
            _write_values(out, file, info, advance)
        _pad(out, first.alignment_bytes)


def _write_head(out: BinaryIO, first: GgufFile, rows: Sequence[TensorInfo]) -> None:
    """The keys of the first part as they stand there, and a table of all tensors."""
    kept = {key: value for key, value in first.metadata.items() if not key.startswith(_SPLIT_KEYS)}
    out.write(b"GGUF" + struct.pack("<IQQ", first.version, len(rows), len(kept)))
    for key, value in kept.items():
        out.write(_text(key) + _head_of(value) + value.raw)
    offset_bytes = 0
    for info in rows:
        shape = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *info.shape)
        out.write(_text(info.name) + shape + struct.pack("<IQ", info.type, offset_bytes))
        offset_bytes += -(-info.size_bytes // first.alignment_bytes) * first.alignment_bytes


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _head_of(value: MetaValue) -> bytes:
    if value.type is not ValueType.ARRAY or value.element_type is None:
        return struct.pack("<I", value.type)
    return struct.pack("<IIQ", value.type, value.element_type, value.n_values)


def _write_values(out: BinaryIO, file: GgufFile, info: TensorInfo, advance: Advance) -> None:
    values = file.raw(info.name)
    for at in range(0, info.size_bytes, _PIECE_BYTES):
        piece = np.ascontiguousarray(values[at : at + _PIECE_BYTES])
        out.write(piece.data)
        advance(piece.nbytes)
    file.release()


def _pad(out: BinaryIO, alignment_bytes: int) -> None:
    out.write(bytes(-out.tell() % alignment_bytes))
