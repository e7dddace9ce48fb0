"""Writes checkpoints of families without a row of their own as GGUF: an independent, plain converter for tests.

base = other_base(tmp_path, "lfm2")          # folder / "hf", folder / "base.gguf"
"""

import json
import re
from pathlib import Path
from typing import Any

import build_other_tensors as writers
import pytest
import torch
import transformers
from build_gguf import write_gguf
from build_hf import CHATML, SPECIALS, tiny_tokenizer
from build_other_tensors import ARRAY, F32, I32, TEXT, U32

COMMON = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
COMMON |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.15}
GRANITE4 = {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 128,
    "intermediate_size": 128,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
    "logits_scaling": 0.5,
}
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
    "granitehybrid": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        GRANITE4
        | {
            "num_hidden_layers": 4,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    # Granite 4 with attention alone
    "granite": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        GRANITE4 | {"num_hidden_layers": 2, "layer_types": ["attention"] * 2, "position_embedding_type": "rope"},
    ),
    "gemma3n": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        # llama.cpp has the first 20 layers keep keys and values, and per-layer inputs of 256 values.
        {
            "num_hidden_layers": 22,
            "num_kv_shared_layers": 2,
            "intermediate_size": 128,
            "hidden_size_per_layer_input": 256,
            "head_dim": 16,
            "sliding_window": 24,
            "vocab_size_per_layer_input": 384,
        },
    ),
    "gemma4": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 2,
            "layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention", "full_attention"],
            "intermediate_size": 128,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 32,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 24,
            "final_logit_softcapping": 30.0,
            "vocab_size_per_layer_input": 384,
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
    if any("block_sparse_moe" in name for name, _ in model.named_parameters()):
        pytest.skip(f"transformers {transformers.__version__} has no {class_name} without experts")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
                # Else what ggml rounds in GELU grows over the layers, since the norm behind brings it up.
                if architecture in ("gemma3n", "gemma4") and re.search("post_(feedforward|per_layer)", name):
                    weight.mul_(0.1)
            elif name.endswith("_scale"):
                weight.copy_(torch.rand_like(weight) + 0.5)
        for name, value in model.named_buffers():
            if name.endswith("layer_scalar"):
                value.fill_(0.8)
    hf = folder / "hf"
    model.save_pretrained(hf)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIALS[0], eos_token=SPECIALS[2], pad_token=SPECIALS[0]
    )
    wrapped.save_pretrained(hf)
    (hf / "chat_template.jinja").write_text(CHATML)
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    write = {
        "lfm2": writers.lfm2,
        "qwen35": writers.qwen35,
        "granitehybrid": writers.granite4,
        "granite": writers.granite4,
        "gemma3n": writers.gemma3n,
        "gemma4": writers.gemma4,
        "phi3": writers.phi3,
        "mistral3": writers.mistral3,
    }[architecture]
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
    # Gemma 4 has two lengths of heads, which its own keys say.
    head = (
        16 if arch == "gemma4" else getattr(config, "head_dim", None)
    ) or config.hidden_size // config.num_attention_heads
    wide = config.intermediate_size[0] if isinstance(config.intermediate_size, list) else config.intermediate_size
    return {
        "general.type": ("model", TEXT),
        "general.name": (f"tiny {arch.replace('phi3', 'fused')}", TEXT),
        "general.file_type": (0, U32),
        f"{arch}.block_count": (config.num_hidden_layers, U32),
        f"{arch}.context_length": (config.max_position_embeddings, U32),
        f"{arch}.embedding_length": (config.hidden_size, U32),
        f"{arch}.feed_forward_length": (wide, U32),
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
