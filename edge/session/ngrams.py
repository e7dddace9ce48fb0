"""Guesses what comes next from what stood after the same words before (prompt lookup): copying tasks repeat themselves.

ngrams = Ngrams(prompt_ids)
ngrams.add(token_id)
ngrams.guess(7)                  # up to 7 token ids, and how many before them agree
"""

from collections.abc import Iterable
from typing import Final

# So many tokens in a row must have stood before. With fewer, summaries and edits gain a little more and word problems
# lose: reckoned with measured costs over 72 answers of the starter pack.
LEAST_TOKENS: Final = 5
# No longer agreement is looked for.
MOST_TOKENS: Final = 64


class Ngrams:
    """Token ids, and where each run of `LEAST_TOKENS` of them was seen last."""

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token_id in token_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Adds the next token. What it ends is found from the one after it on, never as its own repetition."""
        ids = self.ids
        if len(ids) >= LEAST_TOKENS:
            self._after[tuple(ids[-LEAST_TOKENS:])] = len(ids)
        ids.append(token_id)

    def guess(self, n_most: int) -> tuple[list[int], int]:
        """What followed the last tokens when they stood there before, at most `n_most`; and how many tokens agree."""
        ids = self.ids
        at = self._after.get(tuple(ids[-LEAST_TOKENS:]))
        if at is None:
            return [], 0
        n_same = LEAST_TOKENS
        while n_same < min(at, MOST_TOKENS) and ids[at - n_same - 1] == ids[-n_same - 1]:
            n_same += 1
        return ids[at : at + n_most], n_same
