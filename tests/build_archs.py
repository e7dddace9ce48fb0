"""Tiny random models of architectures that have no row in the table of families, as the gguf package writes them.

    base = arch_base(tmp_path / "base.gguf", "olmoe")

Names and shapes: what llama.cpp's loader of each architecture asks for (its src/models, 2026-10).
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from build_gguf import CHATML, vocabulary, write_gguf
from build_other_tensors import ARRAY, F32, I32, TEXT, U32

N_EMBD, N_Q, N_K, N_FF, HEAD, N_EXPERTS, N_CTX_TOKENS = 64, 64, 32, 96, 16, 4, 512
QKV = {"attn_q": (N_EMBD, N_Q), "attn_k": (N_EMBD, N_K), "attn_v": (N_EMBD, N_K), "attn_output": (N_Q, N_EMBD)}
FUSED = {"attn_qkv": (N_EMBD, N_Q + 2 * N_K), "attn_output": (N_Q, N_EMBD)}
GATED = {"ffn_gate": (N_EMBD, N_FF), "ffn_up": (N_EMBD, N_FF), "ffn_down": (N_FF, N_EMBD)}
PLAIN = {"ffn_up": (N_EMBD, N_FF), "ffn_down": (N_FF, N_EMBD)}
EXPERTS = {
    "ffn_gate_inp": (N_EMBD, N_EXPERTS),
    "ffn_gate_exps": (N_EMBD, N_FF, N_EXPERTS),
    "ffn_up_exps": (N_EMBD, N_FF, N_EXPERTS),
    "ffn_down_exps": (N_FF, N_EMBD, N_EXPERTS),
}
NORMS = {"attn_norm": (N_EMBD,), "ffn_norm": (N_EMBD,)}
POST = {"post_attention_norm": (N_EMBD,), "post_ffw_norm": (N_EMBD,)}
# OLMoE: as many heads of keys as of queries, normed together
ALL_HEADS = {"attn_k": (N_EMBD, N_Q), "attn_v": (N_EMBD, N_Q), "attn_q_norm": (N_EMBD,), "attn_k_norm": (N_EMBD,)}
SHARED = {f"ffn_{name}_shexp": GATED[f"ffn_{name}"] for name in ("gate", "up", "down")}
MOE_KEYS = {"expert_count": (N_EXPERTS, U32), "expert_used_count": (2, U32), "expert_feed_forward_length": (N_FF, U32)}
WINDOW_KEYS = {"attention.sliding_window": (24, U32)}
# Architecture -> weights of a block; biases: all of the block's, of its norms alone, or none; more keys
ARCHS: dict[str, tuple[dict[str, tuple[int, ...]], str, dict[str, Any]]] = {
    "internlm2": ({**NORMS, **QKV, **GATED}, "", {}),
    "gemma": ({**NORMS, **QKV, **GATED}, "", {}),
    "gemma2": ({**NORMS, **QKV, **GATED, **POST}, "", WINDOW_KEYS),
    "glm4": ({**NORMS, **QKV, **POST, "ffn_up": (N_EMBD, 2 * N_FF), "ffn_down": (N_FF, N_EMBD)}, "", {}),
    "arcee": ({**NORMS, **QKV, **PLAIN}, "", {}),
    "olmo": ({**QKV, **GATED}, "", {}),
    "stablelm": ({**NORMS, **QKV, **GATED}, "norms", {}),
    "starcoder2": ({**NORMS, **QKV, **PLAIN}, "all", {}),
    "nemotron": ({**NORMS, **QKV, **PLAIN}, "norms", {}),
    "phi2": ({"attn_norm": (N_EMBD,), **QKV, **PLAIN}, "all", {}),
    "gpt2": ({**NORMS, **FUSED, **PLAIN}, "all", {}),
    "falcon": ({"attn_norm": (N_EMBD,), **FUSED, **PLAIN}, "norms", {}),
    "cohere2": ({"attn_norm": (N_EMBD,), **QKV, **GATED}, "", WINDOW_KEYS | {"logit_scale": (0.5, F32)}),
    # Mixtral
    "llama": ({**NORMS, **QKV, **EXPERTS}, "", MOE_KEYS),
    "qwen3moe": (
        {**NORMS, **QKV, **EXPERTS, "attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)},
        "",
        MOE_KEYS,
    ),
    "olmoe": ({**NORMS, **QKV, **EXPERTS, **ALL_HEADS}, "", MOE_KEYS | {"attention.head_count_kv": (4, U32)}),
    "granitemoe": (
        {**NORMS, **QKV, **EXPERTS, **SHARED},
        "",
        MOE_KEYS | {"logit_scale": (2.0, F32), "expert_shared_feed_forward_length": (N_FF, U32)},
    ),
    "gpt-oss": (
        {"attn_norm": (N_EMBD,), "post_attention_norm": (N_EMBD,), **QKV, **EXPERTS, "attn_sinks": (4,)},
        "experts",
        MOE_KEYS | WINDOW_KEYS,
    ),
}
TIED = ("gemma", "gemma2", "cohere2")
MOES = [name for name, (block, _, _) in ARCHS.items() if "ffn_gate_exps" in block]


def arch_base(path: Path, architecture: str, *, seed: int = 0, n_layers: int = 2) -> Path:
    """Writes a random F32 base of one of `ARCHS`."""
    rng = np.random.default_rng(seed)
    block, biases, more = ARCHS[architecture]
    tokens, types, merges = vocabulary()
    keys: dict[str, tuple[Any, ...]] = {
        "general.type": ("model", TEXT),
        "general.name": (f"tiny {architecture}", TEXT),
        "general.file_type": (0, U32),
        "tokenizer.ggml.model": ("gpt2", TEXT),
        "tokenizer.ggml.pre": ("smollm", TEXT),
        "tokenizer.ggml.tokens": (tokens, ARRAY, TEXT),
        "tokenizer.ggml.token_type": (types, ARRAY, I32),
        "tokenizer.ggml.merges": (merges, ARRAY, TEXT),
        "tokenizer.ggml.bos_token_id": (0, U32),
        "tokenizer.ggml.eos_token_id": (2, U32),
        "tokenizer.chat_template": (CHATML, TEXT),
    }
    of_architecture: dict[str, tuple[Any, ...]] = {
        "block_count": (n_layers, U32),
        "context_length": (N_CTX_TOKENS, U32),
        "embedding_length": (N_EMBD, U32),
        "feed_forward_length": (N_FF, U32),
        "attention.head_count": (N_Q // HEAD, U32),
        "attention.head_count_kv": (N_K // HEAD, U32),
        "rope.dimension_count": (HEAD, U32),
        "attention.layer_norm_rms_epsilon": (1e-5, F32),
        "attention.layer_norm_epsilon": (1e-5, F32),
        **more,
    }
    keys |= {f"{architecture}.{name}": value for name, value in of_architecture.items()}
    # Where a bias stands only because all of its kind do
    with_bias = {
        "": lambda name: False,
        "norms": lambda name: name.endswith("_norm"),
        "all": lambda name: True,
        "experts": lambda name: name.startswith(("ffn_", "attn_output")),
    }[biases]

    def values(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        return (rng.standard_normal(shape[::-1]) * 1.5 / np.sqrt(shape[0])).astype(np.float32)

    tensors = [("token_embd.weight", values((N_EMBD, len(tokens))))]
    if architecture not in TIED:
        tensors.append(("output.weight", values((N_EMBD, len(tokens)))))
    if architecture not in ("olmo",):
        tensors.append(("output_norm.weight", values((N_EMBD,))))
        if biases in ("norms", "all"):
            tensors.append(("output_norm.bias", values((N_EMBD,)) - 1))
    if architecture == "phi2":
        tensors.append(("output.bias", values((len(tokens),)) - 1))
    if architecture == "gpt2":
        tensors.append(("position_embd.weight", values((N_EMBD, N_CTX_TOKENS))))
    for layer in range(n_layers):
        for name, shape in block.items():
            tensors.append((f"blk.{layer}.{name}.weight", values(shape)))
            if with_bias(name):
                # Of experts each has one.
                tensors.append((f"blk.{layer}.{name}.bias", 0.1 * values(shape[1:] if len(shape) > 1 else shape)))
    return write_gguf(path, architecture, keys, tensors)


def parts_of(path: Path) -> tuple[dict[str, tuple[Any, ...]], list[tuple[str, np.ndarray]]]:
    """Keys and tensors of a file for `write_gguf`, to be changed."""
    reader = gguf.GGUFReader(path)
    own = {name: field for name, field in reader.fields.items() if not name.startswith(("GGUF.", "general.arch"))}
    keys = {name: (field.contents(), *field.types[:2]) for name, field in own.items()}
    return keys, [(tensor.name, tensor.data) for tensor in reader.tensors]


def arch_adapter(path: Path, base: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """Writes a random F32 adapter on all matrices of the blocks but the routers, of experts on each."""
    rng = np.random.default_rng(seed)
    reader = gguf.GGUFReader(base)
    architecture = reader.fields["general.architecture"].contents()
    tensors = []
    for tensor in reader.tensors:
        part = tensor.name.split(".")[-2]
        if not tensor.name.startswith("blk.") or not tensor.name.endswith(".weight") or len(tensor.shape) < 2:
            continue
        if part == "ffn_gate_inp":
            continue
        n_in, n_out, *experts = (int(n) for n in tensor.shape)
        down = rng.standard_normal((*experts, rank, n_in)) / np.sqrt(n_in)
        up = rng.standard_normal((*experts, n_out, rank)) / np.sqrt(rank)
        pair = {"lora_a": down.astype(np.float32), "lora_b": up.astype(np.float32)}
        tensors += [(f"{tensor.name}.{half}", values) for half, values in pair.items()]
    keys = {
        "general.type": ("adapter", TEXT),
        "adapter.type": ("lora", TEXT),
        "general.name": ("tiny", TEXT),
        "adapter.lora.alpha": (float(2 * rank), F32),
    }
    return write_gguf(path, architecture, keys, tensors)
