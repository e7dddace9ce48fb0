"""Frozen weights that stay small: linear layers and embeddings that keep their bytes as they lie in the file.

The dense matrix is made when a pass needs it, and again in the backward pass, one layer at a time; it is never kept.
Whoever multiplies asks `dense_of(layer)`, so an ordinary `nn.Linear` and these are used alike.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...edge.gguf.types import GgmlType
from .blocks import dequantize

FLOAT_TYPES = {torch.float32: GgmlType.F32, torch.float16: GgmlType.F16, torch.bfloat16: GgmlType.BF16}
# Rows of a head that are dense at once: 64 MiB at a width of 2,048.
HEAD_ROWS = 8192


class _Product(torch.autograd.Function):
    """x W^T (+ bias) for a W that is made anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "FrozenLinear") -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        return (grads[0] @ ctx.layer.dense() if ctx.needs_input_grad[0] else None), None


class FrozenLinear(nn.Linear):
    """A linear layer whose `weight` holds coded bytes, uint8 and without a gradient.

    A subclass says what they mean in `dense`. PEFT sees an `nn.Linear` with its sizes, and puts LoRA on it.
    """

    def __init__(self, code: Tensor, n_in: int, n_out: int, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = n_in, n_out
        self.weight = nn.Parameter(code, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of the matrix, f32 (rows, n_in)."""
        raise NotImplementedError

    def state_bytes(self) -> int:
        """Bytes that the code needs beside `weight`."""
        return 0

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n_in) -> (..., n_out)."""
        return _Product.apply(x, self)  # type: ignore[no-any-return,no-untyped-call]


class BlockLinear(FrozenLinear):
    """A linear layer that keeps the blocks of a GGUF tensor.

    Args:
        rows: uint8 (n_out, row_bytes).
        kind: what the blocks are.
    """

    def __init__(self, rows: Tensor, kind: GgmlType, bias: Tensor | None = None) -> None:
        block_values, block_bytes = kind.block
        super().__init__(rows, rows.shape[1] // block_bytes * block_values, len(rows), bias)
        self.kind = kind

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        return dequantize(self.weight[start:stop], self.kind)


class BlockEmbedding(nn.Embedding):
    """An embedding that keeps the blocks of a GGUF tensor and decodes the rows that are asked for.

    Args:
        scale: rows are multiplied by it.
    """

    def __init__(self, rows: Tensor, kind: GgmlType, scale: float = 1.0) -> None:
        nn.Module.__init__(self)
        block_values, block_bytes = kind.block
        self.num_embeddings, self.embedding_dim = len(rows), rows.shape[1] // block_bytes * block_values
        self.padding_idx = None
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.kind = kind
        self.scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids of any shape -> f32 (..., width)."""
        rows = dequantize(self.weight[ids.flatten()], self.kind).view(*ids.shape, self.embedding_dim)
        return rows if self.scale == 1 else rows * self.scale


def dense_of(layer: nn.Linear) -> Tensor:
    """The matrix (n_out, n_in) of a linear layer, coded or not."""
    return layer.dense() if isinstance(layer, FrozenLinear) else layer.weight


def float_rows(values: Tensor) -> tuple[Tensor, GgmlType]:
    """A float matrix as bytes, and their type."""
    return values.detach().contiguous().view(torch.uint8).view(len(values), -1), FLOAT_TYPES[values.dtype]
