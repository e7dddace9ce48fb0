"""What the two processes of the sandbox say to each other: frames of JSON over pipes, values without classes.

    {"tuple": [1, {"set": ["a"]}, {"bytes": "00ff"}]}

What JSON knows stands for itself, all else is one tag and its parts. The judge reads frames that untrusted code may
have written itself: each tag stands for one builder here, no name in a frame is looked up, and no attribute is set.
"""

import itertools
import json
import os
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

# Bound before untrusted code runs, which may set these names to anything
_write, _read = os.write, os.read
_to_text: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
# A NaN of its own for each one read: a list that holds the same NaN twice would be equal where it is not
_from_text: Final = json.JSONDecoder(parse_constant=float).decode
MAX_FRAME_BYTES: Final = 16 << 20
MAX_ITEMS: Final = 1_000_000
MAX_DEPTH: Final = 200
# Beyond these JSON's decimal digits would be slow, and Python refuses more than some thousand
_PLAIN_INTEGERS: Final = range(-(1 << 63), 1 << 63)


class WireError(Exception):
    """A frame, or a value for one, that is none."""


class Failed(BaseException):
    """The program failed; the message says how. No `except Exception` of a test catches it."""


class Held:
    """In the judge's hands, an object that stays with the program: good for handing back, for nothing else."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __bool__(self) -> bool:
        raise Failed("test: an object of the program's own class cannot be judged")

    def __eq__(self, other: object) -> bool:
        return bool(self)


def _hex_of_text(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


def _pairs(value: Any) -> list[list[Any]]:
    return [[key, part] for key, part in value.items()]


def _seconds(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


# Classes that a test or a program may name. None of them can be changed.
_CLASSES: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range)
}
# In this order: the first class that a value is an instance of. A subclass becomes its base.
_ENCODERS: Final[tuple[tuple[type, str, Callable[[Any], Any]], ...]] = (
    (tuple, "tuple", list),
    (Counter, "counter", _pairs),
    (OrderedDict, "ordered", _pairs),
    (dict, "dict", _pairs),
    (set, "set", list),
    (frozenset, "frozenset", list),
    (bytes, "bytes", lambda value: bytes(value).hex()),
    (bytearray, "bytearray", lambda value: bytes(value).hex()),
    (complex, "complex", lambda value: [value.real, value.imag]),
    (range, "range", lambda value: [value.start, value.stop, value.step]),
    (slice, "slice", lambda value: [value.start, value.stop, value.step]),
    (deque, "deque", lambda value: [list(value), value.maxlen]),
    (Decimal, "decimal", str),
    (Fraction, "fraction", lambda value: [value.numerator, value.denominator]),
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (timedelta, "timedelta", _seconds),
    (timezone, "timezone", lambda value: _seconds(value.utcoffset(None))),
    (type({}.keys()), "keys", list),
    (type({}.values()), "values", list),
    (type({}.items()), "items", lambda value: [list(pair) for pair in value]),
    (Held, "object", lambda value: value.index),
    (Iterator, "iterator", lambda value: list(itertools.islice(value, MAX_ITEMS))),
)
_BUILDERS: Final[dict[str, Callable[[Any], Any]]] = {
    "class": lambda name: _CLASSES[name],
    "int": lambda text: int(text, 16),
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "tuple": tuple,
    "counter": lambda pairs: Counter(dict(pairs)),
    "ordered": OrderedDict,
    "dict": dict,
    "set": set,
    "frozenset": frozenset,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "slice": lambda parts: slice(*parts),
    "deque": lambda parts: deque(*parts),
    "decimal": Decimal,
    "fraction": lambda parts: Fraction(*parts),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "timezone": lambda parts: timezone(timedelta(*parts)),
    "keys": lambda parts: dict.fromkeys(parts).keys(),
    "values": lambda parts: dict(enumerate(parts)).values(),
    "items": lambda parts: dict(parts).items(),
    "iterator": iter,
}


def encode(value: Any, held: list[Any] | None = None, depth: int = 0) -> Any:
    """A value as JSON has it; iterators are gone through.

    Args:
        held: takes what is of a class that is not passed and stays here; None: there is no such thing.

    Raises:
        WireError: it, or a part of it, is of a class that is not passed, or lies too deep.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if isinstance(value, int):
        number = int.__int__(value)
        return number if number in _PLAIN_INTEGERS else {"int": hex(number)}
    if isinstance(value, str):
        text = str.__str__(value)
        return text if _is_text(text) else {"str": _hex_of_text(text)}
    if isinstance(value, float):
        return float.__float__(value)
    if depth >= MAX_DEPTH:
        raise WireError("a value is too deep to be judged")
    if isinstance(value, list):
        return [encode(part, held, depth + 1) for part in value]
    for of, tag, parts_of in _ENCODERS:
        if isinstance(value, of):
            return {tag: encode(parts_of(value), held, depth + 1)}
    if kind is type and value in _CLASSES.values():
        return {"class": value.__name__}
    if held is None:
        raise WireError(f"an argument of the class {kind.__qualname__} cannot be passed")
    held.append(value)
    return {"object": len(held) - 1}


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def decode(value: Any, held: Sequence[Any] | None = None, depth: int = 0) -> Any:
    """The value that `encode` took apart, built anew.

    Args:
        held: the objects that stayed here; None: they are the other side's.

    Raises:
        WireError: it is not what `encode` gives.
    """
    kind = type(value)
    if kind is not list and kind is not dict:
        return value
    if depth > MAX_DEPTH:
        raise WireError("a value is too deep to be judged")
    if kind is list:
        return [decode(part, held, depth + 1) for part in value]
    if len(value) != 1:
        raise WireError("not a value")
    [(tag, inside)] = value.items()
    if tag == "object" and type(inside) is int:
        return Held(inside) if held is None else held[inside]
    if tag not in _BUILDERS:
        raise WireError("not a value")
    parts = decode(inside, held, depth + 1)
    try:
        return _BUILDERS[tag](parts)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise WireError(f"not a value: {tag}") from None


def send(handle: int, *message: Any, held: list[Any] | None = None) -> None:
    """Writes one frame.

    Raises:
        WireError: something in it cannot be sent; nothing was written.
    """
    body = _to_text([encode(part, held) for part in message]).encode("utf-8")
    if len(body) > MAX_FRAME_BYTES:
        raise WireError("a value is too large to be judged")
    data = struct.pack("=I", len(body)) + body
    while data:
        data = data[_write(handle, data) :]


def _exactly(handle: int, n_bytes: int) -> bytes:
    parts = []
    while n_bytes:
        part = _read(handle, min(n_bytes, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def receive(handle: int, held: Sequence[Any] | None = None) -> list[Any]:
    """Reads one frame: a message with a text at its front.

    Raises:
        EOFError: the other side has ended.
        WireError: the frame is too long, or none.
    """
    (length,) = struct.unpack("=I", _exactly(handle, 4))
    if length > MAX_FRAME_BYTES:
        raise WireError("a value is too large to be judged")
    try:
        message = _from_text(_exactly(handle, length).decode("utf-8"))
    except (ValueError, RecursionError):
        raise WireError("not a message") from None
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise WireError("not a message")
    return [decode(part, held) for part in message]
