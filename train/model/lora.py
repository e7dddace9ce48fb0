"""The adapter on the model: PEFT's own LoRA, its forward and backward fused where that changes nothing but time."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...edge.errors import UnsupportedError
from ..recipe import FUSED, Recipe
from .alora import active_tokens
from .frozen import dense_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER = "default"


class _LoraLinear(torch.autograd.Function):
    """y = x W^T (+ bias) + s (x A^T) B^T for a frozen W: no pass over y beyond the products, no gradient of W.

    The layer itself is kept for the backward pass, not its matrix: a coded one is made dense again there. All products
    are in the type of x: beside a model in bf16 the adapter, which is f32, is rounded for them, and its gradients are
    f32 again. A CPU adds f32 to bf16 one number at a time, and multiplies bf16 several times as fast if it has AMX.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: nn.Linear, a: Tensor, b: Tensor, scale: float, active: Tensor | None
    ) -> Tensor:
        weight = dense_of(layer)
        flat = x.reshape(-1, x.shape[-1])
        down, up = a.to(x.dtype), b.to(x.dtype)
        out = flat @ weight.t() if layer.bias is None else torch.addmm(layer.bias, flat, weight.t())
        low = flat @ down.t()
        if active is not None:
            low.mul_(active)
        out.addmm_(low, up.t(), alpha=scale)
        ctx.save_for_backward(flat, down, up, low, active)
        ctx.layer = layer
        ctx.scale = scale
        ctx.shape = x.shape
        ctx.dtype = a.dtype
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None, None]:
        flat, down, up, low, active = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low = (grad @ up).mul_(ctx.scale)
        if active is not None:
            grad_low.mul_(active)
        grad_a = (grad_low.t() @ flat).to(ctx.dtype)
        grad_b = (grad.t() @ low).to(ctx.dtype).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ dense_of(ctx.layer)
            grad_x.addmm_(grad_low, down)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, grad_a, grad_b, None, None


def _fused_forward(layer: Any, adapter: str | None) -> Any:
    base = layer.get_base_layer()
    if adapter is None:
        return lambda x, *_, **__: base(x)
    scale, a, b = layer.scaling[adapter], layer.lora_A[adapter].weight, layer.lora_B[adapter].weight

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return _LoraLinear.apply(x, base, a, b, scale, active_tokens())  # type: ignore[no-any-return,no-untyped-call]

    return forward


def fuse(model: nn.Module, adapter: str | None = ADAPTER) -> None:
    """Gives every adapted layer the fused forward of one of its adapters; None: that of the base alone."""
    from peft.tuners.lora import Linear as LoraLinear

    for layer in model.modules():
        if isinstance(layer, LoraLinear):
            setattr(layer, "forward", _fused_forward(layer, adapter))  # noqa: B010 - mypy refuses the plain form


def quiet_bitsandbytes() -> None:
    """PEFT imports bitsandbytes where it is installed, which then warns of kernels that nothing here would call."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def targets_in(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of a model's linear layers that are meant, each once: of fused matrices, the fused one.

    Raises:
        UnsupportedError: the model has no such layers; without a word PEFT would adapt the others alone.
    """
    known = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = list(dict.fromkeys(name if name in known else FUSED.get(name, name) for name in targets))
    missing = [name for name in found if name not in known]
    if missing:
        raise UnsupportedError(
            f"the model has no layers named {', '.join(missing)}", hint=f"it has {', '.join(sorted(known))}"
        )
    return found


def add_lora(model: "PreTrainedModel", recipe: Recipe, base_name: str, invocation: Sequence[int] = ()) -> "PeftModel":
    """Puts a fresh adapter on the model; A is drawn from torch's generator, B is zero, everything else is frozen.

    Args:
        invocation: the tokens of `recipe.alora_invocation`.

    Raises:
        UnsupportedError: the recipe's targets are not in the model.
    """
    if recipe.weights != "nf4":
        quiet_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    alpha: Any = int(recipe.alpha) if float(recipe.alpha).is_integer() else recipe.alpha
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        target_modules=targets_in(model, recipe.targets),
        bias="none",
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(invocation) or None,
    )
    peft = get_peft_model(model, config)
    peft.peft_config[ADAPTER].base_model_name_or_path = base_name
    if recipe.dropout == 0:
        fuse(peft)
    return peft


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}
