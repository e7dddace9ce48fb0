"""How tensors and keys of a checkpoint stand in its GGUF, by family: names and rules of llama.cpp's converters, retold.

    keys, tensors = lfm2(config, state)         # state: name in transformers -> numbers

A key that is None is not written.
"""

import math
from typing import Any

import gguf
import numpy as np

U32, F32, I32, TEXT, ARRAY = (
    gguf.GGUFValueType.UINT32,
    gguf.GGUFValueType.FLOAT32,
    gguf.GGUFValueType.INT32,
    gguf.GGUFValueType.STRING,
    gguf.GGUFValueType.ARRAY,
)
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def _layers(config: Any, state: dict[str, np.ndarray]):
    """Number and tensors of each layer, by their names in it."""
    for layer in range(config.num_hidden_layers):
        start = f"model.layers.{layer}."
        yield layer, {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def lfm2(config: Any, state: dict[str, np.ndarray]):
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


def qwen35(config: Any, state: dict[str, np.ndarray]):
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


def granite4(config: Any, state: dict[str, np.ndarray]):
    kinds = ["attention" if kind in ("attention", "full_attention") else "mamba" for kind in config.layer_types]
    hybrid = "mamba" in kinds
    arch = "granitehybrid" if hybrid else "granite"
    keys: dict[str, Any] = {
        f"{arch}.embedding_scale": (config.embedding_multiplier, F32),
        f"{arch}.residual_scale": (config.residual_multiplier, F32),
        f"{arch}.attention.scale": (config.attention_multiplier, F32),
        f"{arch}.logit_scale": (config.logits_scaling, F32),
    }
    if hybrid:
        kv = [config.num_key_value_heads if kind == "attention" else 0 for kind in kinds]
        keys |= {
            f"{arch}.attention.head_count_kv": (kv, ARRAY, I32),
            f"{arch}.attention.key_length": None,
            f"{arch}.attention.value_length": None,
            f"{arch}.ssm.conv_kernel": (config.mamba_d_conv, U32),
            f"{arch}.ssm.state_size": (config.mamba_d_state, U32),
            f"{arch}.ssm.group_count": (config.mamba_n_groups, U32),
            f"{arch}.ssm.inner_size": (config.mamba_n_heads * config.mamba_d_head, U32),
            f"{arch}.ssm.time_step_rank": (config.mamba_n_heads, U32),
            f"{arch}.rope.scaling.finetuned": (False, gguf.GGUFValueType.BOOL),
        }
    names = {
        **{f"self_attn.{name}": other for name, other in ATTENTION.items()},
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "shared_mlp.output_linear": "ffn_down",
        "mamba.in_proj": "ssm_in",
        "mamba.out_proj": "ssm_out",
        "mamba.norm": "ssm_norm",
        "mamba.conv1d": "ssm_conv1d",
        "mamba.A_log": "ssm_a",
        "mamba.D": "ssm_d",
        "mamba.dt_bias": "ssm_dt.bias",
    }
    tensors = [("output_norm.weight", state["model.norm.weight"])]
    for layer, own in _layers(config, state):
        for name, value in own.items():
            stem, _, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
            if stem == "shared_mlp.input_linear":
                gate, up = np.split(value, 2)
                tensors += [(f"blk.{layer}.ffn_gate.weight", gate), (f"blk.{layer}.ffn_up.weight", up)]
                continue
            if stem in ("mamba.A_log", "mamba.D"):
                value = (-np.exp(value) if stem == "mamba.A_log" else value).reshape(-1, 1)
            elif name == "mamba.conv1d.weight":
                value = value[:, 0]
            elif stem == "mamba.norm":
                value = value.reshape(config.mamba_n_groups, -1)
            elif stem in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if stem == "self_attn.q_proj" else config.num_key_value_heads
                value = _in_pairs(value, heads)
            tensors.append((".".join(part for part in ("blk", str(layer), names[stem], kind) if part), value))
    return keys, tensors


def _in_pairs(value: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k, of each head its two halves, as neighbouring pairs."""
    halves = value.reshape(n_heads, 2, -1, value.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)


_GEMMA = {
    **{f"self_attn.{name}": other for name, other in ATTENTION.items()},
    **{f"mlp.{name}": other for name, other in MLP.items()},
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "layer_scalar": "layer_output_scale",
    "altup.correct_output_scale": "altup_correct_scale",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}


def _per_layer(arch: str, config: Any, state: dict[str, np.ndarray]):
    """What Gemma 3n and 4 have in common: windows, keys and values of earlier layers, an input for each layer."""
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    keys = {
        f"{arch}.attention.sliding_window": (config.sliding_window, U32),
        f"{arch}.attention.sliding_window_pattern": (windows, ARRAY, gguf.GGUFValueType.BOOL),
        f"{arch}.attention.shared_kv_layers": (config.num_kv_shared_layers, U32),
        f"{arch}.embedding_length_per_layer_input": (config.hidden_size_per_layer_input, U32),
        f"{arch}.rope.freq_base": (1_000_000.0, F32),
        f"{arch}.rope.freq_base_swa": (10_000.0, F32),
    }
    tensors = [
        ("output_norm.weight", state["model.norm.weight"]),
        ("per_layer_token_embd.weight", state["model.embed_tokens_per_layer.weight"]),
        ("per_layer_model_proj.weight", state["model.per_layer_model_projection.weight"]),
        ("per_layer_proj_norm.weight", state["model.per_layer_projection_norm.weight"]),
    ]
    for layer, own in _layers(config, state):
        for name, value in own.items():
            tensors.append((f"blk.{layer}.{_GEMMA[name.removesuffix('.weight')]}.weight", value))
    return keys, tensors


def gemma3n(config: Any, state: dict[str, np.ndarray]):
    keys, tensors = _per_layer("gemma3n", config, state)
    keys["gemma3n.altup.active_idx"] = (config.altup_active_idx, U32)
    keys["gemma3n.altup.num_inputs"] = (config.altup_num_inputs, U32)
    # The normal distribution's quantile of 0.95
    sparse = [1.6448536 if part == 0.95 else float("-inf") for part in config.activation_sparsity_pattern]
    keys["gemma3n.activation_sparsity_scale"] = (sparse, ARRAY, F32)
    for name, other in (("altup_projections", "altup_proj"), ("altup_unembed_projections", "altup_unembd_proj")):
        tensors.append((f"{other}.weight", np.stack([state[f"model.{name}.{i}.weight"] for i in range(3)])))
    held = {name for name, _ in tensors}
    for layer in range(config.num_hidden_layers - config.num_kv_shared_layers, config.num_hidden_layers):
        # transformers 5 leaves out what nobody reads; llama.cpp wants it.
        for part in ("attn_k", "attn_v", "attn_k_norm"):
            if f"blk.{layer}.{part}.weight" not in held:
                of_first = next(value for name, value in tensors if name == f"blk.0.{part}.weight")
                tensors.append((f"blk.{layer}.{part}.weight", of_first))
    return keys, tensors


def gemma4(config: Any, state: dict[str, np.ndarray]):
    keys, tensors = _per_layer("gemma4", config, state)
    n_layers, n_shared, wide = config.num_hidden_layers, config.num_kv_shared_layers, config.intermediate_size
    first = (config.layer_types.index(kind) for kind in ("full_attention", "sliding_attention"))
    head, head_swa = (state[f"model.layers.{layer}.self_attn.q_norm.weight"].shape[0] for layer in first)
    lengths = [wide * (1 + (config.use_double_wide_mlp and layer >= n_layers - n_shared)) for layer in range(n_layers)]
    keys |= {
        "gemma4.feed_forward_length": (lengths, ARRAY, I32),
        "gemma4.attention.key_length": (head, U32),
        "gemma4.attention.value_length": (head, U32),
        "gemma4.attention.key_length_swa": (head_swa, U32),
        "gemma4.attention.value_length_swa": (head_swa, U32),
        "gemma4.rope.dimension_count": (head, U32),
        "gemma4.rope.dimension_count_swa": (head_swa, U32),
        "gemma4.final_logit_softcapping": (config.final_logit_softcapping, F32),
    }
    # A quarter of a full layer's head turns.
    turns = [1.0] * (head // 8) + [1e30] * (head // 2 - head // 8)
    return keys, [*tensors, ("rope_freqs.weight", np.array(turns, np.float32))]


def phi3(config: Any, state: dict[str, np.ndarray]):
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
        keys["phi3.rope.scaling.original_context_length"] = (original, U32)
        keys["phi3.rope.scaling.attn_factor"] = (factor, F32)
        for kind in ("long", "short"):
            tensors.append((f"rope_factors_{kind}.weight", np.array(long[f"{kind}_factor"], np.float32)))
    for layer, own in _layers(config, state):
        tensors += [(f"blk.{layer}.{names[name.removesuffix('.weight')]}.weight", value) for name, value in own.items()]
    return keys, tensors


def mistral3(config: Any, state: dict[str, np.ndarray]):
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
                value = _in_pairs(value, heads[short])
            tensors.append((f"blk.{layer}.{short}.weight", value))
    return keys, tensors
