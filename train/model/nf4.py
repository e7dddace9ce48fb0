"""QLoRA as everyone knows it: the frozen weights of linear layers in bitsandbytes' NF4, with its double quantisation.

The 4-bit values and their scales are made and read by bitsandbytes itself (CPU and CUDA); the layer around them is
ours, so that the adapter's fused passes are the same for every kind of weights. Dettmers et al. 2023, arXiv 2305.14314.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...edge.errors import SlmEdgeError
from ...edge.extras import extra_hint
from .frozen import BlockEmbedding, BlockLinear, FrozenLinear, float_rows

BLOCK_VALUES = 64


def functional() -> Any:
    """bitsandbytes' functions.

    Raises:
        SlmEdgeError: it is not installed.
    """
    try:
        from bitsandbytes import functional as found
    except ModuleNotFoundError:
        raise SlmEdgeError(
            'weights = "nf4" needs the package bitsandbytes, which is not installed',
            hint=f'{extra_hint("train", "nf4")}; weights = "gguf" needs nothing more',
        ) from None
    return found


class Nf4Linear(FrozenLinear):
    """A linear layer whose matrix is NF4, in blocks of 64 values, their scales quantised too."""

    def __init__(self, matrix: Tensor, bias: Tensor | None = None) -> None:
        code, state = functional().quantize_4bit(
            matrix.float(), blocksize=BLOCK_VALUES, compress_statistics=True, quant_type="nf4"
        )
        super().__init__(code, matrix.shape[1], matrix.shape[0], bias)
        self._state = state

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        matrix: Tensor = functional().dequantize_4bit(self.weight, self._state)
        return matrix[start:stop]

    def _apply(self, fn: Any, recurse: bool = True) -> "Nf4Linear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._state.to(self.weight.device)
        return self

    def state_bytes(self) -> int:
        """What the scales take beside the 4-bit values."""
        nested = self._state.state2
        parts = [self._state.absmax, *([nested.absmax, nested.code] if nested is not None else []), self._state.code]
        return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))


def to_nf4(model: nn.Module, device: str) -> None:
    """Turns a loaded transformers model into one for QLoRA, in place and one layer at a time.

    Linear layers become NF4; the embedding and the head keep the checkpoint's own numbers; all else becomes f32.
    """
    causal: Any = model
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    tied = head.weight is embedding.weight
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            bias = None if module.bias is None else module.bias.detach().float()
            model.set_submodule(name, Nf4Linear(module.weight.detach().to(device), bias))
    scale = float(getattr(embedding, "embed_scale", 1.0))
    causal.set_input_embeddings(BlockEmbedding(*float_rows(embedding.weight), scale))
    kept = BlockLinear(*float_rows(head.weight))
    if tied:
        kept.weight = causal.get_input_embeddings().weight
    causal.set_output_embeddings(kept)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
        parameter.requires_grad_(False)
