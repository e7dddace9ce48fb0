"""Several answers at once on llama.cpp: what `batcher.Batcher` computes them in, one sequence of a context each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..llama.context import Context
from ..llama.model import Adapter
from ..llama.sampling import Sampler
from ..prefix.cache import PrefixCache
from ..prefix.chunks import KvRecord, Section


class LlamaRows:
    """A context made for this, and closed with it.

    Args:
        cache: restores and keeps the beginnings of prompts.
    """

    def __init__(self, context: Context, cache: PrefixCache) -> None:
        self._context = context
        self._cache = cache

    @property
    def adapters(self) -> list[Adapter]:
        """Those with which the last prompt was computed."""
        return self._context.adapters

    def prefill(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt in an empty sequence; how many of its tokens were kept from before."""
        return self._cache.prefill(self._context, KvRecord(), prompt, sections, sequence=sequence, keep=True)

    def step(self, token_ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Computes one token for each of several sequences."""
        self._context.decode_step(token_ids, positions, sequences)

    def sample(self, sampler: Sampler, i: int) -> int:
        """Chooses a token from the logits of the i-th of the last step; -1: from those of the last prompt."""
        return sampler.sample(self._context, i)

    def logits(self, i: int) -> npt.NDArray[np.float32]:
        """What `sample` chooses from, shape (n_vocab,): valid until the next computation."""
        return self._context.logits_view(i)

    def release(self, sequence: int) -> None:
        """Empties a sequence."""
        # A session that was closed has freed its contexts.
        if self._context.handle:
            self._context.remove(sequence, 0)

    def flush(self) -> None:
        """Nobody waits for an answer: beginnings go to disk."""
        self._cache.flush()

    def close(self) -> None:
        """Frees the context."""
        self._context.close()
