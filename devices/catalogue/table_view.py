"""A published configuration as the tensor table that its GGUF would have, for the memory plan of `edge`.

view = table_of(find_shape("llama-3.2-1b"), "q4_0")
plan_memory(view, n_ctx_tokens=2048)
"""

import math
from dataclasses import dataclass
from typing import Any, cast

from ...edge.gguf.file import GgufFile, TensorInfo
from ...edge.gguf.types import GgmlType
from .quant_mix import types_of
from .shapes import Matrix, ModelShape
from .workload import size_bytes

# Merges of the tokenizers, by size of the vocabulary: Llama 3's, from its tokenizer.json; others have about as many as
# tokens.
_MERGES = {128256: 280147}


@dataclass(frozen=True)
class _Length:
    """Stands for an array of a GGUF's metadata whose values nobody asks for."""

    n_values: int


class _Table:
    def __init__(self, tensors: dict[str, TensorInfo], metadata: dict[str, _Length], values: dict[str, Any]) -> None:
        self.tensors = tensors
        self.metadata = metadata
        self._values = values

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)


def table_of(shape: ModelShape, label: str) -> GgufFile:
    """The table of `shape` quantised to a label of `quant_mix.LABELS`; fused matrices are shown apart."""
    tensors: dict[str, TensorInfo] = {}
    at = 1 << 20

    def add(name: str, dims: tuple[int, ...], kind: GgmlType) -> None:
        nonlocal at
        n = math.prod(dims)
        tensors[name] = TensorInfo(name, dims, kind, at, size_bytes(n, kind))
        at += tensors[name].size_bytes

    for matrix, kind in zip(shape.matrices(), types_of(shape, label), strict=True):
        if matrix.layer is None:
            states = (matrix.n_out // matrix.n_in, matrix.n_in) if matrix.name.startswith("altup_") else (matrix.n_out,)
            add(f"{matrix.name}.weight", (matrix.n_in, *reversed(states)), kind)
            continue
        # Layers with attention come first here: the plan takes the first one's sizes for all.
        state = matrix.layer < shape.n_state_layers
        layer = (matrix.layer - shape.n_state_layers) % shape.n_layers
        for name, n_out in [(matrix.name, matrix.n_out)] if state else _apart(matrix, shape):
            add(f"blk.{layer}.{name}.weight", (matrix.n_in, n_out), kind)
    for layer in range(shape.n_layers):
        norm = "attn_norm" if layer < shape.n_attention_layers else "conv_norm"
        add(f"blk.{layer}.{norm}.weight", (shape.n_embd,), GgmlType.F32)
        add(f"blk.{layer}.ffn_norm.weight", (shape.n_embd,), GgmlType.F32)
    add("output_norm.weight", (shape.n_embd,), GgmlType.F32)
    if "blk.0.ffn_gate.weight" not in tensors:
        up = tensors["blk.0.ffn_up.weight"]
        tensors["blk.0.ffn_gate.weight"] = TensorInfo("blk.0.ffn_gate.weight", up.shape, up.type, at, 0)
    metadata = {
        "tokenizer.ggml.tokens": _Length(shape.n_vocab),
        "tokenizer.ggml.merges": _Length(_MERGES.get(shape.n_vocab, shape.n_vocab)),
    }
    arch = shape.architecture
    values: dict[str, Any] = {"general.architecture": arch, f"{arch}.attention.head_count": shape.n_heads}
    if shape.n_conv_layers:
        values[f"{arch}.shortconv.l_cache"] = 3
    if shape.n_linear_layers:
        values[f"{arch}.ssm.conv_kernel"] = shape.linear_conv
        values[f"{arch}.ssm.inner_size"] = shape.n_linear_values * shape.linear_head_dim
        values[f"{arch}.ssm.group_count"] = shape.n_linear_keys
        values[f"{arch}.ssm.state_size"] = shape.linear_head_dim
    if shape.n_mamba_layers:
        values[f"{arch}.ssm.conv_kernel"] = shape.linear_conv
        values[f"{arch}.ssm.inner_size"] = shape.mamba_inner
        values[f"{arch}.ssm.group_count"] = 1
        values[f"{arch}.ssm.state_size"] = shape.mamba_state
    if shape.n_shared_layers:
        values[f"{arch}.attention.shared_kv_layers"] = shape.n_shared_layers
    if shape.full_every:
        pattern = [shape.windowed(layer) for layer in range(shape.n_layers)]
        values[f"{arch}.attention.sliding_window_pattern"] = pattern
    if shape.window_tokens:
        values[f"{arch}.attention.sliding_window"] = shape.window_tokens
    return cast(GgufFile, _Table(tensors, metadata, values))


def _apart(matrix: Matrix, shape: ModelShape) -> list[tuple[str, int]]:
    kv = shape.n_kv_heads * shape.head_dim
    if matrix.name == "attn_qkv":
        return [("attn_q", shape.n_heads * shape.head_dim), ("attn_k", kv), ("attn_v", kv)]
    if shape.fused and matrix.name == "ffn_up":
        return [("ffn_gate", shape.n_ff), ("ffn_up", shape.n_ff)]
    return [(matrix.name, matrix.n_out)]
