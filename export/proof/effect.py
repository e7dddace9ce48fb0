"""Whether what an adapter changes comes out as the reference has it, and not only the base under it.

    change = Change.between(theirs, theirs_alone, ours, ours_alone)
    change.error, change.rounding, change.strength          # 0.11, 0.09, 0.98

Rounding of a quantised base moves logits too, also those of a right adapter: by as much as it moves the base's own,
which is measured beside it, and in no direction of the adapter's. A wrong adapter's error is larger than that or lies
along its effect. Measured on SmolLM2-135M (Q4_1) with a starter's adapter, in multiples of the base's own error: right
1.3; nine tenths of the scale 1.9, no v_proj 3.8, without one layer of 30 1.9 to 3.5, another adapter 12 to 18.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .difference import Logits

# An adapter that moves no logit by more than this does nothing, and proves nothing.
SMALLEST_EFFECT: Final = 1e-4
# The part of the effect that may come out otherwise anyhow (adapters are stored in 8 or 16 bits) ...
MAX_ERROR: Final = 0.08
# ... or as many times the base's own error: right ones came to 0.4 to 1.6.
MAX_ROUNDINGS: Final = 2.0
# Beyond this an error is no longer clearly below the effect: 1 is no adapter at all.
MAX_PROVABLE: Final = 0.8
# How far the strength may be from 1, beside half of the rounding, and at most: right ones came to 0.96 to 1.0, and to
# 0.78 where the reference's base is not quantised (rounding 0.5); half of the scale to 0.58.
MAX_STRENGTH_ERROR: Final = 0.25
MOST_STRENGTH_ERROR: Final = 0.5
# Tokens before an activated adapter's invocation are not changed at all.
_UNCHANGED: Final = 1e-9


@dataclass(frozen=True)
class Change:
    """Sums over all logits of what an adapter changes, in the reference (theirs) and on an engine of ours.

    Attributes:
        largest: change of a logit in the reference.
        squares: of the reference's changes.
        error_squares: of our changes less theirs.
        products: of our changes with theirs.
        rounding_squares: of our logits less theirs of the base alone, after the tokens that the adapter changes.
    """

    largest: float
    squares: float
    error_squares: float
    products: float
    rounding_squares: float

    @classmethod
    def between(cls, theirs: Logits, theirs_alone: Logits, ours: Logits, ours_alone: Logits) -> "Change":
        """From logits with and without the adapter, (n_tokens, n_vocab) each."""
        rows = []
        # Row by row: with 150,000 words, float64 copies of all rows would be gigabytes.
        for their_row, their_base, our_row, our_base in zip(theirs, theirs_alone, ours, ours_alone, strict=True):
            change = their_row.astype(np.float64) - their_base
            ours_changed = our_row.astype(np.float64) - our_base
            parts = (change, ours_changed - change, our_base.astype(np.float64) - their_base)
            squares, errors, rounding = (float(np.square(part).sum()) for part in parts)
            rows.append((float(np.abs(change).max()), squares, errors, float(change @ ours_changed), rounding))
        found = np.array(rows)
        # Written so that NaN counts.
        found[found[:, 1] <= _UNCHANGED * found[:, 1].max(), 4] = 0.0
        return cls._summed(found)

    @classmethod
    def of_all(cls, changes: Iterable["Change"]) -> "Change":
        """Of several prompts together."""
        return cls._summed(np.array([astuple(change) for change in changes]))

    @classmethod
    def _summed(cls, rows: npt.NDArray[np.float64]) -> "Change":
        return cls(float(rows[:, 0].max()), *rows[:, 1:].sum(axis=0).tolist())

    @property
    def error(self) -> float:
        """How much of the effect comes out otherwise: 0 none, 1 as much as there is."""
        return math.sqrt(self.error_squares / self.squares) if self.squares else math.inf

    @property
    def rounding(self) -> float:
        """The base's own error in parts of the effect."""
        return math.sqrt(self.rounding_squares / self.squares) if self.squares else math.inf

    @property
    def strength(self) -> float:
        """How much of the effect is there: 1 all of it, 0 none, 0.5 half of its scale."""
        return self.products / self.squares if self.squares else 0.0

    def failures(self, engine: str) -> list[str]:
        """Why it proves nothing, or that the adapter is another one."""
        if not self.largest >= SMALLEST_EFFECT:
            return [f"the adapter moves no logit by more than {self.largest:.1g}: nothing is proved"]
        most = max(MAX_ERROR, MAX_ROUNDINGS * self.rounding)
        said = f"{self.error:.0%} of the adapter's effect comes out otherwise on {engine}"
        # Written so that NaN fails.
        if not self.error <= MAX_PROVABLE:
            why = (
                "its effect is too small for this base's rounding; prove it with --base-gguf, or on a base of more bits"
                if most > MAX_PROVABLE
                else "it is another adapter, or another base"
            )
            return [f"{said}, more than {MAX_PROVABLE:.0%}: nothing is proved: {why}"]
        found = []
        if not self.error <= most:
            found.append(
                f"{said}; the base's own rounding explains {most:.0%}: something of it is missing, or is another one's"
            )
        if not abs(self.strength - 1) <= min(MAX_STRENGTH_ERROR + self.rounding / 2, MOST_STRENGTH_ERROR):
            found.append(f"the adapter acts with {self.strength:.0%} of its strength on {engine}: is its scale right?")
        return found
