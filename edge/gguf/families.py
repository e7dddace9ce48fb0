"""The model families: one row each, from which the base check, export, training, ONNX and the forecasts draw.

    family = FAMILIES["qwen2"]                                # by llama.cpp's name of the architecture
    family.gguf_name("model.layers.3.mlp.up_proj")            # "blk.3.ffn_up"
    family, hf = find_class("MistralForCausalLM")             # the same row for Llama and Mistral

To add a family: one row in `FAMILIES`, one of a tiny model in tests/build_hf.py. Names of transformers' classes are
strings: nothing of it is imported here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

ALWAYS: Final = "always"
ALL_USES: Final = frozenset({"base", "lora", "train", "onnx"})
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Part:
    """One module of a block, or of the model outside of its blocks.

    Attributes:
        name: in a GGUF, without "blk.N." and suffix.
        module: in transformers, without "model.layers.N.".
        shape: of the weight in ggml order, the row length first; each length by its name in `base.sizes_of`.
        bias: the config field that switches its bias on, `ALWAYS`, or "" where it has none.
    """

    name: str
    module: str
    shape: tuple[str, ...]
    bias: str = ""

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


@dataclass(frozen=True)
class HfClass:
    """One class of transformers whose checkpoints become this architecture.

    Attributes:
        name: of the class, as `architectures` in config.json says it.
        config: name of its config class.
        biases: its config can switch biases on.
        fixed: config field -> the only value that llama.cpp computes; training sets it, export refuses others.
        tied: the head is the embedding where config.json does not say.
        rope_theta: where config.json says none.
        defaults: config field -> what the class takes where config.json says none.
        text_config: sizes stand in this part of config.json, and the language model is one of several; "" for the rest.
        ntk_alpha: a rope scaling "dynamic" with an `alpha` means a base stretched once and for all.
    """

    name: str
    config: str
    biases: bool = True
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    rope_theta: float = 10_000.0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    text_config: str = ""
    ntk_alpha: bool = False


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp.

    Attributes:
        architecture: llama.cpp's name.
        classes: those of transformers; training from a GGUF makes the first.
        block: the modules of one block, in the order in which they are written; parts of one module hold its rows one
            after the other.
        interleaves_qk: llama.cpp rotates neighbouring pairs, transformers two halves: rows of q and k are reordered.
        square_attention: llama.cpp takes n_heads * head size = width only.
        activation, activation_field: of transformers, and the config field that says it.
        scalars: GGUF key without the architecture -> config field of a number in the computation.
        rope_free_every: each so-many-th layer does not turn positions; 0: all do.
        norm_after_rope: q and k are normed when they have been turned.
        norm_plus: a GGUF's norms are those of transformers plus this.
        window_every: each so-many-th layer attends to all tokens, those between to the last `attention.sliding_window`
            and with a rope base of their own; 0: there are no windows.
        scaled_embedding: rows of the embedding are multiplied by the root of their length.
        head_field: the config field of the number by whose root scores are divided; llama.cpp takes the head size.
        needs_output: the file must have a head of its own.
        proved: everything in a GGUF of it is known here; else names and shapes are taken as they are in the file, and
            it is first tried in a child process.
        tiled_values: heads of values of a linear attention lie otherwise than in transformers (`other_bases.py`).
        unreached: ends of names of modules that PEFT adapts and that llama.cpp multiplies past the adapter.
        refused_keys: GGUF keys (without the architecture) of what is not computed here.
        uses: what is done with it beside running: "base" (export of checkpoints), "lora" (export of adapters), "train"
            (from a GGUF), "onnx".
    """

    architecture: str
    classes: tuple[HfClass, ...]
    block: tuple[Part, ...]
    interleaves_qk: bool = False
    square_attention: bool = False
    activation: str = "silu"
    activation_field: str = "hidden_act"
    scalars: Mapping[str, str] = field(default_factory=dict)
    rope_free_every: int = 0
    norm_after_rope: bool = False
    norm_plus: float = 0.0
    window_every: int = 0
    scaled_embedding: bool = False
    head_field: str = ""
    needs_output: bool = False
    proved: bool = True
    tiled_values: bool = False
    unreached: tuple[str, ...] = ()
    refused_keys: tuple[str, ...] = ()
    uses: frozenset[str] = ALL_USES

    @property
    def matrices(self) -> tuple[str, ...]:
        """GGUF names of a block's matrices that llama.cpp multiplies through its LoRA path."""
        return tuple(part.name for part in self.block if part.is_matrix)

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values are one matrix, and gate and up another."""
        return self.part("attn_qkv") is not None and self.part("attn_q") is None

    def turns(self, layer: int) -> bool:
        """Whether a layer turns positions."""
        return not self.rope_free_every or (layer + 1) % self.rope_free_every != 0

    def windowed(self, layer: int) -> bool:
        """Whether a layer attends to the tokens of a window alone."""
        return bool(self.window_every) and (layer + 1) % self.window_every != 0

    def plus(self, gguf_name: str) -> float:
        """What a tensor of a GGUF is more than that of transformers."""
        return self.norm_plus if gguf_name.endswith("_norm.weight") else 0.0

    def part(self, name: str) -> Part | None:
        """The module of a block with this GGUF name, or None."""
        return next((part for part in self.block if part.name == name), None)

    def tensors(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Name without "blk.N." and shape of every tensor that each block of a GGUF must have."""
        for part in self.block:
            yield f"{part.name}.weight", part.shape
            if part.bias == ALWAYS:
                yield f"{part.name}.bias", part.shape[-1:]

    def gguf_name(self, module: str) -> str | None:
        """The GGUF name, without its suffix, of a module such as "model.layers.3.mlp.up_proj"; None if unknown."""
        return next(iter(self.gguf_names(module)), None)

    def gguf_names(self, module: str) -> list[str]:
        """Those of all tensors that hold rows of a module, in their order."""
        if module in OUTSIDE:
            return [OUTSIDE[module]]
        match = _LAYER.fullmatch(module)
        return [f"blk.{match[1]}.{part.name}" for part in self.block if match and part.module == match[2]]

    def module(self, gguf_name: str) -> str | None:
        """The module of a GGUF name without its suffix, such as "blk.3.ffn_up"; None if unknown."""
        if not gguf_name.startswith("blk."):
            return next((module for module, name in OUTSIDE.items() if name == gguf_name), None)
        _, layer, name = gguf_name.split(".", 2)
        part = self.part(name)
        return None if part is None else f"model.layers.{layer}.{part.module}"

    def n_interleaved_heads(self, gguf_name: str, n_heads: int, n_kv_heads: int) -> int | None:
        """In how many heads the rows of a tensor are reordered (`interleave_rows`); None if they are not.

        Args:
            gguf_name: with or without its suffix, for example "blk.0.attn_q.weight".
        """
        if not self.interleaves_qk:
            return None
        parts = gguf_name.split(".")
        kind = parts[2] if len(parts) > 2 else ""
        return {"attn_q": n_heads, "attn_k": n_kv_heads}.get(kind)


