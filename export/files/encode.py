"""Numbers to ggml's bytes and back: F32, F16, BF16 and Q8_0 as ggml itself rounds; every type is read.

    encode_rows(rows, GgmlType.Q8_0)      # (n, 64) float32 -> n * 68 bytes
    decode_rows(raw, GgmlType.Q4_K)       # (n, bytes of a row) -> (n, values of a row) float32

Q8_0 (ggml-quants.c there): blocks of 32 values, d = max|x| / 127 kept as F16, each value round(x / d) half away
from zero. BF16: round to nearest, ties to even.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType

Q8_0_BLOCK_VALUES = 32
F16_MAX = 65504.0


def widen_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """BF16 bits as float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 to BF16 bits, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 64, rounded).astype(np.uint16)


def quantize_q8_0(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Rows (n, width), width a multiple of 32, to Q8_0 blocks, (n * width / 32, 34) bytes."""
    blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, Q8_0_BLOCK_VALUES)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    whole = np.trunc(scaled)
    # Adding 0.5 would round 0.49999997 up; doubling the fraction is exact.
    whole += np.trunc(2 * (scaled - whole))
    out = np.empty((len(blocks), 2 + Q8_0_BLOCK_VALUES), np.uint8)
    # NaN and infinity have no bytes here; who may hold them looks for them (`Checkpoint.faults`).
    with np.errstate(over="ignore", invalid="ignore"):
        out[:, :2] = scale.astype(np.float16).view(np.uint8)
        out[:, 2:] = whole.astype(np.int8).view(np.uint8)
    return out


def encode_rows(rows: npt.NDArray[Any], type: GgmlType) -> npt.NDArray[np.uint8]:
    """Rows of numbers, shape (n, width), as the bytes of a ggml type.

    F16 overflows to infinity as a plain cast does: whoever may hold such values checks before (`F16_MAX`).

    Raises:
        ValueError: another type than F32, F16, BF16 or Q8_0.
    """
    if type is GgmlType.F32:
        return np.ascontiguousarray(rows, np.float32).reshape(-1).view(np.uint8)
    if type is GgmlType.F16:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(rows, np.float16).reshape(-1).view(np.uint8)
    values = np.ascontiguousarray(rows, np.float32)
    if type is GgmlType.BF16:
        return narrow_bf16(values).reshape(-1).view(np.uint8)
    if type is GgmlType.Q8_0:
        return quantize_q8_0(values).reshape(-1)
    raise ValueError(f"{type.name} is not written here")


def decode_rows(raw: npt.NDArray[np.uint8], type: GgmlType) -> npt.NDArray[np.float32]:
    """Rows of a tensor's bytes, (n, bytes of a row), as values, (n, values of a row)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = dequantize(np.ascontiguousarray(raw), GGMLQuantizationType(int(type)))
    return np.asarray(values, np.float32).reshape(len(raw), -1)


def matrix_rows(file: GgufFile, name: str, first: int = 0, n_rows: int | None = None) -> npt.NDArray[np.float32]:
    """Rows of a file's matrix as values, (n_rows, values of a row), from row `first`; None: to the end."""
    info = file.tensors[name]
    raw = file.raw(name).reshape((*info.shape, 1)[1], -1)
    return decode_rows(raw[first:] if n_rows is None else raw[first : first + n_rows], info.type)
