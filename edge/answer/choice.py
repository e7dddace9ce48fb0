"""What prompts are answered with: the base alone, one adapter, or several whose effects are added up.

parse_choice("math")                    # {"math": None}: at its card's scale
parse_choice("math:0.7+code:0.3")       # {"math": 0.7, "code": 0.3}
"""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..pack.card import TaskCard
from ..pack.pack import PackedAdapter, find_adapter

# How the base answers by itself.
BASE_CARD = TaskCard(task="base")


@dataclass(frozen=True)
class Choice:
    """Adapters by name with their scales, and the card that says how answers are made; no names for the base alone."""

    scales: tuple[tuple[str, float], ...] = ()
    card: TaskCard = BASE_CARD

    @property
    def name(self) -> str | None:
        """One adapter's name, several by name as "code:0.3+math:0.7", None for the base alone."""
        if len(self.scales) < 2:
            return self.scales[0][0] if self.scales else None
        return "+".join(f"{name}:{scale:g}" for name, scale in self.scales)


def parse_choice(text: str) -> dict[str, float | None]:
    """Names and scales of "math" or "math:0.7+code:0.3"; a scale that is left out is the card's.

    Raises:
        InputError: a scale is no number, or a name stands twice.
    """
    chosen: dict[str, float | None] = {}
    for part in text.split("+"):
        name, colon, scale = part.strip().partition(":")
        if name in chosen:
            raise InputError(f"the adapter {name!r} is named twice in {text!r}")
        try:
            chosen[name] = float(scale) if colon else None
        except ValueError:
            raise InputError(f"{scale!r} is not a scale for the adapter {name!r}; for example {name}:0.7") from None
    return chosen


# "math", "math:0.7+code:0.3", {"math": 0.7, "code": None}, a choice made before; None or "none" for the base alone
AdapterName = str | Mapping[str, float | None] | Choice | None


def check_scale(name: str, scale: float) -> float:
    """Returns `scale`. Raises InputError unless it is finite, not 0 and in [-10, 10]."""
    given: Any = scale
    if not isinstance(given, numbers.Real) or not -10 <= scale <= 10 or scale == 0:
        raise InputError(f"the scale of adapter {name!r} is {given!r}; it must be between -10 and 10, and not 0")
    return scale


def _named(name: AdapterName, adapters: Mapping[str, PackedAdapter]) -> dict[str, float | None]:
    """The names with their scales, None for a card's."""
    if name is None or name == "none":
        return {}
    if name == "auto":
        raise InputError(
            "'auto' chooses for one prompt and cannot be chosen for all",
            hint="use(session.choose(prompt).adapter), or adapter='auto' in ask, stream and submit",
        )
    if isinstance(name, str):
        return {name: None} if name in adapters else parse_choice(name)
    if isinstance(name, Mapping) and all(isinstance(one, str) for one in name):
        return dict(name)
    raise InputError(f"{name!r} names no adapter", hint="give a name, or names with scales as {'math': 0.7}, or None")


def choice_of(name: AdapterName, scale: float | None, adapters: Mapping[str, PackedAdapter]) -> Choice:
    """The choice that `use(name, scale=scale)` asks for; the first name's card says how answers are made.

    Args:
        adapters: those that there are, by name.

    Raises:
        InputError: a name is not there, a scale is out of range, or is given beside several names or none.
    """
    if isinstance(name, Choice) and scale is None:
        return name
    given = {} if isinstance(name, Choice) else _named(name, adapters)
    if scale is not None:
        if isinstance(name, Mapping) or list(given.values()) != [None]:
            raise InputError("give a scale only with one adapter's name")
        given = dict.fromkeys(given, scale)
    cards = {one: find_adapter(adapters, one).card for one in given}
    scales = [
        (one, cards[one].scale if strength is None else check_scale(one, strength)) for one, strength in given.items()
    ]
    # In one order, because sums depend on it.
    return Choice(tuple(sorted(scales)), next(iter(cards.values()), BASE_CARD))
