"""Angles of rotated heads: the tables of cos and sin that onnxruntime's GroupQueryAttention takes.

cos, sin = rope_tables(BaseInfo.open("base.gguf"), 2048)
"""

import numpy as np
import numpy.typing as npt

from ...edge.gguf.base import BaseInfo
from ...edge.gguf.rope import LONGROPE, gguf_rope


def head_size_of(info: BaseInfo) -> int:
    """Width of one attention head."""
    return int(info.file.get(f"{info.architecture}.attention.key_length", info.n_embd // info.n_heads))


def computed_tokens(info: BaseInfo) -> int:
    """The longest context whose positions one table holds: beyond longrope's original one, earlier ones turn anew."""
    rope = gguf_rope(info.file)
    longest = info.n_ctx_train_tokens
    return min(longest, int(rope.fields["original_max_position_embeddings"])) if rope.kind == LONGROPE else longest


def rope_tables(
    info: BaseInfo, n_tokens: int, *, windowed: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """cos and sin of every position's angles, (n_tokens, turned numbers / 2), computed in F32 as transformers does.

    Args:
        windowed: those of layers that attend within a window.
    """
    rope = gguf_rope(info.file)
    speeds, factor = (rope.windowed if windowed else rope).speeds(head_size_of(info), info.n_ctx_train_tokens)
    angles = np.arange(n_tokens, dtype=np.float32)[:, None] * speeds[None]
    return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)
