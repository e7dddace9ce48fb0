"""One sequence in one context, with the book of what its KV cache holds.

lane = Lane(context)
lane.begin(prompt_ids, AdapterState(sha256, 1.0), [(adapter, 1.0)])
lane.step(token_id)
"""

from collections.abc import Sequence

from .engine import Adapter, Context
from .prefix import AdapterState, KvRecord, chunk_ends


class Lane:
    """Computes prompts and tokens, keeping of the cache what is the same bit for bit, and nothing else.

    Attributes:
        context: decodes sequence 0 for this lane alone.
        record: what is in its KV cache. It is changed before the cache loses and after it gains, so that it never
            claims too much when an exception, Ctrl-C included, comes in between.
        turn: number of prompts begun; tells an answer that was left behind that the cache is no longer its own.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.record = KvRecord()
        self.turn = 0

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache; the next one's position."""
        return len(self.record.tokens)

    def begin(self, prompt: Sequence[int], state: AdapterState, adapters: Sequence[tuple[Adapter, float]]) -> int:
        """Computes a prompt under `adapters`, which `state` names; the last output is that of its last token.

        Returns:
            How many tokens of the prompt were kept from before.
        """
        self.turn += 1
        kept = self.record.reusable(state, prompt)
        self.record.cut(kept, state)
        self.context.remove(0, kept)
        self.context.set_adapters(adapters)
        at = kept
        for end in chunk_ends(len(prompt)):
            if end <= kept:
                continue
            chunk = prompt[at:end]
            self.context.decode(chunk, at, outputs="last" if end == len(prompt) else "none")
            self.record.add(chunk)
            at = end
        return kept

    def step(self, token_id: int) -> None:
        """Computes one more token."""
        chunk = (token_id,)
        self.context.decode(chunk, self.n_tokens)
        self.record.add(chunk)
