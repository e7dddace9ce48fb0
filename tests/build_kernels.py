"""What the tests of our kernels share."""

import platform

import gguf
import numpy as np
from gguf import quants
from slm_edge.benchmarks.made.gguf_out import copy_keys, finish
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.prompt_kernels.build import VARIANTS

# The variants that could be built for this machine
HERE = [*VARIANTS.get({"arm64": "aarch64"}.get(platform.machine(), platform.machine()), ())]


def quantised(path, like, type):
    """Writes the base `like` with all matrices in one type."""
    source = GgufFile.open(like)
    writer = gguf.GGUFWriter(path, source.get("general.architecture"))
    copy_keys(writer, source)
    for name, info in source.tensors.items():
        values = source.array(name)
        if len(info.shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quants.quantize(np.asarray(values, np.float32), type), raw_dtype=type)
    finish(writer)
    return path
