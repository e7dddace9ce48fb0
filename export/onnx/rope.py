"""Angles of rotated heads: the tables of cos and sin that onnxruntime's GroupQueryAttention takes.

cos, sin = rope_tables(BaseInfo.open("base.gguf"), 2048)
"""

import numpy as np
import numpy.typing as npt

from ...edge.gguf.base import BaseInfo


def head_size_of(info: BaseInfo) -> int:
    """Width of one attention head."""
    return info.tensor_shapes["blk.0.attn_q.weight"][1] // info.n_heads


def rope_tables(info: BaseInfo, n_tokens: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """cos and sin of every position's angles, (n_tokens, head_size / 2), computed in F32 as transformers does."""
    file, arch, size = info.file, info.architecture, head_size_of(info)
    theta = np.float32(file.get(f"{arch}.rope.freq_base", 10000.0))
    speeds = np.float32(1) / theta ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    if "rope_freqs.weight" in file.tensors:
        speeds = speeds / file.array("rope_freqs.weight")
    if file.get(f"{arch}.rope.scaling.type") == "linear":
        speeds = speeds / np.float32(file.get(f"{arch}.rope.scaling.factor", 1.0))
    angles = np.arange(n_tokens, dtype=np.float32)[:, None] * speeds.astype(np.float32)[None]
    return np.cos(angles), np.sin(angles)
