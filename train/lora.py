"""The adapter on the model: PEFT's own LoRA, its forward and backward fused where that changes nothing but time."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .recipe import Recipe

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER = "default"


class _LoraLinear(torch.autograd.Function):
    """y = x W^T (+ bias) + s (x A^T) B^T for a frozen W: no pass over y beyond the products, no gradient of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        low = flat @ a.t()
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale = scale
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_a = grad_low.t() @ flat
        grad_b = (grad.t() @ low).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def _fused_forward(layer: Any) -> Any:
    base, scale = layer.get_base_layer(), layer.scaling[ADAPTER]
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return _LoraLinear.apply(x, base.weight, base.bias, a, b, scale)  # type: ignore[no-any-return,no-untyped-call]

    return forward


def add_lora(model: "PreTrainedModel", recipe: Recipe, base_name: str) -> "PeftModel":
    """Puts a fresh adapter on the model; A is drawn from torch's generator, B is zero, everything else is frozen.

    Raises:
        UnsupportedError: the recipe's targets are not in the model (raised by Recipe's own check before).
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear as LoraLinear

    alpha: Any = int(recipe.alpha) if float(recipe.alpha).is_integer() else recipe.alpha
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        target_modules=list(recipe.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model, config)
    peft.peft_config[ADAPTER].base_model_name_or_path = base_name
    if recipe.dropout == 0:
        for layer in peft.modules():
            if isinstance(layer, LoraLinear):
                setattr(layer, "forward", _fused_forward(layer))  # noqa: B010 - mypy refuses the plain form
    return peft


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}
