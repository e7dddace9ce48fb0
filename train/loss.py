"""The loss on completion tokens, through the frozen output head, a piece at a time.

With a vocabulary of 49,152 or 151,936 the logits are the largest thing of a step. Here they live for one piece only:
the gradient by the hidden state is made in the forward pass, where the head itself needs none.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE_TOKENS = 128


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float64)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), PIECE_TOKENS):
            piece = slice(start, start + PIECE_TOKENS)
            logits = hidden[piece] @ head.t()
            rows = torch.arange(len(logits))
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            total += (log_sum[:, 0] - logits[rows, targets[piece]]).sum()
            if grad is not None:
                logits.sub_(log_sum).exp_()
                logits[rows, targets[piece]] -= 1
                grad[piece] = logits @ head
        if grad is not None:
            ctx.save_for_backward(grad)
        return total.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None


def completion_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies (nats) of `targets` (m,) under hidden states (m, width) and a head (vocab, width)."""
    if head.requires_grad:
        return F.cross_entropy(hidden @ head.t(), targets, reduction="sum")
    return _FrozenHeadLoss.apply(hidden, head, targets)  # type: ignore[no-any-return,no-untyped-call]
