"""Writes checkpoints of families without a row of their own as GGUF: an independent, plain converter for tests.

base = other_base(tmp_path, "lfm2")          # folder / "hf", folder / "base.gguf"

Names and rules: llama.cpp's conversion scripts of 2026-10, read and retold.
"""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from build_gguf import write_gguf
from build_hf import CHATML, SPECIALS, tiny_tokenizer

U32, F32, I32, TEXT, ARRAY = (
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.FLOAT32,
    gguf.GGUFValueType.INT32,
    gguf.GGUFValueType.STRING,
    gguf.GGUFValueType.ARRAY,
)
COMMON = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
COMMON |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.15}
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
# architecture -> class, config class, fields
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lfm2": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 128,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
        },
    ),
    "qwen35": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 128,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
                "mrope_section": [2, 1, 1],
            },
        },
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {"num_hidden_layers": 2, "intermediate_size": 128, "sliding_window": None},
    ),
    "mistral3": (
        "Ministral3ForCausalLM",
        "Ministral3Config",
        {
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "head_dim": 16,
            "rope_parameters": {
                "type": "yarn",
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 256,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
}


def other_base(folder: Path, architecture: str, *, seed: int = 0, keys: dict[str, Any] | None = None, **fields: Any):
    """A random checkpoint in `folder / "hf"` and its F32 GGUF in `folder / "base.gguf"`; skips where there is no class.

    Args:
        keys: further keys of the GGUF, or other values.
    """
    class_name, config_name, own = OTHERS[architecture]
    if not hasattr(transformers, class_name):
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    tokenizer = tiny_tokenizer()
    given = COMMON | {"vocab_size": tokenizer.get_vocab_size(), "tie_word_embeddings": True} | own | fields
    config = getattr(transformers, config_name)(**given)
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    hf = folder / "hf"
    model.save_pretrained(hf)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIALS[0], eos_token=SPECIALS[2], pad_token=SPECIALS[0]
    )
    wrapped.save_pretrained(hf)
    (hf / "chat_template.jinja").write_text(CHATML)
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    write = {"lfm2": _lfm2, "qwen35": _qwen35, "phi3": _phi3, "mistral3": _mistral3}[architecture]
    own_keys, tensors = write(config, state)
    everything = _keys(architecture, config) | _tokenizer(tokenizer) | own_keys | (keys or {})
    if not config.tie_word_embeddings:
        tensors.append(("output.weight", state["lm_head.weight"]))
    write_gguf(
        folder / "base.gguf",
        architecture,
        {key: value for key, value in everything.items() if value is not None},
        [("token_embd.weight", state["model.embed_tokens.weight"]), *tensors],
    )
    return hf, folder / "base.gguf"


def _keys(arch: str, config: Any) -> dict[str, tuple[Any, ...]]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "general.type": ("model", TEXT),
        "general.name": (f"tiny {arch.replace('phi3', 'fused')}", TEXT),
        "general.file_type": (0, U32),
        f"{arch}.block_count": (config.num_hidden_layers, U32),
        f"{arch}.context_length": (config.max_position_embeddings, U32),
        f"{arch}.embedding_length": (config.hidden_size, U32),
        f"{arch}.feed_forward_length": (config.intermediate_size, U32),
        f"{arch}.attention.head_count": (config.num_attention_heads, U32),
        f"{arch}.attention.head_count_kv": (config.num_key_value_heads, U32),
        f"{arch}.attention.key_length": (head, U32),
        f"{arch}.attention.value_length": (head, U32),
        f"{arch}.rope.dimension_count": (head, U32),
        f"{arch}.rope.freq_base": (10000.0, F32),
        f"{arch}.vocab_size": (config.vocab_size, U32),
        f"{arch}.attention.layer_norm_rms_epsilon": (getattr(config, "rms_norm_eps", 1e-5), F32),
    }


def _tokenizer(tokenizer: Any) -> dict[str, tuple[Any, ...]]:
    raw = json.loads(tokenizer.to_str())
    vocab = sorted(raw["model"]["vocab"].items(), key=lambda entry: entry[1])
    tokens = [token for token, _ in vocab]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    return {
        "tokenizer.ggml.model": ("gpt2", TEXT),
        "tokenizer.ggml.pre": ("qwen2", TEXT),
        "tokenizer.ggml.tokens": (tokens, ARRAY, TEXT),
        "tokenizer.ggml.token_type": ([3 if token in SPECIALS else 1 for token in tokens], ARRAY, I32),
        "tokenizer.ggml.merges": (merges, ARRAY, TEXT),
        "tokenizer.ggml.bos_token_id": (0, U32),
        "tokenizer.ggml.eos_token_id": (2, U32),
        "tokenizer.chat_template": (CHATML, TEXT),
    }


