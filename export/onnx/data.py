"""The external data file of an ONNX graph: tensors one behind the other, written in pieces and never held whole.

    with DataFile.create(folder / "model.onnx.data") as data:
        region = data.reserve("lm_head.quants", np.uint8, (49152, 18, 32))
        region.write(first_rows)
        region.write(other_rows)

Both graphs of a folder name the same file, so each tensor's place is kept in `regions`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ...edge.errors import EngineError

# ONNX's advice for memory mapping is the page; small tensors share pages.
PAGE_BYTES: Final = 4096
SMALL_ALIGNMENT_BYTES: Final = 64


@dataclass
class Region:
    """One tensor's place.

    Attributes:
        dims: its shape.
        start_bytes: where it begins in the file.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    start_bytes: int
    _stream: BinaryIO = field(repr=False)
    _at: int = 0

    @property
    def size_bytes(self) -> int:
        return math.prod(self.dims) * self.dtype.itemsize

    def write(self, values: npt.NDArray[Any]) -> None:
        """Writes the next piece; its element type must be the region's."""
        if values.dtype != self.dtype or self._at + values.nbytes > self.size_bytes:
            raise EngineError(f"{self.name}: a piece of {values.dtype} {values.shape} does not go into {self.dims}")
        self._stream.seek(self.start_bytes + self._at)
        self._stream.write(np.ascontiguousarray(values).data)
        self._at += values.nbytes

    @property
    def whole(self) -> bool:
        """Whether all of it was written."""
        return self._at == self.size_bytes


class DataFile:
    """The file with its regions, in the order in which they were reserved.

    Attributes:
        location: the file's name, as graphs name it.
        regions: by tensor name.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.location = path.name
        self.regions: dict[str, Region] = {}
        self._stream = stream
        self._end = 0

    @classmethod
    def create(cls, path: Path) -> "DataFile":
        """Begins a new file; what was there is gone."""
        return cls(path, path.open("wb"))

    def reserve(self, name: str, dtype: Any, dims: Sequence[int]) -> Region:
        """Takes room for a tensor; pieces are written to it in order, those of several regions in turn."""
        kind = np.dtype(dtype)
        size_bytes = math.prod(dims) * kind.itemsize
        step = PAGE_BYTES if size_bytes >= PAGE_BYTES else SMALL_ALIGNMENT_BYTES
        start = -(-self._end // step) * step
        region = Region(name, kind, tuple(dims), start, self._stream)
        if name in self.regions:
            raise EngineError(f"the tensor {name} stands twice")
        self.regions[name] = region
        self._end = start + size_bytes
        return region

    def add(self, name: str, values: npt.NDArray[Any]) -> str:
        """A whole tensor at once; returns its name."""
        self.reserve(name, values.dtype, values.shape).write(values)
        return name

    def close(self) -> None:
        """Closes the file.

        Raises:
            EngineError: a region was reserved and not filled.
        """
        self._stream.close()
        missing = [name for name, region in self.regions.items() if not region.whole]
        if missing:
            raise EngineError(f"tensors were not written whole: {', '.join(missing[:5])}")

    def __enter__(self) -> "DataFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()
