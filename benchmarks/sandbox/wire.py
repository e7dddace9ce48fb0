"""What the two processes of the sandbox say to each other: frames of pickled plain values over pipes.

The judge unpickles what untrusted code wrote, so its reader knows a list of harmless classes and nothing else; the
worker turns results into such values (`plain`) before it sends them.
"""

import io
import itertools
import os
import pickle
import struct
from collections.abc import Iterator
from typing import Any

# Bound before untrusted code runs, which may set the names in `os` to anything
_write, _read = os.write, os.read
MAX_FRAME_BYTES = 16 << 20
MAX_ITEMS = 1_000_000
ALLOWED = {
    "builtins": {"set", "frozenset", "complex", "bytearray", "range", "slice"},
    "collections": {"OrderedDict", "Counter", "deque"},
    "datetime": {"date", "time", "datetime", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a result of the class {module}.{name} cannot be judged")


def plain(value: Any) -> Any:
    """`value` in classes that the judge knows: subclasses of containers become these, iterators are gone through."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, tuple):
        return tuple([plain(part) for part in value])
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return (set if isinstance(value, set) else frozenset)(plain(part) for part in value)
    if isinstance(value, dict):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    return value


def drain(value: Any) -> tuple[str, Any]:
    """What a result is ("value", "iterator", "keys", "items") and its plain value or items; `restore` takes it back."""
    kinds: dict[type, str] = {type({}.keys()): "keys", type({}.items()): "items", type({}.values()): "iterator"}
    kind = kinds.get(type(value)) or ("iterator" if isinstance(value, Iterator) else "value")
    if kind == "value":
        return kind, plain(value)
    return kind, [plain(part) for part in itertools.islice(value, MAX_ITEMS)]


def restore(kind: str, value: Any) -> Any:
    """The result that `drain` took apart; a view is again a view of a dict.

    Raises:
        ValueError: no such kind.
    """
    match kind:
        case "value":
            return value
        case "iterator":
            return iter(value)
        case "keys":
            return dict.fromkeys(value).keys()
        case "items":
            return dict(value).items()
    raise ValueError("not a result")


def send(handle: int, *message: Any) -> None:
    """Writes one frame."""
    body = pickle.dumps(message, protocol=4)
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


def receive(handle: int, *, trusted: bool) -> tuple[Any, ...]:
    """Reads one frame.

    Raises:
        EOFError: the other side has ended.
        pickle.UnpicklingError: the frame is too long, or holds something that is not allowed.
    """
    (length,) = struct.unpack("=I", _exactly(handle, 4))
    if length > MAX_FRAME_BYTES:
        raise pickle.UnpicklingError("a result is too large to be judged")
    body = _exactly(handle, length)
    message = pickle.loads(body) if trusted else _Reader(io.BytesIO(body)).load()
    if not isinstance(message, tuple) or not message:
        raise pickle.UnpicklingError("not a message")
    return message
