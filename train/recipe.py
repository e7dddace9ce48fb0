"""The settings of a training run: one frozen, checked dataclass.

recipe = Recipe(task="math", lr=1e-3, epochs=2)
recipe = Recipe.from_mapping({"task": "math", "lr": 1e-3})      # unknown keys are refused

What it is trained on (base, data, output) stands beside it in a TOML file: `recipe_file.py`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from ..edge.errors import InputError, UnsupportedError
from ..edge.written import did_you_mean

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Schedule = Literal["cosine", "linear", "constant"]
Weights = Literal["f32", "bf16", "gguf", "nf4"]
Contamination = Literal["report", "drop", "refuse", "off"]

# Where a model has one matrix for several of these, as Phi-3
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}

# What llama.cpp's LoRA cannot hold, so what a recipe cannot ask for: reference gguf.md 1.4.
CANNOT_SHIP = {
    "dora": "DoRA rescales every weight's magnitude",
    "use_dora": "DoRA rescales every weight's magnitude",
    "bias": "a GGUF adapter holds no bias",
    "lora_bias": "a GGUF adapter holds no bias",
    "modules_to_save": "a GGUF adapter holds no whole modules",
    "trainable_token_indices": "a GGUF adapter holds no new token rows",
}


def _doc(text: str) -> dict[str, str]:
    return {"doc": text}


@dataclass(frozen=True)
class Recipe:
    """One training run. Every field's meaning is in its `doc` metadata, which the command's help shows too."""

    task: str = field(metadata=_doc("which task makes the examples: one that ships, or a TOML file"))
    rank: int = field(default=16, metadata=_doc("LoRA rank"))
    alpha: float = field(default=32.0, metadata=_doc("LoRA alpha; the update is scaled by alpha / rank"))
    rslora: bool = field(default=False, metadata=_doc("scale by alpha / sqrt(rank) instead"))
    dropout: float = field(default=0.0, metadata=_doc("dropout on the adapter's input while training"))
    targets: tuple[str, ...] = field(
        default=TARGETS,
        metadata=_doc("linear layers that get an adapter; where a model has one matrix for several (Phi-3), that one"),
    )
    lr: float = field(default=1e-3, metadata=_doc("peak learning rate of AdamW"))
    schedule: Schedule = field(
        default="cosine", metadata=_doc("how the rate falls after warm-up: cosine, linear or constant")
    )
    lr_end: float = field(default=0.05, metadata=_doc("share of the peak rate that is left at the end"))
    warmup: float = field(default=0.05, metadata=_doc("share of the steps in which the rate rises from zero"))
    weight_decay: float = field(default=0.0, metadata=_doc("AdamW weight decay"))
    grad_clip: float = field(default=1.0, metadata=_doc("largest norm of the whole gradient"))
    batch: int = field(default=8, metadata=_doc("rows per optimiser step (the effective batch)"))
    epochs: float = field(default=1.0, metadata=_doc("passes over the examples, unless steps is given"))
    steps: int | None = field(default=None, metadata=_doc("optimiser steps; overrides epochs"))
    seed: int = field(default=1, metadata=_doc("draws the adapter's start, the order of the rows and dropout"))
    max_tokens: int = field(
        default=512, metadata=_doc("longer examples (prompt and completion) are dropped and counted")
    )
    forward_tokens: int = field(
        default=512, metadata=_doc("tokens of one forward pass at most; a step takes as many passes as it needs")
    )
    held_out: int = field(default=64, metadata=_doc("examples kept out to measure the loss on"))
    last_turn: bool = field(
        default=False, metadata=_doc("learn the last answer of each conversation alone, not all of them")
    )
    made_rows: int = field(default=0, metadata=_doc("rows that the task makes itself, mixed with the data (math only)"))
    weights: Weights = field(
        default="f32",
        metadata=_doc(
            "what the frozen weights are kept as: f32; bf16 (also what products are computed in: fast on GPUs and on "
            "CPUs with AMX); gguf (the blocks of the GGUF base, dequantised a layer at a time); nf4 (bitsandbytes)"
        ),
    )
    eval_every: int = field(default=0, metadata=_doc("steps between two measurements of the held-out loss; 0: none"))
    patience: int = field(
        default=0,
        metadata=_doc("stop after so many measurements without a better one, and keep the best; 0: never stop early"),
    )
    replay: float = field(
        default=0.0, metadata=_doc("share of the training rows that are drawn from replay_data, against forgetting")
    )
    contamination: Contamination = field(
        default="report",
        metadata=_doc(
            "what to do with rows that share words with a benchmark's test items: report, drop, refuse (to train) or "
            "off (don't look)"
        ),
    )
    alora_invocation: str = field(
        default="",
        metadata=_doc(
            "text from which on the adapter acts (aLoRA), as '<|im_start|>assistant\\n'; empty: a plain LoRA, "
            "everywhere"
        ),
    )

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError("the recipe is not valid", problems=problems, hint=FIELDS_HINT)

    def _problems(self) -> list[str]:
        checks = [
            (1 <= self.rank <= 4096, f"rank is {self.rank}; 1 to 4096 make sense"),
            (math.isfinite(self.alpha) and self.alpha > 0, f"alpha is {self.alpha}; it must be above 0"),
            (0 <= self.dropout < 1, f"dropout is {self.dropout}; it must be in [0, 1)"),
            (0 < self.lr <= 1, f"lr is {self.lr}; it must be in (0, 1]"),
            (self.schedule in get_args(Schedule), f"schedule is {self.schedule!r}; one of {get_args(Schedule)}"),
            (0 <= self.lr_end <= 1, f"lr_end is {self.lr_end}; it must be in [0, 1]"),
            (0 <= self.warmup < 1, f"warmup is {self.warmup}; it must be in [0, 1)"),
            (self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; it must not be negative"),
            (self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be above 0"),
            (self.batch >= 1, f"batch is {self.batch}; it must be at least 1"),
            (self.epochs > 0, f"epochs is {self.epochs}; it must be above 0"),
            (self.steps is None or self.steps >= 1, f"steps is {self.steps}; it must be at least 1"),
            (self.max_tokens >= 8, f"max_tokens is {self.max_tokens}; it must be at least 8"),
            (self.forward_tokens >= 8, f"forward_tokens is {self.forward_tokens}; it must be at least 8"),
            (self.held_out >= 0, f"held_out is {self.held_out}; it must not be negative"),
            (self.made_rows >= 0, f"made_rows is {self.made_rows}; it must not be negative"),
            (bool(self.targets), "targets is empty"),
            (self.weights in get_args(Weights), f"weights is {self.weights!r}; one of {get_args(Weights)}"),
            (self.eval_every >= 0, f"eval_every is {self.eval_every}; it must not be negative"),
            (self.patience >= 0, f"patience is {self.patience}; it must not be negative"),
            (not self.patience or self.eval_every > 0, "patience needs eval_every: nothing is measured without it"),
            (not self.patience or self.held_out > 0, "patience needs held_out: there is nothing to measure on"),
            (0 <= self.replay < 1, f"replay is {self.replay}; it must be in [0, 1)"),
            (
                self.contamination in get_args(Contamination),
                f"contamination is {self.contamination!r}; one of {get_args(Contamination)}",
            ),
            (
                not (self.alora_invocation and self.dropout),
                "alora_invocation and dropout together are not built; set dropout to 0",
            ),
        ]
        known = dict.fromkeys((*TARGETS, *FUSED.values()))
        unknown = [name for name in self.targets if name not in known]
        if unknown:
            checks.append((False, f"targets {', '.join(unknown)} are not among {', '.join(known)}"))
        return [problem for fine, problem in checks if not fine]

    def steps_for(self, n_examples: int) -> int:
        """Optimiser steps of the run: `steps`, or what `epochs` passes over the examples need."""
        return self.steps or max(1, math.ceil(self.epochs * n_examples / self.batch))

    def lr_at(self, step: int, n_steps: int) -> float:
        """Learning rate of step `step` (0-based) of `n_steps`."""
        n_warmup = math.ceil(self.warmup * n_steps)
        if step < n_warmup:
            return self.lr * (step + 1) / n_warmup
        done = (step - n_warmup) / max(1, n_steps - n_warmup)
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[self.schedule]
        return self.lr * (self.lr_end + (1 - self.lr_end) * fall)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for train.json; `from_mapping` takes them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Recipe":
        """A recipe from TOML, JSON or flags.

        Raises:
            UnsupportedError: it asks for what a GGUF adapter cannot hold.
            InputError: unknown keys, wrong types or values; all of them at once.
        """
        refused = [f"{key}: {CANNOT_SHIP[key]}" for key in values if key in CANNOT_SHIP]
        if refused:
            raise UnsupportedError("the recipe asks for what llama.cpp cannot hold", problems=refused)
        taken, problems = checked_fields(cls, values)
        if problems:
            raise InputError("the recipe is not valid", problems=problems, hint=FIELDS_HINT)
        return cls(**taken)


FIELDS_HINT = "slm-edge train recipes --fields explains every field"
_WRONG = object()


def checked_fields(kind: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values for a dataclass's fields in their types, and what is wrong: unknown, missing, or of another type."""
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    problems = []
    for key in values:
        if key not in fields:
            problems.append(f"{key}: unknown; did you mean {did_you_mean(key, list(fields))[0]}?")
    for name, entry in fields.items():
        needed = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if needed and name not in values:
            problems.append(f"{name}: missing")
    taken: dict[str, Any] = {}
    for key, value in values.items():
        if key in fields:
            taken[key] = converted = _as_type(value, fields[key].type)
            if converted is _WRONG:
                problems.append(f"{key}: {value!r} is not {_name_of(fields[key].type)}")
    return taken, problems


def _name_of(kind: Any) -> str:
    """What a field's type is called in messages."""
    if get_origin(kind) is tuple:
        return "a list of strings"
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a whole number")


def _as_type(value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        fine = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return tuple(value) if fine else _WRONG
    if kind == int | None and value is None:
        return None
    if get_origin(kind) is Literal or kind is str:
        return value if isinstance(value, str) else _WRONG
    if kind is bool:
        return value if isinstance(value, bool) else _WRONG
    if isinstance(value, bool):
        return _WRONG
    if kind is float:
        return float(value) if isinstance(value, int | float) else _WRONG
    return value if isinstance(value, int) else _WRONG
