"""One sequence on onnxruntime, with the book of what its KV cache holds: the twin of `prefix.cache.Lane`.

Prompts are cut into the same chunks, and a chunk is kept only under the adapters that computed it (`prefix/chunks.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from ..llama.sampling import Sampler, check_numbers
from ..prefix.chunks import AdapterState, KvRecord, Section, chunks_of, run_through
from .adapter import Array
from .engine import OnnxEngine

# Numbers by LoRA input, for the adapters and scales of each state that a section may name.
Pairs = dict[tuple[tuple[str, float], ...], Mapping[str, Array]]


class OnnxLane:
    """Computes prompts and tokens, keeping of the cache what is the same bit for bit.

    Args:
        pairs: see below, where several lanes have them in common.
        row: the engine's sequence.
        fast: `begin` keeps more, whatever pieces it was computed in.

    Attributes:
        record: what is in the KV cache.
        turn: number of prompts begun; tells an answer that was left behind that the cache is no longer its own.
        pairs: what each adapter state binds; the base's, the empty one, binds nothing and is not in it.
        n_drafted_tokens, n_accepted_tokens: none are guessed here.
    """

    n_drafted_tokens = 0
    n_accepted_tokens = 0

    def __init__(self, engine: OnnxEngine, pairs: Pairs | None = None, row: int = 0, fast: bool = False) -> None:
        self.engine = engine
        self._row = row
        self._fast = fast
        self.record = KvRecord()
        self.turn = 0
        self.pairs: Pairs = {} if pairs is None else pairs

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache; the next one's position."""
        return len(self.record.tokens)

    def begin(self, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt; returns how many of its tokens were kept from before."""
        self.turn += 1
        return run_through(self.fill(prompt, sections, self._fast))

    def fill(self, prompt: Sequence[int], sections: Sequence[Section], fast: bool = False) -> Iterator[int]:
        """Computes a prompt chunk by chunk; yields how many of its tokens are there, first what was kept.

        Args:
            fast: keep whatever was computed of these tokens under these adapters, in whatever pieces.
        """
        chunks = chunks_of(sections)
        kept = self.record.reusable(prompt, chunks)
        if fast:
            kept = max(kept, self.record.common(prompt, sections))
        self.record.cut(kept)
        yield kept
        for end, state in chunks:
            if end > kept:
                self._decode(prompt[self.n_tokens : end], state)
                if end == len(prompt):
                    try:
                        check_numbers(self.engine.row)
                    except EngineError:
                        self.spoiled()
                        raise
                yield end

    def step(self, token_id: int) -> None:
        """Computes one more token."""
        self._decode((token_id,), self.record.chunks[-1][1])

    def look_ahead(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each of some tokens that could come next, (n_tokens, n_vocab); they are forgotten again."""
        # The record stays as it is, so that whatever is computed next stands where these did.
        self._compute(token_ids, self.record.chunks[-1][1], all_rows=True)
        assert self.engine.rows is not None
        return self.engine.rows

    def _decode(self, token_ids: Sequence[int], state: AdapterState) -> None:
        self._compute(token_ids, state)
        self.record.add(token_ids, state)

    def _compute(self, token_ids: Sequence[int], state: AdapterState, *, all_rows: bool = False) -> None:
        bound = self.numbers(state)
        self.engine.decode(token_ids, self.n_tokens, **bound, all_rows=all_rows, row=self._row)

    def numbers(self, state: AdapterState) -> dict[str, Any]:
        """What the engine is to bind under an adapter state: `key` and `pairs`, nothing for the base alone."""
        adapters = state.adapters
        return {"key": adapters, "pairs": self.pairs[adapters]} if adapters else {}

    def sample(self, sampler: Sampler) -> int:
        """Chooses the next token from the last output; errors as `Sampler.sample`."""
        try:
            return sampler.sample_row(self.engine.row)
        except EngineError:
            self.spoiled()
            raise

    def spoiled(self) -> None:
        """Forgets everything: the cache may hold what is no number, and NaN behind a mask is NaN."""
        self.record.cut(0)
        self.engine.zero(self._row)

    def rest(self, turn: int) -> None:
        """Adapters here stay as long as the session: nothing to do."""

    def flush(self) -> None:
        """Nothing of it is kept on disk."""
