"""GGUF files of random blocks in the shapes of real models: what memory and time depend on, without the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.gguf.types import GgmlType


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, as in the published config.json of the model."""

    n_layers: int
    width: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    n_vocab: int
    rope_theta: float


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, 100000.0),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, 500000.0),
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256, 500000.0),
    "tiny": Shape(2, 256, 512, 4, 2, 64, 384, 10000.0),
}
TYPES = {
    "q4_0": GgmlType.Q4_0,
    "q4_1": GgmlType.Q4_1,
    "q8_0": GgmlType.Q8_0,
    "q4_k": GgmlType.Q4_K,
    "q6_k": GgmlType.Q6_K,
}
# Where a block's f16 scales lie, in bytes.
_SCALES_AT = {
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q6_K: (208,),
}
_SCALE = {
    GgmlType.Q4_0: 4e-3,
    GgmlType.Q4_1: 1e-3,
    GgmlType.Q8_0: 2.5e-4,
    GgmlType.Q4_K: 1e-4,
    GgmlType.Q6_K: 1e-5,
}


def random_blocks(
    rng: np.random.Generator, n_rows: int, n_in: int, kind: GgmlType, gain: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Random blocks with small scales, (n_rows, row_bytes)."""
    block_values, block_bytes = kind.block
    blocks = rng.integers(0, 256, (n_rows * n_in // block_values, block_bytes), np.uint8)
    scale = np.frombuffer(np.float16(_SCALE[kind] * gain).tobytes(), np.uint8)
    for at in _SCALES_AT[kind]:
        blocks[:, at : at + 2] = scale
    return blocks.reshape(n_rows, -1)


def write_shape(path: Path, shape: Shape, kind: GgmlType, seed: int = 0) -> Path:
    """Writes a Llama with tied embeddings, its matrices all of one type, one tensor at a time. It has no tokenizer."""
    import gguf

    kv_width = shape.n_kv_heads * shape.head_size
    q_width = shape.n_heads * shape.head_size
    matrices = {
        "attn_q": (q_width, shape.width),
        "attn_k": (kv_width, shape.width),
        "attn_v": (kv_width, shape.width),
        "attn_output": (shape.width, q_width),
        "ffn_gate": (shape.n_ff, shape.width),
        "ffn_up": (shape.n_ff, shape.width),
        "ffn_down": (shape.width, shape.n_ff),
    }
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (shape.n_vocab, shape.width))]
    for layer in range(shape.n_layers):
        tensors += [(f"blk.{layer}.{name}.weight", (shape.width,)) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", sizes) for name, sizes in matrices.items()]
    tensors.append(("output_norm.weight", (shape.width,)))
    block_values, block_bytes = kind.block
    writer: Any = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("block_count", shape.n_layers),
        ("context_length", 8192),
        ("embedding_length", shape.width),
        ("feed_forward_length", shape.n_ff),
        ("attention.head_count", shape.n_heads),
        ("attention.head_count_kv", shape.n_kv_heads),
        ("attention.key_length", shape.head_size),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", shape.rope_theta)
    raw = gguf.GGMLQuantizationType(int(kind))
    for name, sizes in tensors:
        if len(sizes) == 1:
            writer.add_tensor_info(name, sizes, np.dtype(np.float32), sizes[0] * 4)
        else:
            row_bytes = sizes[1] // block_values * block_bytes
            shape_bytes = (sizes[0], row_bytes)
            writer.add_tensor_info(name, shape_bytes, np.dtype(np.uint8), sizes[0] * row_bytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for _, sizes in tensors:
        if len(sizes) == 1:
            writer.write_tensor_data(np.ones(sizes, np.float32))
        else:
            writer.write_tensor_data(random_blocks(rng, sizes[0], sizes[1], kind))
    writer.close()
    return path
