"""Angles of rotated heads: the tables of cos and sin that onnxruntime's GroupQueryAttention takes.

cos, sin = rope_tables(BaseInfo.open("base.gguf"), 2048)
"""

import numpy as np
import numpy.typing as npt

from ...edge.gguf.base import BaseInfo
from ...edge.gguf.rope import gguf_rope


def head_size_of(info: BaseInfo) -> int:
    """Width of one attention head."""
    return info.tensor_shapes["blk.0.attn_q.weight"][1] // info.n_heads


def rope_tables(
    info: BaseInfo, n_tokens: int, *, windowed: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """cos and sin of every position's angles, (n_tokens, head_size / 2), computed in F32 as transformers does.

    Args:
        windowed: those of layers that attend within a window.
    """
    rope = gguf_rope(info.file)
    speeds, factor = (rope.windowed if windowed else rope).speeds(head_size_of(info), info.n_ctx_train_tokens)
    assert factor == 1
    angles = np.arange(n_tokens, dtype=np.float32)[:, None] * speeds[None]
    return np.cos(angles), np.sin(angles)
