"""What an adapter_config.json of PEFT asks for, and every reason why a GGUF adapter cannot hold it.

llama.cpp adds scale * B(A x) to a matrix product and nothing else. Fields that mean more are refused; fields
that only told PEFT how to train or to start are listed as harmless; a field that is in neither list is refused
when it is set, because it may change what the adapter computes. Fields as of PEFT 0.21.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ...edge.errors import InputError
from ..reasons import Reasons
from .patterns import pattern_keys
from .scaling import Scaling

# Beyond any matrix's side, and what an F32 holds with room for products
MAX_RANK: Final = 1 << 20
MAX_ALPHA: Final = 1e30
REFUSED: Final = {
    "use_dora": "DoRA rescales whole weight columns, which no low-rank sum can do",
    "lora_bias": "a GGUF adapter holds no bias vectors",
    "modules_to_save": "a GGUF adapter holds no whole modules",
    "trainable_token_indices": "a GGUF adapter holds no new token rows",
    "layer_replication": "the model that it runs on has layers that the base lacks",
    "fan_in_fan_out": "its matrices are stored transposed (GPT-2's Conv1D), which no supported base has",
    "target_parameters": "adapters of bare parameters (mixtures of experts) are not supported",
    "use_qalora": "QA-LoRA pools its input",
    "use_bdlora": "BD-LoRA has block-diagonal matrices",
    "velora_config": "VeLoRA changes the forward pass",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "MonteCLoRA draws samples in its forward pass",
    "arrow_config": "Arrow routes each token to another adapter",
    "alora_invocation_string": "aLoRA's old text form: tokenize it and save alora_invocation_tokens instead",
    "invocation_string": "aLoRA's old text form: tokenize it and save alora_invocation_tokens instead",
}
HARMLESS: Final = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "target_modules"),
        *("exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_config"),
        *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
        *("runtime_config", "ensure_weight_tying", "use_peft_backend"),
    ]
)
READ: Final = frozenset(
    [
        *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
        *("init_lora_weights", "alora_invocation_tokens"),
    ]
)
# Starts that leave the base's weights as they are; the others subtract the start from them.
PLAIN_STARTS: Final = (True, False, "gaussian", "eva", "orthogonal", "mica")
# PEFT's words for what a model gives out. They change nothing in LoRA's sum; a head would be a whole module.
TASK_TYPES: Final = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@dataclass(frozen=True)
class LoraPair:
    """One module's A and B.

    Attributes:
        module: its name in the model, without `base_model.model.`.
        a, b: names in the safetensors file. Shapes there: A (rank, n_in), B (n_out, rank); of an embedding
            A (rank, n_vocab), B (n_embd, rank).
        embedding: an embedding's pair.
        rank: columns of B.
        turned: both lie the other way round in the file (mlx-lm's).
    """

    module: str
    a: str
    b: str
    embedding: bool
    rank: int
    turned: bool = False


@dataclass(frozen=True)
class PeftConfig:
    """The parts of an adapter_config.json that an export needs.

    Attributes:
        scaling: without the own values that the patterns give to modules (`scaling_of`).
        rank_pattern, alpha_pattern: in the config's order: the first match counts.
        base_name: `base_model_name_or_path` as it stands; "" if missing.
        revision: of the base on its hub; "" if missing.
        alora_tokens: invocation tokens of an activated LoRA; empty for a plain one.
    """

    scaling: Scaling
    base_name: str
    revision: str
    alora_tokens: tuple[int, ...]
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scaling_of(self, modules: Collection[str], reasons: Reasons) -> Scaling:
        """The scaling with each module's own values; what is wrong with the patterns goes to `reasons`."""
        own: list[dict[str, Any]] = []
        for name, values in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            keys, faults = pattern_keys(values, modules)
            for fault in faults:
                reasons.wrong(f"{name}: {fault}")
            own.append({module: values[key] for module, key in keys.items()})
        return replace(self.scaling, ranks=own[0], alphas=own[1])


def read_peft_config(path: Path, data: Any, reasons: Reasons) -> PeftConfig:
    """Understands the content of an adapter_config.json; what is wrong with its fields goes to `reasons`.

    Raises:
        InputError: no JSON object.
    """
    if not isinstance(data, dict):
        raise InputError("is not an adapter_config.json: it does not hold a JSON object", where=path)
    _check_kind(data, reasons)
    fields = _Fields(data, reasons)
    return PeftConfig(
        scaling=Scaling(fields.count("r"), fields.number("lora_alpha"), bool(data.get("use_rslora"))),
        rank_pattern=fields.pattern("rank_pattern", fields.as_count),
        alpha_pattern=fields.pattern("alpha_pattern", fields.as_number),
        base_name=str(data.get("base_model_name_or_path") or ""),
        revision=str(data.get("revision") or ""),
        alora_tokens=fields.tokens("alora_invocation_tokens"),
    )


def _check_kind(data: Mapping[str, Any], reasons: Reasons) -> None:
    kind = data.get("peft_type")
    if kind != "LORA":
        reasons.unsupported(f"peft_type is {_short(kind)}: only LORA adapters can be exported")
        return
    for name, why in REFUSED.items():
        if data.get(name):
            reasons.unsupported(f"{name} is set: {why}")
    if data.get("bias", "none") not in ("none", None):
        reasons.unsupported(
            f"bias is {_short(data['bias'])}: a GGUF adapter holds no bias vectors; train with bias='none'"
        )
    if data.get("task_type") not in TASK_TYPES:
        reasons.unsupported(f"task_type is {_short(data['task_type'])}, which PEFT does not know")
    start = data.get("init_lora_weights", True)
    if start is not None and start not in PLAIN_STARTS:
        reasons.unsupported(
            f"init_lora_weights is {_short(start)}: such a start changes the base's weights; turn it into a plain LoRA "
            "with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    known = READ | HARMLESS | REFUSED.keys()
    for name, value in data.items():
        if name not in known and value:
            reasons.unsupported(
                f"{name} is {_short(value)}: a field that is not known here and may change what the adapter computes"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


class _Fields:
    """Reads typed fields; what is wrong goes to `reasons` and a harmless value comes back."""

    def __init__(self, data: Mapping[str, Any], reasons: Reasons) -> None:
        self.data = data
        self.reasons = reasons

    def as_count(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
            self.reasons.wrong(f"{name} is {_short(value)}; it must be a whole number from 1 to {MAX_RANK}")
            return 1
        return value

    def as_number(self, name: str, value: Any) -> float:
        # Written so that NaN fails.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
            self.reasons.wrong(f"{name} is {_short(value)}; it must be a number")
            return 1.0
        return float(value)

    def count(self, name: str) -> int:
        return self.as_count(name, self.data.get(name, 8))

    def number(self, name: str) -> float:
        return self.as_number(name, self.data.get(name, 8))

    def pattern(self, name: str, read: Any) -> dict[str, Any]:
        value = self.data.get(name) or {}
        if not isinstance(value, dict):
            self.reasons.wrong(f"{name} is {_short(value)}; it must be an object of patterns and numbers")
            return {}
        return {key: read(f"{name}[{key!r}]", entry) for key, entry in value.items()}

    def tokens(self, name: str) -> tuple[int, ...]:
        value = self.data.get(name)
        if value is None:
            return ()
        plain = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
        if not plain or not value or min(value) < 0 or max(value) >= 1 << 31:
            self.reasons.wrong(f"{name} is {_short(value)}; it must be a list of token ids")
            return ()
        return tuple(value)
