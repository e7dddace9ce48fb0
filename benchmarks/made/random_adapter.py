"""Random adapters of a base's own shapes, for measurements of time and memory: what they say means nothing.

write_random_adapter(BaseInfo.open("base.gguf"), Path("a.gguf"), rank=16, seed=1)
"""

from pathlib import Path

import numpy as np

from ...edge.gguf.adapter import ALPHA_KEY, FINGERPRINT_KEY, RANK_KEY, takes_lora
from ...edge.gguf.base import BaseInfo
from .gguf_out import finish


def write_random_adapter(
    base: BaseInfo, path: Path, *, rank: int = 16, seed: int = 0, size: float = 0.1, dtype: str = "f16"
) -> int:
    """Writes an adapter on all linear layers; returns its size in bytes.

    Args:
        dtype: "f16" or "q8_0"; as in our exports a matrix whose rows are no whole blocks of 32 stays F16.
        size: how far it moves the base's output, as a share of each layer's own scale, roughly.
    """
    import gguf

    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, base.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_string(FINGERPRINT_KEY, base.fingerprint)
    writer.add_float32(ALPHA_KEY, float(rank))
    writer.add_uint32(RANK_KEY, rank)
    for name, shape in base.tensor_shapes.items():
        if not takes_lora(base, name):
            continue
        n_in, n_out = shape
        down = random.standard_normal((rank, n_in), np.float32) / np.sqrt(n_in)
        up = random.standard_normal((n_out, rank), np.float32) * (size / np.sqrt(rank * n_in))
        for suffix, matrix in (("lora_a", down), ("lora_b", up)):
            kind = gguf.GGMLQuantizationType.F16
            if dtype == "q8_0" and matrix.shape[1] % 32 == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.{suffix}", gguf.quantize(matrix, kind), raw_dtype=kind)
    finish(writer)
    return path.stat().st_size
