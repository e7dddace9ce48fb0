"""One sequence in one context, with the book of what its KV cache holds.

lane = Lane(context, cache)
lane.begin(prompt_ids, [Section(len(prompt_ids), state, adapters)])
lane.step(token_id)
"""

from collections.abc import Sequence

from ..errors import EngineError
from ..llama.context import Context
from ..llama.sampling import Sampler
from ..prefix.cache import PrefixCache
from ..prefix.chunks import KvRecord, Section


class Lane:
    """Computes prompts and tokens, keeping of the cache what is the same bit for bit.

    Args:
        fast: keep more, whatever pieces it was computed in.

    Attributes:
        context: decodes sequence 0 for this lane alone.
        record: what is in its KV cache.
        turn: number of prompts begun; tells an answer that was left behind that the cache is no longer its own.
        busy: whether an answer is being made, so that its adapters must stay.
        n_drafted_tokens, n_accepted_tokens: none are guessed here; `speculation.DraftingLane` does.
    """

    n_drafted_tokens = 0
    n_accepted_tokens = 0

    def __init__(self, context: Context, cache: PrefixCache, fast: bool = False) -> None:
        self.context = context
        self.record = KvRecord()
        self.turn = 0
        self.busy = False
        self._cache = cache
        self._fast = fast

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache; the next one's position."""
        return len(self.record.tokens)

    def begin(self, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt; the last output is that of its last token.

        Args:
            sections: parts of the prompt and the adapters of each; the last ends with the prompt, and its adapters
                are those of the tokens to come.

        Returns:
            How many tokens of the prompt were kept from before.

        Raises:
            EngineError: the output is no number.
        """
        self.turn += 1
        self.busy = True
        return self._cache.prefill(self.context, self.record, prompt, sections, fast=self._fast)

    def step(self, token_id: int) -> None:
        """Computes one more token."""
        self.context.decode_one(token_id, self.n_tokens)
        self.record.add_answer(token_id)

    def sample(self, sampler: Sampler) -> int:
        """Chooses the next token from the last output; errors as `Sampler.sample`."""
        try:
            return sampler.sample(self.context)
        except EngineError:
            self.spoiled()
            raise

    def spoiled(self) -> None:
        """Forgets everything: the cache may hold what is no number."""
        if self.context.handle:
            self.record.cut(0)
            self.context.remove(0, 0)
            self.context.zero_rest()

    def rest(self, turn: int) -> None:
        """The answer that began as `turn` needs nothing more; its adapters may go."""
        if turn == self.turn:
            self.busy = False

    def flush(self) -> None:
        """Writes to disk what waits for it; nobody is waiting for an answer."""
        self._cache.flush()
