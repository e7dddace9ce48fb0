"""An adapter of mlx-lm in torch: y += scale * (x a) b behind each layer that the file names."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...edge.errors import InputError


def is_mlx_folder(folder: Path) -> bool:
    """Whether mlx-lm saved the folder: its config has no `peft_type`."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return (folder / "adapters.safetensors").is_file() and "peft_type" not in config


class MlxModel:
    """Stands where a PEFT model stands in `Reference`.

    Raises:
        InputError: the base has no layer of a name that the file holds.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        from safetensors.torch import load_file

        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = {name: value.float() for name, value in load_file(folder / "adapters.safetensors").items()}
        scale = float(config["lora_parameters"].get("scale", 20.0))
        self._model = model.float().eval()
        self._active = True
        layers = dict(model.named_modules())
        for name in sorted({name.rpartition(".")[0] for name in weights}):
            if name not in layers:
                raise InputError(f"the base has no layer {name}", where=folder)
            a, b = weights[f"{name}.lora_a"], weights[f"{name}.lora_b"]
            layers[name].register_forward_hook(self._hook(a, b, scale))

    def _hook(self, a: Any, b: Any, scale: float) -> Any:
        def add(layer: Any, inputs: Any, output: Any) -> Any:
            return output + scale * (inputs[0] @ a) @ b if self._active else output

        return add

    def __call__(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    def get_base_model(self) -> Any:
        """The model underneath."""
        return self._model

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base alone, for as long as the block runs."""
        self._active = False
        try:
            yield
        finally:
            self._active = True
