"""Checkpoints and PEFT adapters to GGUF, quantisation, and the proof that both say the same. Imports edge only.

The names in `__all__` are public; all else may move.
"""

from typing import TYPE_CHECKING

from .. import handed_on

__all__ = [
    "export_base",
    "export_lora",
    "export_onnx",
    "export_onnx_adapter",
    "verify",
]

if TYPE_CHECKING:
    from .base.base import export_base
    from .lora.lora import export_lora
    from .onnx.adapter import export_onnx_adapter
    from .onnx.base import export_onnx
    from .proof.verify import verify

else:
    __getattr__ = handed_on(
        __name__,
        {
            "export_base": ".base.base",
            "export_lora": ".lora.lora",
            "export_onnx": ".onnx.base",
            "export_onnx_adapter": ".onnx.adapter",
            "verify": ".proof.verify",
        },
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
