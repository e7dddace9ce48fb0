"""Reads a folder that PEFT saved: its config and the pairs of its safetensors file, with every reason of refusal.

    reasons = Reasons()
    with PeftFolder.open("my-adapter", reasons) as folder:
        folder.pairs[0].module      # "model.layers.0.self_attn.q_proj"

Nothing is converted here and no base is needed; `lora.py` matches the pairs with a base.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ...edge.errors import InputError
from ...edge.files.read import read_json
from ..files.safetensors import READABLE, SafetensorsFile
from ..files.tensor_names import other_sense, plain_name
from ..reasons import Reasons
from .mlx_folder import is_mlx, read_mlx
from .peft_config import LoraPair, PeftConfig, read_peft_config
from .scaling import Scaling

SHOWN: Final = 8
CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
PICKLE_FILE: Final = "adapter_model.bin"
# module, then which part of the adapter it is
_PARTS: Final = re.compile(r"(.+?)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
_UNSUPPORTED_PARTS: Final = (
    (re.compile(r"\.lora_magnitude_vector(\.weight)?$"), "DoRA's magnitude vectors"),
    (re.compile(r"\.lora_B\.bias$"), "biases of the adapter (lora_bias)"),
    (re.compile(r"\.lora_[ab]$"), "matrices of mlx-lm (lora_a, lora_b); give the folder that mlx_lm.lora saved"),
    (re.compile(r"\.token_adapter\."), "trained token rows (trainable_token_indices)"),
    (re.compile(r"\.bias$"), "biases of the base (bias is not 'none')"),
    (
        re.compile(r"(embed_tokens|lm_head)\.weight$"),
        "a whole embedding or head (modules_to_save or a resized vocabulary)",
    ),
    (re.compile(r"(?<!base_layer)\.weight$"), "weights that are no LoRA (modules_to_save)"),
)
CONVERT_HINT: Final = (
    'convert it where you trust it:  python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('adapter_model.bin', map_location='cpu', "
    "weights_only=True).items()}, 'adapter_model.safetensors')\""
)


@dataclass(frozen=True)
class PeftFolder:
    """An adapter as PEFT saved it, or mlx-lm in its own form.

    Attributes:
        scaling: the rank and the strength of every module.
        weights: the safetensors file; None if there is none to read.
        pairs: in the file's order.
        base_copies: module -> tensor of copies of the base's embedding or head that PEFT adds when it adapts them.
        training: train.json of `slm-edge train`, {} if missing.
    """

    path: Path
    config: PeftConfig
    scaling: Scaling
    weights: SafetensorsFile | None
    pairs: tuple[LoraPair, ...]
    base_copies: dict[str, str]
    training: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str], reasons: Reasons) -> "PeftFolder":
        """Reads the config and the header of the weights; why it cannot be exported to any base goes to `reasons`.

        Raises:
            InputError: no such folder, no adapter_config.json, or a file that is not what its name says.
            DamagedError: the weights are cut short.
        """
        path = Path(path)
        if not path.is_dir():
            problem = "is a file; the folder that PEFT saved is needed" if path.exists() else "no such folder"
            raise InputError(problem, where=path)
        if not (path / CONFIG_FILE).is_file():
            below = sorted(found.parent.name for found in path.glob(f"*/{CONFIG_FILE}"))[:SHOWN]
            raise InputError(
                f"holds no {CONFIG_FILE}",
                where=path,
                hint=f"give one of the folders in it: {', '.join(below)}"
                if below
                else "give the folder that PEFT's save_pretrained made",
            )
        raw = read_json(path / CONFIG_FILE)
        if is_mlx(raw):
            config, of_mlx, pairs = read_mlx(path, raw, reasons)
            return cls(path, config, config.scaling, of_mlx, pairs, {}, {})
        config = read_peft_config(path / CONFIG_FILE, raw, reasons)
        training = read_json(path / "train.json") if (path / "train.json").is_file() else {}
        weights: SafetensorsFile | None = None
        modules: dict[str, dict[str, str]] = {}
        copies: dict[str, str] = {}
        if (path / WEIGHTS_FILE).is_file():
            weights = SafetensorsFile.open(path / WEIGHTS_FILE)
            modules, copies = _sort_tensors(weights, reasons)
        elif (path / PICKLE_FILE).is_file():
            reasons.unsupported(f"{PICKLE_FILE} is a pickle, which can run code when it is read")
            reasons.hint = CONVERT_HINT
        else:
            reasons.wrong(f"there is no {WEIGHTS_FILE}")
        scaling = config.scaling_of(modules, reasons)
        found = [_pair(module, parts, weights, scaling, reasons) for module, parts in modules.items() if weights]
        pairs = tuple(pair for pair in found if pair is not None)
        return cls(path, config, scaling, weights, pairs, copies, training if isinstance(training, dict) else {})

    def close(self) -> None:
        """Closes the weights' file."""
        if self.weights is not None:
            self.weights.close()

    def __enter__(self) -> "PeftFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sort_tensors(weights: SafetensorsFile, reasons: Reasons) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The modules with the tensors of their parts, and the copies of base layers; all else is a reason of refusal."""
    modules: dict[str, dict[str, str]] = {}
    copies: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in weights.tensors:
        inner = plain_name(name)
        part = _PARTS.fullmatch(inner)
        if inner in seen:
            reasons.wrong(
                "two of its tensors are the same matrix (two adapters in one file?)", f"{seen[inner]}, {name}"
            )
        elif sense := other_sense(inner):
            reasons.unsupported(f"it adapts {sense} of a multimodal model, which the base lacks", name)
        elif part:
            modules.setdefault(part[1], {})[part[2]] = name
        elif inner.endswith(".base_layer.weight"):
            copies[inner.removesuffix(".base_layer.weight")] = name
        else:
            what = next(
                (text for shape, text in _UNSUPPORTED_PARTS if shape.search(inner)), "tensors of an unknown kind"
            )
            reasons.unsupported(f"it holds {what}", name)
        seen[inner] = name
    for module, name in copies.items():
        if module not in modules:
            reasons.wrong("a copy of a layer that has no adapter", name)
    if not modules:
        reasons.wrong("it holds no LoRA matrices")
    return modules, copies


def _pair(
    module: str, parts: dict[str, str], weights: SafetensorsFile, scaling: Scaling, reasons: Reasons
) -> LoraPair | None:
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    labels = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    for label in labels:
        if label not in parts:
            reasons.wrong("half of a pair is missing", f"{module}.{label}")
    if parts.keys() != set(labels):
        return None
    a, b = (weights.tensors[parts[label]] for label in labels)
    for entry in (a, b):
        if entry.dtype not in READABLE:
            reasons.unsupported(f"matrices of {entry.dtype}, which is not a float type that can be read", entry.name)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or min(*a.shape, *b.shape) < 1:
        reasons.wrong(
            "A and B do not have the shapes (rank, in) and (out, rank)",
            f"{module} has {list(a.shape)} and {list(b.shape)}",
        )
        return None
    rank, said = a.shape[0], scaling.rank_of(module)
    if rank != said:
        reasons.wrong("the matrices have another rank than the config says", f"{module} {rank}, config {said}")
    return LoraPair(module, a.name, b.name, embedding, rank)
