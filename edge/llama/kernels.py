"""What llama.cpp's CPU backend does with stored weights on this CPU: which it copies into a faster layout.

    repacked_tensors(file, cpu_features())

As of its sources of 2026-10.
"""

import functools
import re
from collections.abc import Iterable
from typing import Final

from ..gguf.base import BaseInfo
from ..gguf.file import GgufFile, TensorInfo
from ..gguf.types import GgmlType

# Weights that ggml-cpu/repack.cpp copies into another layout: type -> (CPU features, divisor of the rows), any of them.
REPACKED: Final[dict[GgmlType, tuple[tuple[frozenset[str], int], ...]]] = {
    GgmlType.Q4_0: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    GgmlType.Q4_K: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 8)),
    GgmlType.IQ4_NL: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    GgmlType.MXFP4: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    GgmlType.Q2_K: ((frozenset({"AVX512"}), 8),),
    GgmlType.Q5_K: ((frozenset({"NEON", "DOTPROD"}), 8),),
    GgmlType.Q6_K: ((frozenset({"NEON", "DOTPROD"}), 8),),
    GgmlType.Q8_0: ((frozenset({"NEON", "DOTPROD"}), 4),),
}
# Of these, the types of which a prompt is computed faster from the stored layout, by ggml-cpu/tiled, on a CPU with this
# feature, and single tokens from the copies: 1.5 and 1.2 times. With AVX2 alone a prompt takes as long from either.
FASTER_AS_STORED: Final[dict[GgmlType, str]] = {GgmlType.Q4_K: "AVX512_VNNI"}


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the llama.cpp that is installed here uses of this CPU, such as {"AVX2", "FMA", "REPACK"}."""
    from .binding import lib

    text: str = lib().llama_print_system_info().decode()
    return frozenset(name for name, value in re.findall(r"(\w+) = (\d+)", text) if value != "0")


def repacked_tensors(file: GgufFile, features: Iterable[str]) -> list[TensorInfo]:
    """The tensors that llama.cpp copies into a faster layout on a CPU with these features, the head among them."""
    has = frozenset(features)

    def repacked(info: TensorInfo) -> bool:
        return any(needs <= has and info.shape[1] % divisor == 0 for needs, divisor in REPACKED.get(info.type, ()))

    head = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    return [
        info
        for name, info in file.tensors.items()
        # The embedding is looked up by rows and stays as it is; a tied head is a second tensor over it.
        if len(info.shape) == 2 and (name != "token_embd.weight" or head == name) and repacked(info)
    ]


def faster_as_stored(file: GgufFile, features: Iterable[str]) -> list[TensorInfo]:
    """Those of `repacked_tensors` that slow prompts down; not the head, which a prompt needs for one token."""
    has = frozenset(features)
    return [
        info
        for info in repacked_tensors(file, has)
        if FASTER_AS_STORED.get(info.type) in has and info.name not in ("output.weight", "token_embd.weight")
    ]


def copied_spans(base: BaseInfo) -> list[tuple[int, int]]:
    """First byte and the one behind the last of what repacking copies from and nothing else reads; for `Model.load`."""
    spans: list[tuple[int, int]] = []
    for info in repacked_tensors(base.file, cpu_features()):
        if info.name == "token_embd.weight":
            continue
        end = info.offset_bytes + info.size_bytes
        # Neighbours but for their alignment
        if spans and 0 <= info.offset_bytes - spans[-1][1] < base.file.alignment_bytes:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((info.offset_bytes, end))
    return spans
