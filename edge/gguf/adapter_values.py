"""Looks through an adapter's values for NaN, infinity and nothing but zeros, a few MiB at a time."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .file import GgufFile, TensorInfo
from .types import GgmlType

# Where the F16 scales stand in a block of each quantised type, in bytes (block structs of ggml-common.h).
SCALES: Final[dict[GgmlType, tuple[int, ...]]] = {
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.IQ4_NL: (0,),
    GgmlType.Q2_K: (80, 82),
    GgmlType.Q3_K: (108,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
    GgmlType.IQ4_XS: (0,),
}
# Unsigned type of the same width, and the bits of 65504, F16's largest number (of BF16: the next one below).
# Without their signs, floats order as their bits do; infinity and NaN are above all numbers.
FLOATS: Final[dict[GgmlType, tuple[Any, int]]] = {
    GgmlType.F32: (np.uint32, 0x477FE000),
    GgmlType.F16: (np.uint16, 0x7BFF),
    GgmlType.BF16: (np.uint16, 0x477F),
}
_CHUNK_VALUES: Final = 1 << 20


def sane_and_zero(file: GgufFile, info: TensorInfo) -> tuple[bool, bool]:
    """Whether all values of a tensor are numbers within 65504, and whether all are zero; of blocks, their scales."""
    unsigned, limit = FLOATS.get(info.type, FLOATS[GgmlType.F16])
    sign = unsigned(1 << (8 * np.dtype(unsigned).itemsize - 1))
    largest = max((int((bits & ~sign).max()) for bits in _chunks(file, info, unsigned)), default=0)
    file.release()
    return largest <= limit, largest == 0


def _chunks(file: GgufFile, info: TensorInfo, unsigned: Any) -> Iterator[npt.NDArray[Any]]:
    raw = file.raw(info.name)
    if info.type in FLOATS:
        values = raw.view(unsigned)
        for start in range(0, len(values), _CHUNK_VALUES):
            yield values[start : start + _CHUNK_VALUES]
        return
    block_values, block_bytes = info.type.block
    blocks, step = raw.reshape(-1, block_bytes), _CHUNK_VALUES // block_values
    for start in range(0, len(blocks), step):
        for at in SCALES[info.type]:
            yield np.ascontiguousarray(blocks[start : start + step, at : at + 2]).view(unsigned)
