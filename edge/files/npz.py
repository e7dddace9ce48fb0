"""Arrays with a table about them in one .npz, read as what an unknown hand may have written.

    write_npz("router.npz", {"format": 1}, {"weights": weights})       # the same content gives the same bytes
    meta, arrays = read_npz(Path("router.npz"), "a router's file", most_bytes=64 << 20)

The table is JSON under the name `meta`. Nothing in it can run code: arrays of numbers, no pickles.
"""

import io
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .archive import entries, reading
from .atomic import atomic_file
from .read import loads_json

ENCRYPTED: Final = 1
_MAGIC: Final = b"\x93NUMPY\x01\x00"
# As numpy writes it for numbers of one to eight bytes
_HEADER: Final = re.compile(
    rb"\{'descr': '([<|][fiu][1248])', 'fortran_order': (True|False), 'shape': \(((?:\d{1,12}, ?)*\d{0,12})\), \} *\n"
)


def write_npz(path: str | os.PathLike[str], meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes the file, aside and then renamed.

    Raises:
        InputError: the folder cannot be written to.
    """
    table = np.frombuffer(json.dumps(meta, ensure_ascii=False, sort_keys=True).encode(), dtype=np.uint8)
    contents: dict[str, Any] = {"meta": table, **arrays}
    with atomic_file(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **contents)


def read_npz(path: Path, what: str, most_bytes: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The table and the arrays.

    Args:
        what: the file should be, for the message.
        most_bytes: that the file, and what it unpacks to, may have.

    Raises:
        InputError: there is no such file.
        DamagedError: it is no such file, cut short, too large, or its table has no format number. Nothing else is
            raised, whatever its bytes are.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    with reading(path, f"is not {what}", "copy the pack again"):
        if path.stat().st_size > most_bytes:
            raise ValueError("it is too large")
        arrays = {}
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            for name, entry in entries(archive).items():
                # As it was written: what is stored as it is has the size that it has.
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
                    raise ValueError(f"its member {name[:80]!r} is compressed or encrypted")
                arrays[name.removesuffix(".npy")] = _array(archive.read(entry))
        text = arrays.pop("meta")
        if text.dtype != np.uint8:
            raise ValueError("its meta is no text")
        meta = loads_json(text.tobytes().decode("utf-8"))
        if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
            raise ValueError("its meta has no format")
    return meta, arrays


def _array(data: bytes) -> NDArray[Any]:
    """The array of a .npy file of numbers; ValueError where it is none.

    numpy's own reader evaluates the header as Python, and believes the shape that it names.
    """
    (length,) = struct.unpack_from("<H", data, len(_MAGIC)) if data.startswith(_MAGIC) else (0,)
    start = len(_MAGIC) + 2 + length
    found = _HEADER.fullmatch(data[len(_MAGIC) + 2 : start])
    if found is None:
        raise ValueError("a member is no array of numbers")
    kind = np.dtype(found[1].decode("ascii"))
    shape = tuple(int(side) for side in found[3].split(b",") if side.strip())
    if math.prod(shape) * kind.itemsize != len(data) - start:
        raise ValueError(f"an array of {len(data) - start} bytes claims the shape {list(shape)[:8]}")
    values = np.frombuffer(data, kind, offset=start).reshape(shape, order="F" if found[2] == b"True" else "C")
    return values.copy()
