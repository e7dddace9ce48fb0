"""Reads safetensors files row by row, with plain reads, so that memory stays at one block of rows.

    with SafetensorsFile.open("model.safetensors") as file:
        for rows in file.blocks("model.norm.weight"): ...      # float32, BF16 widened exactly

Layout: the safetensors specification (8 bytes of header length, a JSON header, the data).
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ...edge.errors import DamagedError
from ...edge.files.read import LFS_HINT, is_lfs_pointer, is_text, loads_json, open_regular
from .encode import widen_bf16

MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMS: Final = 8
BLOCK_BYTES: Final = 4 << 20

# safetensors' own names; BF16 has no numpy type and is widened from its bits
READABLE: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SIZES: Final = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
    **{"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1},
}


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the header.

    Attributes:
        dtype: safetensors' name, such as "BF16".
        shape: numpy order.
        start_bytes: where its data begins in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start_bytes: int
    size_bytes: int


def _row(name: str, row: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape, start and end of an entry; ValueError, KeyError or TypeError where it is none."""
    start, end = row["data_offsets"]
    numbers = [*row["shape"], start, end]
    if not all(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 62 for number in numbers
    ):
        raise ValueError(f"shape or offsets of {name[:80]!r} are no sizes")
    if not is_text(row["dtype"]) or not is_text(name) or len(row["shape"]) > MAX_DIMS:
        raise ValueError(f"name, type or shape of {name[:80]!r}")
    return name, row["dtype"], tuple(row["shape"]), start, end


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        tensors: name -> entry, in header order.
        metadata: the file's `__metadata__`.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self._stream = stream
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: dict[str, Any] = {}
        self._read_header(os.fstat(stream.fileno()).st_size)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "SafetensorsFile":
        """Opens and checks a file.

        Raises:
            InputError: it is not there, or no regular file.
            DamagedError: header and size do not agree.
        """
        path = Path(path)
        stream = open_regular(path, whole=True)
        try:
            return cls(path, stream)
        except BaseException:
            stream.close()
            raise

    def _read_header(self, size_bytes: int) -> None:
        head = self._stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
            pointer = is_lfs_pointer(head + self._stream.read(64))
            raise DamagedError(
                "is a Git LFS pointer, not the file itself"
                if pointer
                else "is not a safetensors file, or was cut short",
                where=self.path,
                hint=LFS_HINT if pointer else "copy or download it again",
            )
        try:
            header = loads_json(self._stream.read(length).decode("utf-8"))
            self.metadata = header.pop("__metadata__", {})
            rows = [_row(name, row) for name, row in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error)[:200] or type(error).__name__
            raise DamagedError(f"the safetensors header is not valid ({reason})", where=self.path) from None
        problems = []
        base = 8 + length
        for name, dtype, shape, start, end in rows:
            if dtype not in _SIZES:
                problems.append(f"{name}: the type {dtype} is not known here")
            elif end - start != math.prod(shape) * _SIZES[dtype]:
                problems.append(f"{name}: {end - start} bytes do not hold shape {list(shape)} of {dtype}")
            elif start < 0 or base + end > size_bytes:
                problems.append(f"{name}: its data ends at byte {base + end}, the file at {size_bytes}")
            self.tensors[name] = StoredTensor(name, dtype, shape, base + start, end - start)
        if problems:
            raise DamagedError("the file is not what its header says", where=self.path, problems=problems)

    def rows(self, name: str, first: int, n_rows: int) -> npt.NDArray[Any]:
        """Some rows of a tensor, (n_rows, width), float32 (float16 where stored so); a vector is one row.

        Args:
            first: the first row; `n_rows` of them must exist.
        """
        entry = self.tensors[name]
        width = entry.shape[-1] if entry.shape else 1
        kind = np.dtype(READABLE[entry.dtype])
        out = np.empty((n_rows, width), kind)
        self._stream.seek(entry.start_bytes + first * width * kind.itemsize)
        if self._stream.readinto(out.data.cast("B")) != out.nbytes:  # type: ignore[attr-defined]
            raise DamagedError(f"the file ends inside {name!r}", where=self.path)
        if entry.dtype == "BF16":
            return widen_bf16(out)
        return out.astype(np.float32) if entry.dtype == "F64" else out

    def blocks(self, name: str, multiple_of: int = 1) -> Iterator[npt.NDArray[Any]]:
        """All rows of a tensor, in order, in blocks of about 4 MiB.

        Args:
            multiple_of: a block holds a multiple of so many rows (the last one too, if the tensor does).
        """
        entry = self.tensors[name]
        n_rows = math.prod(entry.shape[:-1]) if entry.shape else 1
        width = entry.shape[-1] if entry.shape else 1
        step = max(1, BLOCK_BYTES // (4 * width * multiple_of)) * multiple_of
        for first in range(0, n_rows, step):
            yield self.rows(name, first, min(step, n_rows - first))

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
