"""ggml's quantised blocks as ONNX Runtime's MatMulNBits holds them: the same numbers, other bytes.

    carrier = CARRIERS[GgmlType.Q4_1]
    blocks = carrier.blocks(rows)           # rows: raw bytes, (n_rows, row_bytes)

MatMulNBits computes x = scale * (q - zero) with zero = 8 (4 bits) or 128 (8 bits), q unsigned, blocks of 16 or more.
Q4_0, Q5_0, Q8_0, Q6_K and IQ4_NL are that form already; of five- and six-bit types only the bytes grow to 8 bits.
Types with a minimum (x = d q + m: Q4_1, Q5_1, Q4_K, Q5_K) leave a constant for each block, `offsets`: the graph adds it
times the sum of the block's inputs. Layouts: the block structs of ggml-common.h, its dequantize_row functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...edge.gguf.types import GgmlType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# kvalues_iq4nl of ggml-common.h
_IQ4_NL: Final = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)


@dataclass(frozen=True)
class Blocks:
    """Some rows of a matrix.

    Attributes:
        quants: (n_rows, n_blocks, block bytes); of 4-bit values the low nibble is the first.
        scales: (n_rows, n_blocks).
        offsets: (n_rows, n_blocks), added to every value of a block; None if the type has none.
    """

    quants: Bytes
    scales: Floats
    offsets: Floats | None

    def values(self, bits: int) -> Floats:
        """The numbers themselves, (n_rows, n_in): what MatMulNBits and the offsets stand for."""
        quants = self.quants
        if bits == 4:
            quants = np.stack([quants & 15, quants >> 4], axis=-1).reshape(*quants.shape[:2], -1)
        zero = 1 << (bits - 1)
        found = (quants.astype(np.float32) - np.float32(zero)) * self.scales[..., None]
        if self.offsets is not None:
            found += self.offsets[..., None]
        return found.reshape(len(found), -1)


@dataclass(frozen=True)
class Carrier:
    """How one ggml type is held.

    Attributes:
        bits: 4 or 8, of MatMulNBits.
        block_values: values that share a scale there.
        middle: the q of types with a minimum that becomes 0, half their range; 0 for those without.
    """

    bits: int
    block_values: int
    middle: int
    _split: Callable[[Bytes], tuple[npt.NDArray[Any], Floats, Floats | None]]
    _type: GgmlType

    @property
    def has_offsets(self) -> bool:
        """Whether blocks have a constant."""
        return self.middle > 0

    def blocks(self, rows: Bytes) -> Blocks:
        """Raw rows, (n_rows, row_bytes), in MatMulNBits' layout."""
        n_rows = len(rows)
        raw = np.ascontiguousarray(rows).reshape(-1, self._type.block[1])
        with np.errstate(invalid="ignore", over="ignore"):
            quants, scales, minima = self._split(raw)
            unsigned: Bytes = quants.reshape(n_rows, -1, self.block_values).astype(np.uint8)
            scales = np.ascontiguousarray(scales.reshape(n_rows, -1))
            offsets = None
            if minima is not None:
                # d q + m = d (q - middle) + (m + middle d): small numbers, and the zero point needs no bytes.
                offsets = minima.reshape(n_rows, -1) + self.middle * scales
        if self.bits == 4:
            unsigned = unsigned[..., ::2] | (unsigned[..., 1::2] << np.uint8(4))
        return Blocks(np.ascontiguousarray(unsigned), scales, offsets)


def _f16(raw: Bytes, at: int) -> Floats:
    return np.ascontiguousarray(raw[:, at : at + 2]).view(np.float16)[:, 0].astype(np.float32)


def _nibbles(qs: Bytes) -> Bytes:
    """Byte j holds values j (low) and j + n (high)."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _q4_0(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, None]:
    return _nibbles(raw[:, 2:18]), _f16(raw, 0), None


def _q4_1(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, Floats]:
    return _nibbles(raw[:, 4:20]), _f16(raw, 0), _f16(raw, 2)


def _fifth_bits(raw: Bytes, at: int) -> Bytes:
    bits = np.unpackbits(np.ascontiguousarray(raw[:, at : at + 4]), axis=1, bitorder="little")
    return bits << np.uint8(4)


def _q5_0(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, None]:
    return (_nibbles(raw[:, 6:22]) | _fifth_bits(raw, 2)) + np.uint8(128 - 16), _f16(raw, 0), None


def _q5_1(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, Floats]:
    return (_nibbles(raw[:, 8:24]) | _fifth_bits(raw, 4)) + np.uint8(128 - 16), _f16(raw, 0), _f16(raw, 2)


def _q8_0(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, None]:
    # Signed bytes plus 128, modulo 256.
    return raw[:, 2:34] ^ np.uint8(128), _f16(raw, 0), None


def _iq4_nl(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, None]:
    return _IQ4_NL[_nibbles(raw[:, 2:18])] + 128, _f16(raw, 0), None


def _scales_k4(raw: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 sub-blocks of a Q4_K or Q5_K block: (n, 8) each (get_scale_min_k4)."""
    q = raw[:, 4:16]
    low, mid, high = q[:, :4], q[:, 4:8], q[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return _f16(raw, 0)[:, None] * scales, -(_f16(raw, 2)[:, None] * minima)


def _q4_k(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, Floats]:
    scales, minima = _scales_k4(raw)
    return _nibbles(raw[:, 16:144].reshape(-1, 4, 32)), scales, minima


def _q5_k(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, Floats]:
    scales, minima = _scales_k4(raw)
    low = _nibbles(raw[:, 48:176].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return (low | (fifth << 4)) + np.uint8(128 - 16), scales, minima


def _q6_k(raw: Bytes) -> tuple[npt.NDArray[Any], Floats, None]:
    low = raw[:, :128].reshape(-1, 2, 2, 32)
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    four = np.concatenate([low & 15, low >> 4], axis=2)
    quants = (four | ((high & 3) << 4)) + np.uint8(128 - 32)
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32) * _f16(raw, 208)[:, None]
    return quants, scales, None


CARRIERS: Final[Mapping[GgmlType, Carrier]] = {
    GgmlType.Q4_0: Carrier(4, 32, 0, _q4_0, GgmlType.Q4_0),
    GgmlType.Q4_1: Carrier(4, 32, 8, _q4_1, GgmlType.Q4_1),
    GgmlType.Q4_K: Carrier(4, 32, 8, _q4_k, GgmlType.Q4_K),
    GgmlType.Q5_0: Carrier(8, 32, 0, _q5_0, GgmlType.Q5_0),
    GgmlType.Q5_1: Carrier(8, 32, 16, _q5_1, GgmlType.Q5_1),
    GgmlType.Q5_K: Carrier(8, 32, 16, _q5_k, GgmlType.Q5_K),
    GgmlType.Q6_K: Carrier(8, 16, 0, _q6_k, GgmlType.Q6_K),
    GgmlType.Q8_0: Carrier(8, 32, 0, _q8_0, GgmlType.Q8_0),
    GgmlType.IQ4_NL: Carrier(8, 32, 0, _iq4_nl, GgmlType.IQ4_NL),
}
