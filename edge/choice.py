"""What prompts are answered with: the base alone, one adapter, or several whose effects are added up.

parse_choice("math")                    # {"math": None}: at its card's scale
parse_choice("math:0.7+code:0.3")       # {"math": 0.7, "code": 0.3}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .activated import activation_start
from .card import TaskCard
from .errors import InputError, UnsupportedError
from .options import Swap
from .prefix import AdapterState, Section
from .shelf import Loaded
from .vocab import Vocab

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
            raise InputError(f"the adapter {name!r} stands twice in {text!r}")
        try:
            chosen[name] = float(scale) if colon else None
        except ValueError:
            raise InputError(f"{scale!r} is no scale for the adapter {name!r}; for example {name}:0.7") from None
    return chosen


def check_scale(name: str, scale: float) -> float:
    """The scale as given; InputError where it is 0, no number, or far out."""
    if not -10 <= scale <= 10 or scale == 0:
        raise InputError(f"a scale of {scale} for the adapter {name!r}; -10 to 10 and not 0 are possible")
    return scale


def choice_of(
    name: str | Mapping[str, float | None] | None, scale: float | None, card_of: Callable[[str], TaskCard]
) -> Choice:
    """The choice that `use(name, scale=scale)` asks for; the first name's card says how answers are made.

    Args:
        card_of: an adapter's task card; raises InputError for a name that is not there.

    Raises:
        InputError: a name is not there, a scale is out of range, or is given beside several names or none.
    """
    given = {} if name is None else {name: scale} if isinstance(name, str) else dict(name)
    if not isinstance(name, str) and scale is not None:
        raise InputError("a scale is given beside a choice that has its own, or has none")
    cards = {one: card_of(one) for one in given}
    scales = [
        (one, cards[one].scale if strength is None else check_scale(one, strength)) for one, strength in given.items()
    ]
    # In one order, because sums depend on it.
    return Choice(tuple(sorted(scales)), next(iter(cards.values()), BASE_CARD))


def swap_of(loaded: Sequence[Loaded], asked: Swap | None = None) -> Swap:
    """How the adapters are taken up in the middle of a conversation.

    "recompute": the whole conversation is computed under them, exactly as if they had been there from the start.
    "activated": an aLoRA; what stands before its invocation tokens is the base's and stays.

    Raises:
        UnsupportedError: another way is asked than that of these adapters, or an aLoRA with others.
    """
    activated = [one for one in loaded if one.info.alora_tokens]
    if activated and len(loaded) > 1:
        raise UnsupportedError(
            "is an activated LoRA (aLoRA), which acts on a part of the prompt; it cannot be added up with others",
            where=activated[0].adapter.path,
        )
    own: Swap = "activated" if activated else "recompute"
    if asked is not None and asked != own:
        what = "an activated LoRA (aLoRA), trained on the base's keys and values" if activated else "a plain LoRA"
        why = "" if activated else "; all keys and values depend on it, so the base's cannot be kept"
        raise UnsupportedError(
            f"the swap {asked!r} is asked of {what}{why}",
            where=loaded[0].adapter.path if loaded else None,
            hint=f"its swap is {own!r}",
        )
    return own


def sections_of(
    loaded: Sequence[tuple[Loaded, float]], token_ids: Sequence[int], n_shared_tokens: int, vocab: Vocab
) -> list[Section]:
    """The parts of a prompt and what each is computed under.

    Args:
        loaded: the adapters with their scales.
        n_shared_tokens: of the beginning that other prompts share; 0 for none.
        vocab: for messages.

    Raises:
        InputError: the prompt does not hold an aLoRA's invocation tokens, so that the adapter would do nothing.
    """
    n_tokens = len(token_ids)
    adapters = tuple((one.adapter, scale) for one, scale in loaded)
    loads = tuple(one.serial for one, _ in loaded) if len(loaded) > 1 else ()
    state = AdapterState(tuple((one.sha256, scale) for one, scale in loaded), loads)
    start = 0
    for one, _ in loaded:
        if one.info.alora_tokens:
            found = activation_start(token_ids, one.info.alora_tokens)
            if found is None:
                text = vocab.decode(list(one.info.alora_tokens), special=True)
                raise InputError(
                    f"the prompt does not hold the invocation {text!r} of this activated LoRA, so it would do nothing",
                    where=one.adapter.path,
                    hint="put it at the end of the message that it shall answer",
                )
            start = found
    ends = {end: end == n_shared_tokens for end in (n_shared_tokens, start) if 0 < end < n_tokens}
    sections = [
        Section(end, shared=shared) if end <= start else Section(end, state, adapters, shared)
        for end, shared in sorted(ends.items())
    ]
    return [*sections, Section(n_tokens, state, adapters)]
