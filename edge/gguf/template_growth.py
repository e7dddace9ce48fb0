"""How much comes out of what multiplies in a chat template, measured before it is done: filters, methods of texts.

    filtered("join", filter_, args, kwargs, 0)
    check_grown("center", text, (80,), {}, weight)

Many templates call no filter and no method of a text; this is imported for those that do.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .template_limits import LETTERS_A_STEP, TooMuchError, check_letters, glance, open_ended, spend, stepped, weigh

# The largest number that may say how wide, how often or how deep
LARGEST_COUNT: Final = 1 << 16
# A width of five digits, one that is taken from an argument, or a nested one
_WIDE: Final = re.compile(r"\d{5}|%[^a-zA-Z%]*\*|[:!][^{}]*\{")
# These look at no more than a value's beginning or its length.
_GLANCES: Final = frozenset(
    "length count first last default d random".split()  # noqa: SIM905
)
# These pass elements on as they are.
_PASSES: Final = frozenset(
    "map select reject selectattr rejectattr list reverse items batch slice".split()  # noqa: SIM905
)
# Written in Python, or slow by their nature: every letter is a step.
_SLOW: Final = frozenset(
    "pprint sort groupby unique urlize striptags wordwrap xmlattr title wordcount dictsort".split()  # noqa: SIM905
)
# A search from behind, or for any of many letters, may look at each letter of the one for each of the other.
_SQUARE: Final = frozenset(
    "rfind rindex rsplit rpartition strip lstrip rstrip trim".split()  # noqa: SIM905
)


def check_counts(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > LARGEST_COUNT:
            raise TooMuchError(f"it asks for a width or a count above {LARGEST_COUNT}")


def _grown(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], weight: int) -> int:
    """At most so many letters come out of a filter or method that multiplies; 0 of others."""
    given = (*args, *kwargs.values())
    lengths = [len(one) for one in given if isinstance(one, str)]
    widths = [abs(one) for one in given if isinstance(one, int)]
    longest, widest = max(lengths, default=0), max(widths, default=0)
    text = value if isinstance(value, str) else ""
    if name == "replace" and len(lengths) > 1:
        old = given[0]
        return len(text) + (text.count(old) if isinstance(old, str) else len(text)) * max(lengths[1:])
    if name in ("format", "format_map", "mod"):
        return len(text) + (text.count("{") + text.count("%")) * (sum(map(weigh, given)) + 10**4)
    if name in ("center", "ljust", "rjust", "zfill", "batch", "slice", "truncate"):
        return weight + widest
    if name in ("indent", "tojson"):
        lines = text.count("\n") + 1 if name == "indent" else weight
        return weight + lines * (longest + widest)
    if name == "expandtabs":
        return weight + text.count("\t") * widest
    if name in ("wordwrap", "urlize", "translate", "xmlattr"):
        inner = max((weigh(one) for one in given), default=0)
        return weight * (1 + max(inner, longest))
    return 0


def check_grown(name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], weight: int) -> None:
    if name in ("format", "format_map", "mod") and isinstance(value, str) and _WIDE.search(value):
        raise TooMuchError("it formats with a width of its own or a very large one")
    grown = _grown(name, value, args, kwargs, weight)
    check_letters(grown)
    spend(grown if name in ("batch", "slice") else grown // LETTERS_A_STEP)
    if name in _SQUARE and isinstance(value, str):
        spend(
            len(value) * max((len(one) for one in (*args, *kwargs.values()) if isinstance(one, str)), default=0) >> 12
        )
    if (name == "sum" and len(args) > 1) or "start" in kwargs:
        # Lists that are added up are copied each time.
        spend(weight * weight // LETTERS_A_STEP)


def check_joined(separator: Any, values: Any) -> None:
    """Before a join: its letters."""
    if isinstance(values, list | tuple | dict | str) and isinstance(separator, str):
        grown = len(values) * len(separator) + weigh(values)
        check_letters(grown)
        spend(grown // LETTERS_A_STEP)


def filtered(
    name: str, filter_: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], n_own: int
) -> Any:
    """What a filter makes, counted beforehand.

    Args:
        n_own: how many of `args` come from jinja2, before the value.
    """
    args = tuple(map(open_ended, args))
    value, given = (args[n_own], args[n_own + 1 :]) if len(args) > n_own else (None, ())
    weight = (glance if name in _PASSES else weigh)(value) if name not in _GLANCES else 0
    if name in _SLOW:
        spend(8 * weight)
    if name not in ("default", "d"):
        check_counts(given, kwargs)
    if name == "join":
        if not isinstance(value, list | tuple | dict | str):
            value = list(stepped(value or ()))
            args = (*args[:n_own], value, *given)
        check_joined(next(iter(given), kwargs.get("d", "")), value)
    for one in (*given, *kwargs.values()):
        glance(one)
    check_grown(name, value, given, kwargs, weight)
    return filter_(*args, **kwargs)
