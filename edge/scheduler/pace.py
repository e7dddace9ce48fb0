"""How fast the engine computes, as measured while it works: steps, prompts, swaps.

pace.add_step(4, 0.031)
pace.step_s(4)          # 0.031
"""

from typing import Final

from ..options import BATCH_TOKENS

# What one measurement counts for beside those before it
_SHARE: Final = 0.2


class Pace:
    """Running means; 0 until something was measured.

    Attributes:
        token_s: of a prompt's token.
    """

    def __init__(self) -> None:
        self.token_s = 0.0
        self._swap_s: float | None = None
        self._steps: dict[int, float] = {}

    @property
    def swap_s(self) -> float:
        """What a change of adapters costs beside the work itself, sequences that are laid aside included."""
        return max(0.0, self._swap_s or 0.0)

    def step_s(self, n_rows: int) -> float:
        """Seconds of a step of so many rows; where it was not measured yet, of the nearest number."""
        # A copy: other threads ask too.
        known = dict(self._steps)
        return known[min(known, key=lambda one: abs(one - n_rows))] if known else 0.0

    def chunk_s(self, n_tokens: int = BATCH_TOKENS) -> float:
        """Seconds of so many tokens of a prompt."""
        return self.token_s * n_tokens

    def add_step(self, n_rows: int, took_s: float) -> None:
        """A step that followed another one of the same adapters."""
        self._steps[n_rows] = _mean(self._steps.get(n_rows, 0.0), took_s)

    def add_chunk(self, n_tokens: int, took_s: float) -> None:
        """A part of a prompt."""
        self.token_s = _mean(self.token_s, took_s / n_tokens)

    def add_swap(self, over_s: float) -> None:
        """By how much a step took longer behind a change of adapters than it does else, or shorter by chance.

        With the lucky ones left out, a busy machine's noise would count as the price of changing.
        """
        before = over_s if self._swap_s is None else self._swap_s
        self._swap_s = before + _SHARE * (over_s - before)


def _mean(before: float, now: float) -> float:
    return before + _SHARE * (now - before) if before else now
