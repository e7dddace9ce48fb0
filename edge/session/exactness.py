"""Whether llama.cpp computes several tokens at once to the same bits as one by one: what its kernels say beforehand.

    exactness = Exactness(base, adapters, repack=True, flash_attention="auto")
    exactness.possible(["code"])

A product with one column takes a row by row kernel; with more, llama.cpp's CPU backend (source of 2026-10) takes

- another one for weights in the CPU's faster layout, from 4 columns on;
- tiled ones for F32, F16 and BF16 matrices (llamafile's) where the length of the rows is a whole number of vectors: of
  4 to 16 values, so 4 is taken here. An adapter's lora_b is F16 where the rank is no multiple of 32, and its rows are
  as long as the rank: 14 is exact, 16 is not;
- on x86, from `TILE_ROWS` columns on, tiled ones for K-quants and most of the i-quants, such as a head in Q6_K: fewer
  tokens are computed at once there;
- our own for the simple types, where built: for Q4_1 and Q5_1 from `llama.binding.LEAST_OF_PAIRS` columns on, so fewer
  tokens are computed at once there, for others from `LEAST_COLUMNS` on, more than guesses make;
- for other quantised matrices kernels that add up in the same order: measured equal over 96 tokens, all logits, at 4
  and 8.

A difference shows rarely at once, because the next product quantises what it gets: with rank 16 the first 23 tokens
were equal, all after them were not. A trial of a few tokens proves too little, so these rules decide first.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Final

from ..gguf.base import BaseInfo
from ..gguf.file import GgufFile
from ..gguf.types import GgmlType
from ..llama.binding import LEAST_OF_PAIRS, prompt_kernels
from ..llama.model import cpu_features, repacked_tensors
from ..options import FlashAttention
from ..pack.pack import PackedAdapter

FLOATS: Final = (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
VECTOR_VALUES: Final = 4
# From so many columns on ggml-cpu/tiled takes products with `TILED` matrices as they are stored (x86 with AVX alone).
TILE_ROWS: Final = 8
PAIRS: Final = frozenset({GgmlType.Q4_1, GgmlType.Q5_1})
TILED: Final = frozenset(
    {
        *(GgmlType.Q2_K, GgmlType.Q3_K, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K),
        *(GgmlType.IQ1_S, GgmlType.IQ1_M, GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S),
        *(GgmlType.IQ3_XXS, GgmlType.IQ3_S, GgmlType.IQ4_XS),
    }
)


def tiled_products(file: GgufFile) -> list[str]:
    """Names of the matrices whose products with several columns take a tiled kernel for floats."""
    tied = "output.weight" not in file.tensors
    return [
        name
        for name, info in file.tensors.items()
        if info.type in FLOATS
        and len(info.shape) == 2
        and info.shape[0] % VECTOR_VALUES == 0
        # Rows of an embedding are looked up, unless it is the head too.
        and (tied or name != "token_embd.weight")
    ]


class Exactness:
    """What is known of a session's base and adapters; each file is looked at when it is first asked about.

    Args:
        adapters: by name.
        repack, flash_attention: of the session.
    """

    def __init__(
        self,
        base: BaseInfo,
        adapters: Mapping[str, PackedAdapter],
        *,
        repack: bool,
        flash_attention: FlashAttention,
    ) -> None:
        self._base = base
        self._adapters = adapters
        self._repack = repack
        self._flash_attention = flash_attention
        self._known: dict[str | None, bool] = {}

    def possible(self, names: Iterable[str]) -> bool:
        """Whether nothing speaks against equal bits with these adapters over the base.

        Raises:
            SlmEdgeError: as `GgufFile.open` on an adapter.
        """
        return self._of(None) and all(self._of(name) for name in names)

    @functools.cached_property
    def most_at_once(self) -> int | None:
        """The most tokens at once that the base's kernels treat as they do a few; None: any number."""
        types = {info.type for info in self._base.file.tensors.values() if len(info.shape) == 2}
        if types & PAIRS and prompt_kernels().name:
            return LEAST_OF_PAIRS - 1
        return TILE_ROWS - 1 if types & TILED and "AVX" in cpu_features() else None

    def _of(self, name: str | None) -> bool:
        if name not in self._known:
            if name is None:
                copies = repacked_tensors(self._base.file, cpu_features()) if self._repack else []
                fits = not copies and not tiled_products(self._base.file) and self._flash_attention != "off"
            else:
                fits = not tiled_products(GgufFile.open(self._adapters[name].path))
            self._known[name] = fits
        return self._known[name]