def _layers(config: Any, state: dict[str, np.ndarray]):
    """Number and tensors of each layer, by their names in it."""
    for layer in range(config.num_hidden_layers):
        start = f"model.layers.{layer}."
        yield layer, {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _lfm2(config: Any, state: dict[str, np.ndarray]):
    kv = [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]
    keys = {
        "lfm2.attention.head_count_kv": (kv, ARRAY, I32),
        "lfm2.shortconv.l_cache": (config.conv_L_cache, U32),
        "lfm2.attention.key_length": None,
        "lfm2.attention.value_length": None,
        "lfm2.rope.freq_base": (float(config.rope_parameters["rope_theta"]), F32)
        if hasattr(config, "rope_parameters")
        else (float(config.rope_theta), F32),
        "lfm2.attention.layer_norm_rms_epsilon": (config.norm_eps, F32),
    }
    names = {
        **{f"self_attn.{name}": other for name, other in ATTENTION.items() if name != "o_proj"},
        "self_attn.out_proj": "attn_output",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "operator_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
        "conv.conv": "shortconv.conv",
    }
    tensors = [("token_embd_norm.weight", state["model.embedding_norm.weight"])]
    for layer, own in _layers(config, state):
        for name, value in own.items():
            value = value[:, 0] if name == "conv.conv.weight" else value
            tensors.append((f"blk.{layer}.{names[name.removesuffix('.weight')]}.weight", value))
    return keys, tensors


def _by_value(values: np.ndarray, config: Any, size: int, axis: int = 0) -> np.ndarray:
    """Heads of values from transformers' order, by key head, to llama.cpp's: the first of each, then the second."""
    n_keys = config.linear_num_key_heads
    per_key = config.linear_num_value_heads // n_keys
    moved = np.moveaxis(values, axis, 0)
    moved = moved.reshape(n_keys, per_key, size, *moved.shape[1:]).swapaxes(0, 1).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


def _qwen35(config: Any, state: dict[str, np.ndarray]):
    size, n_values = config.linear_key_head_dim, config.linear_num_value_heads
    keys = {
        "qwen35.ssm.conv_kernel": (config.linear_conv_kernel_dim, U32),
        "qwen35.ssm.state_size": (size, U32),
        "qwen35.ssm.group_count": (config.linear_num_key_heads, U32),
        "qwen35.ssm.time_step_rank": (n_values, U32),
        "qwen35.ssm.inner_size": (n_values * size, U32),
        "qwen35.full_attention_interval": (4, U32),
        "qwen35.rope.dimension_count": (config.head_dim // 4, U32),
        "qwen35.rope.dimension_sections": ([*config.rope_parameters["mrope_section"], 0], ARRAY, I32),
    }
    names = {
        **{f"self_attn.{name}": other for name, other in ATTENTION.items()},
        **{f"mlp.{name}": other for name, other in MLP.items()},
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.out_proj": "ssm_out",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.conv1d": "ssm_conv1d",
    }
    n_before = 2 * config.linear_num_key_heads * size
    tensors = [("output_norm.weight", state["model.norm.weight"] + 1)]
    for layer, own in _layers(config, state):
        for name, value in own.items():
            stem = name.removesuffix(".weight")
            if stem == "linear_attn.A_log":
                tensors.append((f"blk.{layer}.ssm_a", _by_value(-np.exp(value), config, 1)))
                continue
            if stem == "linear_attn.dt_bias":
                tensors.append((f"blk.{layer}.ssm_dt.bias", _by_value(value, config, 1)))
                continue
            if "norm" in stem and stem != "linear_attn.norm":
                value = value + 1
            if stem == "linear_attn.conv1d":
                value = value[:, 0]
            if stem in ("linear_attn.in_proj_qkv", "linear_attn.conv1d"):
                value = np.concatenate([value[:n_before], _by_value(value[n_before:], config, size)])
            elif stem == "linear_attn.in_proj_z":
                value = _by_value(value, config, size)
            elif stem in ("linear_attn.in_proj_a", "linear_attn.in_proj_b"):
                value = _by_value(value, config, 1)
            elif stem == "linear_attn.out_proj":
                value = _by_value(value, config, size, axis=1)
            tensors.append((f"blk.{layer}.{names[stem]}.weight", value))
    return keys, tensors


def _phi3(config: Any, state: dict[str, np.ndarray]):
    names = {
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    keys = {
        "phi3.rope.scaling.original_context_length": (config.max_position_embeddings, U32),
        "phi3.attention.sliding_window": (config.sliding_window or 0, U32),
    }
    tensors = [("output_norm.weight", state["model.norm.weight"])]
    long = config.rope_parameters if hasattr(config, "rope_parameters") else config.rope_scaling or {}
    if long.get("long_factor"):
        original = config.original_max_position_embeddings
        factor = math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original))
        keys["phi3.rope.scaling.type"] = ("longrope", TEXT)
        keys["phi3.rope.scaling.original_context_length"] = (original, U32)
        keys["phi3.rope.scaling.attn_factor"] = (factor, F32)
        for kind in ("long", "short"):
            tensors.append((f"rope_factors_{kind}.weight", np.array(long[f"{kind}_factor"], np.float32)))
    for layer, own in _layers(config, state):
        tensors += [(f"blk.{layer}.{names[name.removesuffix('.weight')]}.weight", value) for name, value in own.items()]
    return keys, tensors


def _mistral3(config: Any, state: dict[str, np.ndarray]):
    rope = config.rope_parameters
    keys = {
        "mistral3.rope.scaling.type": ("yarn", TEXT),
        "mistral3.rope.scaling.factor": (rope["factor"], F32),
        "mistral3.rope.scaling.original_context_length": (rope["original_max_position_embeddings"], U32),
        "mistral3.rope.scaling.yarn_beta_fast": (rope["beta_fast"], F32),
        "mistral3.rope.scaling.yarn_beta_slow": (rope["beta_slow"], F32),
        "mistral3.rope.scaling.yarn_log_multiplier": (rope["mscale_all_dim"], F32),
        "mistral3.attention.temperature_scale": (rope["llama_4_scaling_beta"], F32),
    }
    names = {
        **{f"self_attn.{name}": other for name, other in ATTENTION.items()},
        **{f"mlp.{name}": other for name, other in MLP.items()},
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = [("output_norm.weight", state["model.norm.weight"])]
    for layer, own in _layers(config, state):
        for name, value in own.items():
            short = names[name.removesuffix(".weight")]
            if short in heads:
                halves = value.reshape(heads[short], 2, -1, value.shape[1])
                value = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)
            tensors.append((f"blk.{layer}.{short}.weight", value))
    return keys, tensors
