"""A transformers model made from a GGUF: its config from the file's keys, its weights dequantised to f32.

    model = load_gguf_model("SmolLM2-135M-Instruct.Q4_1.gguf")      # LlamaForCausalLM, the weights that will ship

A family is one entry of FAMILIES. The tokenizer is not made here: llama.cpp's own is used (`edge.vocab`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..edge.errors import UnsupportedError
from ..edge.gguf_file import GgufFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture maps to transformers.

    Attributes:
        model_class: name of the class in transformers.
        config_class: name of its config class.
        interleaved_rope: q and k rows lie pair by pair in the file (rope type NORM) and are put back to halves.
        config: fixed config entries.
    """

    model_class: str
    config_class: str
    interleaved_rope: bool
    config: dict[str, Any]


FAMILIES = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig", True, {"attention_bias": False, "mlp_bias": False}),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", False, {"use_sliding_window": False}),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", False, {"use_sliding_window": False, "attention_bias": False}),
}


def family_of(gguf: GgufFile) -> Family:
    """The table's entry for a file.

    Raises:
        UnsupportedError: no entry for its architecture.
    """
    arch = str(gguf.get("general.architecture", ""))
    if arch not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(
            f"training from a GGUF of architecture {arch!r} is not supported (known: {known})",
            where=gguf.path,
            hint="train from the Hugging Face folder of the same model instead",
        )
    return FAMILIES[arch]


def split_rope_halves(rows: "np.ndarray[Any, Any]", n_heads: int) -> "np.ndarray[Any, Any]":
    """Undoes the GGUF row order of q and k: per head, (pair, half) back to (half, pair). rows: (out,) or (out, in)."""
    shape = rows.shape
    pairs = rows.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(shape)


def config_of(gguf: GgufFile) -> "PretrainedConfig":
    """The transformers config that a GGUF's keys describe.

    Raises:
        UnsupportedError: unknown architecture, or a rope scaling that is not built here.
    """
    import transformers

    family = family_of(gguf)
    arch = str(gguf.get("general.architecture"))

    def key(name: str, default: Any = None) -> Any:
        return gguf.get(f"{arch}.{name}", default)

    scaling = key("rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise UnsupportedError(f"rope scaling {scaling!r} in a GGUF is not supported for training", where=gguf.path)
    width, heads = int(key("embedding_length")), int(key("attention.head_count"))
    vocab_size = gguf.tensors["token_embd.weight"].shape[1]
    config = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": int(key("feed_forward_length")),
        "num_hidden_layers": int(key("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(key("attention.head_count_kv", heads)),
        "head_dim": int(key("attention.key_length", width // heads)),
        "max_position_embeddings": int(key("context_length")),
        "rms_norm_eps": float(key("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(key("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.get("tokenizer.ggml.eos_token_id"),
        **family.config,
    }
    config_class: type[PretrainedConfig] = getattr(transformers, family.config_class)
    return config_class(**config)


def tensor_of(gguf: GgufFile, name: str) -> "np.ndarray[Any, Any]":
    """One tensor, dequantised to float32, in numpy order (out, in)."""
    import gguf as gguf_package

    info = gguf.tensors[name]
    kind = gguf_package.GGMLQuantizationType(int(info.type))
    values = gguf_package.quants.dequantize(np.asarray(gguf.raw(name)).reshape(*info.shape[:0:-1], -1), kind)
    return np.asarray(values, dtype=np.float32).reshape(info.shape[::-1])


def state_of(gguf: GgufFile) -> dict[str, Tensor]:
    """All weights under their transformers names, f32.

    Raises:
        UnsupportedError: a tensor that no name here covers.
    """
    family = family_of(gguf)
    arch = str(gguf.get("general.architecture"))
    heads = int(gguf.get(f"{arch}.attention.head_count"))
    kv_heads = int(gguf.get(f"{arch}.attention.head_count_kv", heads))
    state: dict[str, Tensor] = {}
    unknown = []
    for name in gguf.tensors:
        stem, _, kind = name.rpartition(".")
        layer, part = "", stem
        if stem.startswith("blk."):
            _, layer, part = stem.split(".", 2)
        target = BLOCK_NAMES.get(part) if layer else TOP_NAMES.get(part)
        if target is None or kind not in ("weight", "bias"):
            unknown.append(name)
            continue
        values = tensor_of(gguf, name)
        if family.interleaved_rope and part in ("attn_q", "attn_k"):
            values = split_rope_halves(values, heads if part == "attn_q" else kv_heads)
        prefix = f"model.layers.{layer}." if layer else ""
        state[f"{prefix}{target}.{kind}"] = torch.from_numpy(np.array(values, copy=True))
    if unknown:
        raise UnsupportedError(
            "tensors that the training model has no place for", where=gguf.path, problems=[f"{n}" for n in unknown]
        )
    return state


def load_gguf_model(path: str | Path, *, attention: str = "sdpa") -> "PreTrainedModel":
    """The model of a GGUF as transformers builds it, f32, in evaluation mode.

    Args:
        path: the GGUF file.
        attention: `attn_implementation` of transformers.

    Raises:
        UnsupportedError: architecture, rope scaling or tensors that are not covered.
    """
    import transformers

    gguf = GgufFile.open(path)
    config = config_of(gguf)
    config._attn_implementation = attention
    model_class = getattr(transformers, family_of(gguf).model_class)
    with torch.device("meta"):
        model = model_class(config)
    state = state_of(gguf)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    # the inverse frequencies are a buffer outside the state: made on meta above, so made again for real
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.eval()
    return model  # type: ignore[no-any-return]
