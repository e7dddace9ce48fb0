"""What prompts are answered with: the base alone, one adapter, or several whose effects are added up; and how.

    parse_choice("math")                    # {"math": None}: at its card's scale
    parse_choice("math:0.7+code:0.3")       # {"math": 0.7, "code": 0.3}
    request_of(ids, choice, {"max_tokens": 100}, sections, room_tokens=2048, longest="…")

The optional arguments of an answer stand here once for all that pass them on (`Settings`).
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import DoesNotFitError, InputError, UnsupportedError
from ..gguf.chat_template import Turn
from ..llama.sampling import Sampling
from ..options import check_given
from ..pack.card import TaskCard
from ..pack.pack import PackedAdapter, find_adapter
from ..prefix.chunks import Section
from .stream import Request

if TYPE_CHECKING:
    from ..grammar.rules import Rules
    from .thinking import Thinking

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


class Settings(TypedDict, total=False):
    """How one answer is made; what is left out or None is as the task card says.

    max_tokens: its longest length.
    min_tokens: its least length: before so many tokens no end token and no stop text ends it.
    ignore_eos: it is as long as it may be, whatever end tokens are in it; stop texts still end it.
    temperature, top_k, top_p, min_p, seed: as in `sampling.Sampling`.
    frequency_penalty, presence_penalty, repeat_penalty, repeat_last_n, logit_bias: likewise; task cards say nothing of
        these.
    stop: texts that end the answer, in place of the card's.
    grammar: what the answer keeps to, in place of the card's; "" for none. A text is GBNF; `grammar.rules` has
        `schema_grammar` for a JSON schema, and others.
    template_args: what the chat template is told beside the messages, on top of the card's: "tools" and "documents" are
        lists of tables, "date" is the day that it takes for today, "think" False switches thinking off; others are the
        template's own. One that it never reads is refused.
    add_generation_prompt: False: what the chat template writes for the beginning of an answer is left out.
    continue_final_message: the answer goes on with the last message, in place of a turn of its own.
    """

    max_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    grammar: "Rules | str | None"
    template_args: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


def turn_of(settings: Settings) -> Turn:
    """How the rendered conversation ends; InputError for a new turn and none at once."""
    if not settings.get("continue_final_message"):
        return "closed" if settings.get("add_generation_prompt") is False else "new"
    if settings.get("add_generation_prompt"):
        raise InputError(
            "continue_final_message goes on with the last message and add_generation_prompt begins another one",
            where="continue_final_message",
            hint="give one of them",
        )
    return "open"


def arguments_of(
    card: TaskCard, template_args: Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What the chat template is told: the card's arguments, and those of the call in their place.

    Args:
        tools: the same as "tools" in `template_args`.

    Raises:
        InputError: they are no JSON values, or too large.
    """
    if template_args is None and tools is None and not card.template:
        return {}
    from ..gguf.chat_template import THINKING_SWITCHES
    from ..gguf.template_arguments import checked_arguments

    called = {**checked_arguments(template_args or {}), **({} if tools is None else {"tools": list(tools)})}
    # "think" stands for the template's own word, which the card may have
    hidden = THINKING_SWITCHES if called.get("think") is not None else ()
    return checked_arguments({**{name: one for name, one in card.template.items() if name not in hidden}, **called})


def sampling_of(card: TaskCard, settings: Settings) -> Sampling:
    """The sampling settings of an answer; InputError if values are out of range."""
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(Sampling):
        given = settings.get(entry.name)
        if given is None:
            # What no card says is as where nothing is said.
            given = getattr(card, entry.name, None)
        if given is not None:
            values[entry.name] = given
    return Sampling(**values)


def max_tokens_of(card: TaskCard, settings: Settings) -> int:
    """The longest answer, at least 1 token; InputError else."""
    max_tokens = settings.get("max_tokens")
    if max_tokens is None:
        return card.max_tokens
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
    return max_tokens


def stop_of(card: TaskCard, settings: Settings) -> tuple[str, ...]:
    """The texts that end an answer."""
    stop = settings.get("stop")
    if stop is None:
        return card.stop
    return (stop,) if isinstance(stop, str) else tuple(stop)


def grammar_of(card: TaskCard, settings: Settings) -> "Rules | None":
    """What an answer keeps to; None for nothing.

    Raises:
        InputError: the grammar or the card's schema cannot be used.
    """
    grammar = settings.get("grammar")
    if grammar is None:
        return card.rules()
    if grammar == "":
        return None
    from ..grammar.rules import Rules, gbnf_grammar

    if isinstance(grammar, str):
        return gbnf_grammar(grammar)
    given: object = grammar
    if not isinstance(given, Rules):
        raise InputError(f"the setting grammar is {given!r}; it takes a text or what `grammar.rules` makes")
    return given


def request_of(
    ids: Sequence[int],
    choice: Choice,
    settings: Settings,
    sections: Callable[[], Sequence[Section]],
    *,
    room_tokens: int,
    longest: str,
    thinking: "Thinking | None" = None,
) -> Request:
    """Everything that decides the answer to a rendered prompt, checked.

    Args:
        sections: the parts of the prompt with their adapters.
        room_tokens: longest prompt and answer together.
        longest: what could be had at most, for the user whose prompt does not fit, such as "this base can do 8192".
        thinking: how thoughts are told from the answer; rules for the answer leave no room for them.

    Raises:
        InputError: a setting that there is not, of another type or out of range.
        UnsupportedError: a length that rules leave no room for.
        DoesNotFitError: the prompt leaves no room.
    """
    check_given(settings, Settings, "setting", unchecked=("Rules",))
    max_tokens = max_tokens_of(choice.card, settings)
    if len(ids) >= room_tokens:
        raise DoesNotFitError(
            f"the prompt has {len(ids)} tokens and up to {max_tokens} are to follow; the context holds {room_tokens}",
            hint=f"shorten it, or take a larger context: {longest}",
        )
    grammar = grammar_of(choice.card, settings)
    min_tokens, ignore_eos = settings.get("min_tokens") or 0, bool(settings.get("ignore_eos"))
    if not 0 <= min_tokens <= max_tokens:
        raise InputError(
            f"min_tokens is {min_tokens}; it must be between 0 and max_tokens, {max_tokens}", where="min_tokens"
        )
    if grammar is not None and (min_tokens or ignore_eos):
        name = "min_tokens" if min_tokens else "ignore_eos"
        raise UnsupportedError(f"{name}: an answer that keeps to rules ends where they end", where=name)
    return Request(
        prompt=ids,
        adapter=choice.name,
        sections=sections,
        sampling=sampling_of(choice.card, settings),
        stop=stop_of(choice.card, settings),
        max_tokens=max_tokens,
        room_tokens=room_tokens,
        grammar=grammar,
        thinking=thinking if grammar is None else None,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
    )
