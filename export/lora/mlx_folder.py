"""Reads a folder that mlx-lm saved (`mlx_lm.lora`): adapter_config.json and adapters.safetensors.

There y += scale * (x a) b with a (n_in, rank) and b (rank, n_out): PEFT's A is a turned around, its B is b turned
around, and alpha / rank is the scale. Names have no prefix.
"""

import math
import re
from pathlib import Path
from typing import Any, Final

from ..files.safetensors import READABLE, SafetensorsFile
from ..reasons import Reasons
from .peft_config import LoraPair, PeftConfig
from .scaling import Scaling

MLX_WEIGHTS_FILE: Final = "adapters.safetensors"
DEFAULT_SCALE: Final = 20.0
_PART: Final = re.compile(r"(.+)\.(lora_a|lora_b)")


def is_mlx(config: Any) -> bool:
    """Whether an adapter_config.json is mlx-lm's."""
    return isinstance(config, dict) and "peft_type" not in config and isinstance(config.get("lora_parameters"), dict)


def mlx_scale(config: dict[str, Any]) -> Any:
    """The factor on (x a) b that the config names."""
    return config["lora_parameters"].get("scale", DEFAULT_SCALE)


def read_mlx(
    path: Path, config: dict[str, Any], reasons: Reasons
) -> tuple[PeftConfig, SafetensorsFile | None, tuple[LoraPair, ...]]:
    """The config in PEFT's terms, the open weights and the pairs; what cannot be exported goes to `reasons`.

    Raises:
        InputError, DamagedError: the weights are no safetensors file, or cut short.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        reasons.unsupported(f"fine_tune_type is {kind!r}: of mlx-lm's adapters only 'lora' can be exported")
    scale = mlx_scale(config)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        reasons.wrong(f"lora_parameters: scale is {scale!r}; it must be a number")
        scale = 1.0
    weights: SafetensorsFile | None = None
    pairs: tuple[LoraPair, ...] = ()
    if (path / MLX_WEIGHTS_FILE).is_file():
        weights = SafetensorsFile.open(path / MLX_WEIGHTS_FILE)
        pairs = _pairs(weights, reasons)
    else:
        reasons.wrong(f"there is no {MLX_WEIGHTS_FILE}")
    rank = max((pair.rank for pair in pairs), default=1)
    # The matrices' own ranks count: the config often leaves them out.
    ranks = {pair.module: pair.rank for pair in pairs if pair.rank != rank}
    alphas = {name: float(scale) * own for name, own in ranks.items()}
    scaling = Scaling(rank, float(scale) * rank, ranks=ranks, alphas=alphas)
    return PeftConfig(scaling, str(config.get("model") or ""), "", ()), weights, pairs


def _pairs(weights: SafetensorsFile, reasons: Reasons) -> tuple[LoraPair, ...]:
    modules: dict[str, dict[str, str]] = {}
    for name, entry in weights.tensors.items():
        part = _PART.fullmatch(name)
        if part is None:
            reasons.unsupported("it holds tensors that are no LoRA matrices (DoRA, or a whole layer)", name)
        elif part[1].endswith("embed_tokens"):
            reasons.unsupported("mlx-lm's adapters of the embedding are not exported", part[1])
        else:
            modules.setdefault(part[1], {})[part[2]] = name
            if entry.dtype not in READABLE:
                reasons.unsupported(f"matrices of {entry.dtype}, which is not a float type that can be read", name)
    pairs = []
    for module, parts in modules.items():
        missing = {"lora_a", "lora_b"} - parts.keys()
        if missing:
            reasons.wrong("half of a pair is missing", f"{module}.{missing.pop()}")
            continue
        a, b = weights.tensors[parts["lora_a"]].shape, weights.tensors[parts["lora_b"]].shape
        if len(a) != 2 or len(b) != 2 or a[1] != b[0] or min(*a, *b) < 1:
            reasons.wrong("a and b are no pair (in, rank), (rank, out)", f"{module} has {list(a)} and {list(b)}")
            continue
        pairs.append(LoraPair(module, parts["lora_a"], parts["lora_b"], False, b[0], turned=True))
    if not modules:
        reasons.wrong("it holds no LoRA matrices")
    return tuple(pairs)
