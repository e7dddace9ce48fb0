"""Blocks of GGUF tensors back to numbers, in torch, on whatever device the bytes lie.

    dequantize(rows, GgmlType.Q4_K)        # uint8 (n, row_bytes) -> (n, n_in)

Bit for bit what gguf's numpy code gives. A type is one function from blocks (n, block_bytes) to values
(n, block_values); their layouts are those of ggml-common.h, their formulas those of ggml-quants.c (dequantize_row_*).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...edge.gguf.types import GgmlType

# Values decoded at once: their temporaries stay in the cache of a CPU; a GPU wants few launches instead.
PIECE_VALUES_CPU = 1 << 18
PIECE_VALUES = 1 << 25
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The f16 at byte `at` of each block, f32 (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _shifts(bytes_: Tensor, *shifts: int) -> Tensor:
    """Each byte row shifted right by each of `shifts`: (n, k, m) -> (n, k, len(shifts), m)."""
    return torch.stack([bytes_ >> shift for shift in shifts], dim=2)


def _halves(qs: Tensor) -> Tensor:
    """4-bit values of a 32-value block: all low halves, then all high ones."""
    return torch.cat((qs & 15, qs >> 4), dim=1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """The 32 bits from byte `at`, as 0 or 16 each, (n, 32)."""
    bits = torch.stack([blocks[:, at : at + 4] >> bit & 1 for bit in range(8)], dim=2)
    return bits.flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_halves(blocks[:, 2:]).to(torch.int8) - 8).float()


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _halves(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    values = _halves(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (values.to(torch.int8) - 16).float()


def _q5_1(blocks: Tensor) -> Tensor:
    values = _halves(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * values.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _iq4_values(blocks: Tensor) -> Tensor:
    return torch.tensor(IQ4_VALUES, dtype=torch.float32, device=blocks.device)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _iq4_values(blocks)[_halves(blocks[:, 2:]).long()]


def _iq4_xs(blocks: Tensor) -> Tensor:
    n = len(blocks)
    high = torch.stack([blocks[:, 2 + part] >> shift & 3 for part in (0, 1) for shift in (0, 2, 4, 6)], dim=1)
    low = _shifts(blocks[:, 4:8].view(n, 4, 1), 0, 4).view(n, 8) & 15
    scales = _half(blocks, 0) * ((low | high << 4).to(torch.int8) - 32).float()
    values = _shifts(blocks[:, 8:].reshape(n, 8, 16), 0, 4).view(n, 8, 32) & 15
    return (scales.view(n, 8, 1) * _iq4_values(blocks)[values.long()]).view(n, 256)


def _q2_k(blocks: Tensor) -> Tensor:
    n = len(blocks)
    scales = blocks[:, :16]
    steps = (_half(blocks, 80) * (scales & 15).float()).view(n, 16, 1)
    least = (_half(blocks, 82) * (scales >> 4).float()).view(n, 16, 1)
    values = _shifts(blocks[:, 16:80].reshape(n, 2, 32), 0, 2, 4, 6).view(n, 16, 16) & 3
    return (steps * values.float() - least).view(n, 256)


def _q3_k(blocks: Tensor) -> Tensor:
    n = len(blocks)
    low = _shifts(blocks[:, 96:104].reshape(n, 1, 8), 0, 4).view(n, 16) & 15
    high = _shifts(blocks[:, 104:108].reshape(n, 1, 4), 0, 2, 4, 6).view(n, 16) & 3
    steps = _half(blocks, 108) * ((low | high << 4).to(torch.int8) - 32).float()
    values = _shifts(blocks[:, 32:96].reshape(n, 2, 32), 0, 2, 4, 6).view(n, 16, 16) & 3
    # a set bit stands for +4, a clear one for none, on values that are stored 4 too high
    third = _shifts(blocks[:, :32].reshape(n, 1, 32), *range(8)).view(n, 16, 16) & 1
    signed = (values | third << 2).to(torch.int8) - 4
    return (steps.view(n, 16, 1) * signed.float()).view(n, 256)


def _six_bit_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Steps and minima of the eight sub-blocks of Q4_K and Q5_K, f32 (n, 8, 1) each."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat((first & 63, (rest & 15) | (first >> 2 & 48)), dim=1)
    least = torch.cat((second & 63, (rest >> 4) | (second >> 2 & 48)), dim=1)
    return (_half(blocks, 0) * scale.float())[..., None], (_half(blocks, 2) * least.float())[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    n = len(blocks)
    steps, least = _six_bit_scales(blocks)
    values = _shifts(blocks[:, 16:].reshape(n, 4, 32), 0, 4).view(n, 8, 32) & 15
    return (steps * values.float() - least).view(n, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    n = len(blocks)
    steps, least = _six_bit_scales(blocks)
    low = _shifts(blocks[:, 48:].reshape(n, 4, 32), 0, 4).view(n, 8, 32) & 15
    fifth = _shifts(blocks[:, 16:48].reshape(n, 1, 32), *range(8)).view(n, 8, 32) & 1
    return (steps * (low | fifth << 4).float() - least).view(n, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    n = len(blocks)
    low = _shifts(blocks[:, :128].reshape(n, 2, 64), 0, 4).view(n, 2, 4, 32) & 15
    high = _shifts(blocks[:, 128:192].reshape(n, 2, 32), 0, 2, 4, 6) & 3
    values = ((low | high << 4).to(torch.int8) - 32).float().view(n, 16, 16)
    steps = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (steps.view(n, 16, 1) * values).view(n, 256)


DECODERS: dict[GgmlType, Callable[[Tensor], Tensor]] = {
    GgmlType.F32: lambda blocks: blocks.view(torch.float32),
    GgmlType.F16: lambda blocks: blocks.view(torch.float16).float(),
    GgmlType.BF16: lambda blocks: blocks.view(torch.bfloat16).float(),
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q5_1: _q5_1,
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q2_K: _q2_k,
    GgmlType.Q3_K: _q3_k,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
    GgmlType.IQ4_NL: _iq4_nl,
    GgmlType.IQ4_XS: _iq4_xs,
}


def dequantize(rows: Tensor, kind: GgmlType) -> Tensor:
    """Rows of blocks as numbers.

    Args:
        rows: uint8 (n, row_bytes), whole blocks.
        kind: one of `DECODERS`.

    Returns:
        f32 (n, n_in), on the device of `rows`.
    """
    block_values, block_bytes = kind.block
    n_in = rows.shape[1] // block_bytes * block_values
    decode = DECODERS[kind]
    out = torch.empty(len(rows), n_in, dtype=torch.float32, device=rows.device)
    step = max(1, (PIECE_VALUES_CPU if rows.device.type == "cpu" else PIECE_VALUES) // n_in)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        out[start : start + step] = decode(piece.reshape(-1, block_bytes)).view(len(piece), n_in)
    return out
