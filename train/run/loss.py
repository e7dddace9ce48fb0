"""The loss on completion tokens, through the frozen output head, a piece at a time.

With a vocabulary of 49,152 or 151,936 the logits are the largest thing of a step. Here they live for one piece only:
the gradient by the hidden state is made in the forward pass, where the head itself needs none.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.frozen import HEAD_ROWS, FrozenLinear, dense_of

PIECE_TOKENS_CPU = 128
# A GPU wants fewer and larger products: 525 MB of logits with Llama 3's vocabulary.
PIECE_TOKENS = 1024


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor | FrozenLinear, targets: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float64)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        n_piece = PIECE_TOKENS_CPU if hidden.device.type == "cpu" else PIECE_TOKENS
        for start in range(0, len(hidden), n_piece):
            piece = slice(start, start + n_piece)
            logits = _logits(hidden[piece], head)
            rows = torch.arange(len(logits), device=logits.device)
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            total += (log_sum[:, 0] - logits[rows, targets[piece]]).sum()
            if grad is not None:
                logits.sub_(log_sum).exp_()
                logits[rows, targets[piece]] -= 1
                grad[piece] = _times_head(logits, head)
        if grad is not None:
            ctx.save_for_backward(grad)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None


def _pieces(head: FrozenLinear) -> list[tuple[int, int]]:
    """Row ranges of a coded head that are made dense one after another."""
    return [(start, min(start + HEAD_ROWS, head.out_features)) for start in range(0, head.out_features, HEAD_ROWS)]


def _logits(hidden: Tensor, head: Tensor | FrozenLinear) -> Tensor:
    """(m, width) -> (m, vocab), f32."""
    if isinstance(head, Tensor):
        return (hidden @ head.t()).float()
    logits = hidden.new_empty(len(hidden), head.out_features)
    for start, stop in _pieces(head):
        torch.mm(hidden, head.dense(start, stop).t(), out=logits[:, start:stop])
    return logits


def _times_head(grad: Tensor, head: Tensor | FrozenLinear) -> Tensor:
    """(m, vocab) -> (m, width)."""
    if isinstance(head, Tensor):
        return grad.to(head.dtype) @ head
    out = grad.new_zeros(len(grad), head.in_features)
    for start, stop in _pieces(head):
        out.addmm_(grad[:, start:stop], head.dense(start, stop))
    return out


def completion_loss(hidden: Tensor, head: Tensor | nn.Linear, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies (nats) of `targets` (m,) under hidden states (m, width) and a head.

    Args:
        head: (vocab, width), or the layer that has it; a coded one is made dense a piece at a time.
    """
    if isinstance(head, nn.Linear) and not isinstance(head, FrozenLinear):
        head = dense_of(head)
    if isinstance(head, Tensor) and head.requires_grad:
        return F.cross_entropy(hidden @ head.t(), targets, reduction="sum")
    return _FrozenHeadLoss.apply(hidden, head, targets)  # type: ignore[no-any-return,no-untyped-call]


def likeliest(hidden: Tensor, head: Tensor | nn.Linear) -> Tensor:
    """The likeliest tokens (m,) under hidden states (m, width) and a head, as of `completion_loss`."""
    if isinstance(head, nn.Linear) and not isinstance(head, FrozenLinear):
        head = dense_of(head)
    n_piece = PIECE_TOKENS_CPU if hidden.device.type == "cpu" else PIECE_TOKENS
    pieces = [hidden[start : start + n_piece] for start in range(0, len(hidden), n_piece)]
    return torch.cat([_logits(piece, head).argmax(dim=1) for piece in pieces])
