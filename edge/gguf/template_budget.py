"""Counts the work of a chat template before it is done: steps, and the letters of what is made.

    with limits(n_letters_given=1200):
        weigh(value)

A step for each turn of a loop and each call, and for the size of everything that an operator, filter, call, comparison
or output takes in. What multiplies (`*`, `join`, `center`, `%9999s`) is measured beforehand.
"""

import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

from jinja2.exceptions import TemplateRuntimeError

# Templates of 2026 take 50 to 3,000 steps for a turn; 200,000 end within a second or so on a server core.
STEPS: Final = 200_000
# Letters of one value, beside 16 for each letter of the messages
LETTERS: Final = 1 << 20
LETTERS_A_STEP: Final = 64
# The largest number that may say how wide, how often or how deep
LARGEST_COUNT: Final = 1 << 16
MOST_BITS: Final = 1 << 14
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
_SIZED: Final = (list, tuple, dict, set, frozenset, range, KeysView, ValuesView, ItemsView)


class TooMuchError(TemplateRuntimeError):
    """The template wants more steps or letters than it may have."""


class _Budget:
    def __init__(self, n_letters_given: int) -> None:
        self.steps = STEPS + 4 * n_letters_given
        self.letters = LETTERS + 16 * n_letters_given


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def limits(n_letters_given: int = 0) -> Iterator[None]:
    """What a template may do within, for messages of so many letters."""
    token = _budget.set(_Budget(n_letters_given))
    try:
        yield
    finally:
        _budget.reset(token)


def spend(steps: int) -> None:
    budget = _budget.get()
    budget.steps -= steps
    if budget.steps < 0:
        raise TooMuchError("it does not come to an end (too many steps)")


def check_letters(n_letters: int) -> None:
    """Raises TooMuchError for a text, or the like, that is longer than one may be."""
    if n_letters > _budget.get().letters:
        raise TooMuchError("it writes too much text")


def weigh(value: Any) -> int:
    """Letters and elements of a value with all within, which are counted as work."""
    if isinstance(value, str):
        spend(1 + len(value) // LETTERS_A_STEP)
        check_letters(len(value))
        return len(value)
    total = 0
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str | bytes):
            size = len(one)
            spend(1 + size // LETTERS_A_STEP)
        elif isinstance(one, dict):
            size = 2 * len(one) + 1
            todo += one.keys()
            todo += one.values()
            spend(size)
        elif isinstance(one, list | tuple | set | frozenset):
            size = len(one) + 1
            spend(size)
            todo += one
        elif isinstance(one, int):
            size = 1 + (one.bit_length() >> 3)
            spend(1)
        else:
            size = glance(one)
        total += size
        check_letters(total)
    return total


def glance(value: Any) -> int:
    """As `weigh`, for what does not look into elements."""
    if isinstance(value, str | bytes):
        return weigh(value)
    size = 1 + len(value) if isinstance(value, _SIZED) else 1
    spend(size)
    return size


def weighed(value: Any, shallow: bool = False) -> Any:
    (glance if shallow else weigh)(value)
    return open_ended(value)


def open_ended(value: Any) -> Any:
    """An iterator, whose length nobody knows, counted as it is read; any other value as it is."""
    return stepped(value) if isinstance(value, Iterator) else value


def stepped(values: Any, steps: int = 1) -> Iterator[Any]:
    for value in values:
        spend(steps)
        yield value


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


def limited_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    n_own = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @wraps(filter_)
    def limited(*args: Any, **kwargs: Any) -> Any:
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

    return limited


def limited_test(test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)
    def limited(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            weigh(value)
        return test(*args, **kwargs)

    return limited
