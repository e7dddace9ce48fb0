"""Reads a checkpoint's config.json into the numbers that the export needs, and into GGUF keys.

What llama.cpp would compute differently is refused, all reasons at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError, UnsupportedError
from ...edge.files.read import read_json
from ...edge.gguf.families import ALWAYS, OUTSIDE, Family, HfClass, find_class, known_classes, text_fields
from ...edge.gguf.other_bases import find_other_class, other_classes
from ...edge.gguf.rope import (
    LONG_FACTORS,
    LONGROPE,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Rope,
    read_rope,
    yarn_attention_factor,
    yarn_default_factor,
)
from ..files.gguf_writer import Value, float32, text, uint32


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of one checkpoint.

    Attributes:
        raw: config.json, of several models the language model's part.
        notes: what the user should know, though it is no fault.
    """

    family: Family
    hf: HfClass
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    n_ff: int
    n_vocab: int
    n_ctx_tokens: int
    norm_eps: float
    rope: Rope
    tied: bool
    raw: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "ModelConfig":
        """Reads `config.json` of a checkpoint folder.

        Raises:
            InputError: it is missing, or lacks fields.
            UnsupportedError: a model that llama.cpp or this exporter cannot represent exactly.
        """
        path = folder / "config.json"
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise InputError("is not a JSON object", where=path)
        names = raw.get("architectures") or []
        name = str(names[0]) if len(names) == 1 else ""
        found = find_class(name) or find_other_class(name)
        if found is None or "base" not in found[0].uses:
            raise UnsupportedError(
                f"the architecture {', '.join(map(str, names)) or '(none named)'} is not supported",
                where=path,
                hint=f"supported: {', '.join([*known_classes(), *other_classes()])}",
            )
        return _build(path, *found, text_fields(raw))

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the checkpoint must hold: Hugging Face name -> numpy shape."""
        q, kv = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        lengths = {"n_embd": self.n_embd, "n_q": q, "n_k": kv, "n_v": kv, "n_o": q, "n_ff": self.n_ff}
        lengths |= {"head": self.head_size, "n_qkv": q + 2 * kv, "n_gate_up": 2 * self.n_ff}
        whole: dict[str, tuple[int, ...]] = dict.fromkeys(OUTSIDE, (self.n_vocab, self.n_embd))
        whole["model.norm"] = (self.n_embd,)
        if self.tied:
            del whole["lm_head"]
        found = {f"{name}.weight": shape for name, shape in whole.items()}
        for layer in range(self.n_layers):
            for part in self.family.block:
                shape = tuple(lengths[name] for name in reversed(part.shape))
                found[f"model.layers.{layer}.{part.module}.weight"] = shape
                if part.bias == ALWAYS or (self.hf.biases and part.bias and self.raw.get(part.bias)):
                    found[f"model.layers.{layer}.{part.module}.bias"] = shape[:1]
        return found

    def keys(self) -> dict[str, Value]:
        """The `{architecture}.*` keys of the GGUF file."""
        a = self.family.architecture
        keys = {
            f"{a}.block_count": uint32(self.n_layers),
            f"{a}.context_length": uint32(self.n_ctx_tokens),
            f"{a}.embedding_length": uint32(self.n_embd),
            f"{a}.feed_forward_length": uint32(self.n_ff),
            f"{a}.attention.head_count": uint32(self.n_heads),
            f"{a}.attention.head_count_kv": uint32(self.n_kv_heads),
            f"{a}.attention.key_length": uint32(self.head_size),
            f"{a}.attention.value_length": uint32(self.head_size),
            f"{a}.attention.layer_norm_rms_epsilon": float32(self.norm_eps),
            f"{a}.vocab_size": uint32(self.n_vocab),
            f"{a}.rope.dimension_count": uint32(round(self.head_size * self.rope.share)),
            f"{a}.rope.freq_base": float32(self.rope.base(self.head_size)),
        }
        if self.family.window_every:
            keys[f"{a}.attention.sliding_window"] = uint32(int(self.raw["sliding_window"]))
            keys[f"{a}.rope.freq_base_swa"] = float32(self.rope.window_theta)
        if a == "phi3":
            # llama.cpp needs the keys, and computes no window: contexts end where one does (`computed_tokens`).
            original = self.rope.fields.get("original_max_position_embeddings", self.n_ctx_tokens)
            keys[f"{a}.rope.scaling.original_context_length"] = uint32(original)
            keys[f"{a}.attention.sliding_window"] = uint32(int(self.raw.get("sliding_window") or 0))
        if self.rope.kind == LONGROPE:
            keys[f"{a}.rope.scaling.attn_factor"] = float32(self.rope.fields["attention_factor"])
        for key, name in self.family.scalars.items():
            keys[f"{a}.{key}"] = float32(self.raw.get(name, 1.0))
        fields = self.rope.fields
        if self.rope.kind in ("linear", "yarn"):
            keys[f"{a}.rope.scaling.type"] = text(self.rope.kind)
            keys[f"{a}.rope.scaling.factor"] = float32(fields["factor"])
        if self.rope.kind == "yarn":
            original = fields.get("original_max_position_embeddings") or self.n_ctx_tokens
            keys[f"{a}.rope.scaling.original_context_length"] = uint32(original)
            keys[f"{a}.rope.scaling.yarn_beta_fast"] = float32(fields.get("beta_fast") or 32)
            keys[f"{a}.rope.scaling.yarn_beta_slow"] = float32(fields.get("beta_slow") or 1)
            attention = yarn_attention_factor(fields)
            if attention is not None:
                # llama.cpp multiplies its own 1 + 0.1 ln(factor) by this key.
                keys[f"{a}.rope.scaling.attn_factor"] = float32(attention / yarn_default_factor(fields))
        return keys

    def rope_factors(self) -> dict[str, npt.NDArray[np.float32]]:
        """Tensors with divisors of the rotation speeds, (half of what is turned of a head,) each, by their names."""
        if self.rope.kind == LONGROPE:
            names = {LONG_FACTORS: "long_factor", SHORT_FACTORS: "short_factor"}
            return {tensor: np.array(self.rope.fields[name], np.float32) for tensor, name in names.items()}
        return {ROPE_FACTORS: self.rope.llama3_divisors(self.head_size)} if self.rope.kind == "llama3" else {}


def _build(path: Path, family: Family, hf: HfClass, raw: dict[str, Any]) -> ModelConfig:
    problems: list[str] = []

    def number(name: str, default: int | None = None) -> int:
        value = raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{name} is {value!r}, not a positive whole number")
            return 1
        return value

    n_embd, n_heads = number("hidden_size"), number("num_attention_heads")
    n_kv_heads = number("num_key_value_heads", n_heads)
    head_size = number("head_dim", n_embd // n_heads or 1)
    n_ctx_tokens = number("max_position_embeddings")
    if n_heads % n_kv_heads:
        problems.append(f"{n_heads} heads cannot share {n_kv_heads} key-value heads evenly")
    if head_size % 2:
        problems.append(f"the head size {head_size} is odd")
    if family.square_attention and n_heads * head_size != n_embd:
        problems.append(
            f"{family.architecture} needs heads x head size = width, not {n_heads} x {head_size} for {n_embd}"
        )
    activation = raw.get(family.activation_field, family.activation)
    if {"swish": "silu"}.get(activation, activation) != family.activation:
        problems.append(f"the activation {activation!r}; llama.cpp computes {family.activation} for this family")
    if raw.get("quantization_config"):
        problems.append(
            f"its weights are quantised ({raw['quantization_config'].get('quant_method', 'unknown method')}); "
            "give the unquantised checkpoint"
        )
    problems += [
        f"{name} = {raw[name]!r}"
        for name, value in hf.fixed.items()
        if raw.get(name) is not None and raw[name] != value and family.proved
    ]
    rope = read_rope(raw, problems)
    n_layers = number("num_hidden_layers")
    turned = [int(family.turns(layer)) for layer in range(n_layers)]
    if raw.get("no_rope_layers") not in (None, [], turned):
        problems.append(f"no_rope_layers are not those of each {family.rope_free_every}th layer, as llama.cpp has them")
    for name in family.scalars.values():
        if not isinstance(raw.get(name, 1.0), int | float) or not raw.get(name, 1.0) > 0:
            problems.append(f"{name} is {raw[name]!r}, not a number above 0")
    windowed = ["sliding_attention" if family.windowed(layer) else "full_attention" for layer in range(n_layers)]
    if family.window_every:
        number("sliding_window")
        every = raw.get("sliding_window_pattern", family.window_every)
        if raw.get("layer_types", windowed) not in (None, windowed) or every != family.window_every:
            problems.append(f"another pattern of windows than all layers but each {family.window_every}th")
    elif "sliding_attention" in (raw.get("layer_types") or []):
        problems.append("attention within a window")
    if family.head_field:
        # gemma3.cpp takes another one for the 62 layers of the 27B alone.
        divisor = n_embd / n_heads if n_layers == 62 else head_size
        if raw[family.head_field] != divisor:
            problems.append(
                f"{family.head_field} is {raw[family.head_field]!r}; llama.cpp takes {divisor:g} with such heads"
            )
    notes = []
    window = raw.get("sliding_window")
    if hf.name == "MistralForCausalLM" and window and window < n_ctx_tokens:
        notes.append(f"beyond {window} tokens llama.cpp attends to all of them, transformers to the last {window} only")
    config = ModelConfig(
        family=family,
        hf=hf,
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        n_ff=number("intermediate_size"),
        n_vocab=number("vocab_size"),
        n_ctx_tokens=n_ctx_tokens,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=rope,
        tied=bool(raw.get("tie_word_embeddings", hf.tied)),
        raw=raw,
        notes=tuple(notes),
    )
    if problems:
        raise UnsupportedError("this model cannot be exported exactly", where=path, problems=problems)
    return config