def find_class(name: str) -> tuple[Family, HfClass] | None:
    """The row that a class of transformers belongs to, and what it says of the class; None if there is none."""
    return next(((family, hf) for family in FAMILIES.values() for hf in family.classes if hf.name == name), None)


def text_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the language model, with what its class takes where it says nothing."""
    names = raw.get("architectures") or [""]
    found = find_class(str(names[0]))
    if found is None:
        return dict(raw)
    hf = found[1]
    said = {name: value for name, value in raw.items() if name != hf.text_config}
    inner = raw.get(hf.text_config) if hf.text_config else {}
    of_all = {name: raw[name] for name in ("architectures", "bos_token_id", "eos_token_id") if name in raw}
    return {**hf.defaults, **said, **(inner if isinstance(inner, dict) else {}), **of_all}


def known_classes() -> list[str]:
    """Names of the classes whose checkpoints can be exported."""
    return [hf.name for family in FAMILIES.values() if "base" in family.uses for hf in family.classes]


OUTSIDE: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# Parts of multimodal models, other than the language model, by the names of their modules.
OTHER_SENSES: Final = re.compile(
    r"(?:^|\.)(visual|vision_tower|vision_model|vision_encoder|multi_modal_projector|mm_projector|audio_tower|"
    r"audio_model|embed_vision|embed_audio)(?:\.|$)"
)
_NORMS: Final = (
    Part("attn_norm", "input_layernorm", ("n_embd",)),
    Part("ffn_norm", "post_attention_layernorm", ("n_embd",)),
)
_HEAD_NORMS: Final = (
    Part("attn_q_norm", "self_attn.q_norm", ("head",)),
    Part("attn_k_norm", "self_attn.k_norm", ("head",)),
)


def attention(qkv_bias: str = "", output_bias: str = "") -> tuple[Part, ...]:
    return (
        Part("attn_q", "self_attn.q_proj", ("n_embd", "n_q"), qkv_bias),
        Part("attn_k", "self_attn.k_proj", ("n_embd", "n_k"), qkv_bias),
        Part("attn_v", "self_attn.v_proj", ("n_embd", "n_v"), qkv_bias),
        Part("attn_output", "self_attn.o_proj", ("n_o", "n_embd"), output_bias),
    )


def mlp(bias: str = "") -> tuple[Part, ...]:
    return (
        Part("ffn_gate", "mlp.gate_proj", ("n_embd", "n_ff"), bias),
        Part("ffn_up", "mlp.up_proj", ("n_embd", "n_ff"), bias),
        Part("ffn_down", "mlp.down_proj", ("n_ff", "n_embd"), bias),
    )


_GEMMA3: Final = HfClass(
    "Gemma3ForCausalLM",
    "Gemma3TextConfig",
    fixed={
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    tied=True,
    rope_theta=1_000_000.0,
    # gemma-3-4b-it's config.json names little.
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10_000.0,
    },
)

_ROWS: Final = (
    Family(
        "llama",
        classes=(
            HfClass("LlamaForCausalLM", "LlamaConfig"),
            HfClass("MistralForCausalLM", "MistralConfig", biases=False),
        ),
        block=(*_NORMS, *attention("attention_bias", "attention_bias"), *mlp("mlp_bias")),
        interleaves_qk=True,
    ),
    Family(
        "qwen2",
        classes=(HfClass("Qwen2ForCausalLM", "Qwen2Config", fixed={"use_sliding_window": False}),),
        block=(*_NORMS, *attention(ALWAYS), *mlp()),
        square_attention=True,
    ),
    Family(
        "qwen3",
        classes=(
            HfClass("Qwen3ForCausalLM", "Qwen3Config", fixed={"use_sliding_window": False, "attention_bias": False}),
        ),
        block=(*_NORMS, *attention(), *_HEAD_NORMS, *mlp()),
    ),
    Family(
        "smollm3",
        classes=(
            HfClass(
                "SmolLM3ForCausalLM",
                "SmolLM3Config",
                fixed={
                    "use_sliding_window": False,
                    "attention_bias": False,
                    "mlp_bias": False,
                    "no_rope_layer_interval": 4,
                },
                tied=True,
                rope_theta=2_000_000.0,
            ),
        ),
        block=(*_NORMS, *attention(), *mlp()),
        interleaves_qk=True,
        rope_free_every=4,
    ),
    Family(
        "granite",
        classes=(HfClass("GraniteForCausalLM", "GraniteConfig"),),
        block=(*_NORMS, *attention("attention_bias", "attention_bias"), *mlp("mlp_bias")),
        interleaves_qk=True,
        scalars={
            "embedding_scale": "embedding_multiplier",
            "attention.scale": "attention_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    Family(
        "olmo2",
        classes=(HfClass("Olmo2ForCausalLM", "Olmo2Config", fixed={"attention_bias": False}),),
        block=(
            *attention(),
            Part("attn_q_norm", "self_attn.q_norm", ("n_q",)),
            Part("attn_k_norm", "self_attn.k_norm", ("n_k",)),
            Part("post_attention_norm", "post_attention_layernorm", ("n_embd",)),
            *mlp(),
            Part("post_ffw_norm", "post_feedforward_layernorm", ("n_embd",)),
        ),
        square_attention=True,
        needs_output=True,
        refused_keys=("attention.sliding_window",),
    ),
    Family(
        "exaone4",
        classes=(
            HfClass(
                "Exaone4ForCausalLM",
                "Exaone4Config",
                fixed={"sliding_window": None},
                defaults={"sliding_window": 4096},
            ),
        ),
        block=(
            *attention(),
            *_HEAD_NORMS,
            Part("post_attention_norm", "post_attention_layernorm", ("n_embd",)),
            *mlp(),
            Part("post_ffw_norm", "post_feedforward_layernorm", ("n_embd",)),
        ),
        square_attention=True,
        refused_keys=("attention.sliding_window",),
    ),
    Family(
        "hunyuan-dense",
        classes=(
            HfClass(
                "HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Config", fixed={"attention_bias": False}, ntk_alpha=True
            ),
        ),
        block=(
            *_NORMS,
            *attention(),
            Part("attn_q_norm", "self_attn.query_layernorm", ("head",)),
            Part("attn_k_norm", "self_attn.key_layernorm", ("head",)),
            *mlp(),
        ),
        norm_after_rope=True,
    ),
    Family(
        "gemma3",
        classes=(
            _GEMMA3,
            replace(_GEMMA3, name="Gemma3ForConditionalGeneration", config="Gemma3Config", text_config="text_config"),
        ),
        block=(
            Part("attn_norm", "input_layernorm", ("n_embd",)),
            *attention(),
            *_HEAD_NORMS,
            Part("post_attention_norm", "post_attention_layernorm", ("n_embd",)),
            Part("ffn_norm", "pre_feedforward_layernorm", ("n_embd",)),
            *mlp(),
            Part("post_ffw_norm", "post_feedforward_layernorm", ("n_embd",)),
        ),
        activation="gelu_pytorch_tanh",
        activation_field="hidden_activation",
        norm_plus=1.0,
        window_every=6,
        scaled_embedding=True,
        head_field="query_pre_attn_scalar",
        refused_keys=("final_logit_softcapping", "attn_logit_softcapping"),
    ),
)
FAMILIES: Final[dict[str, Family]] = {row.architecture: row for row in _ROWS}
