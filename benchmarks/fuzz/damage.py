"""Damage that any file can have: bytes changed, cut, doubled; values of JSON replaced by odd ones."""

import copy
import random
from typing import Any, Final

NUMBERS: Final = (
    *(0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 1000, 4096, 65535, 65536),
    *(10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31)),
)
FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-5, 1e-45, 1e-38, 3e38, 1e4, float("inf"), float("-inf"), float("nan"))
TEXTS: Final = (
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\n",
        "\r\n",
        "\x1b[2J",
        "\x9b31m",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\udfff\ud800",
    ),
    *("é", "ß", "e\u0301", "💡", "0", "-1", "1e999", "NaN", "null", "true", "../x", "/dev/zero", "~nobody/x", "C:\\x"),
    *("a" * 300, "a" * 5000, "[" * 2000, "{{" * 100, "%s%n", "<|im_end|>", "[EMPTY_1]", "http://[::1", "x @ y"),
)


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """A value of JSON, as Python has it, that few expect."""
    way = draw.randrange(8 if depth < 3 else 4)
    if way == 0:
        return draw.choice(NUMBERS)
    if way == 1:
        return draw.choice(FLOATS)
    if way == 2:
        return draw.choice(TEXTS)
    if way == 3:
        return draw.choice((None, True, False, [], {}, 10**30, 10**299, -(10**400), 10**4200))
    if way == 4:
        return [odd_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if way == 5:
        return {draw.choice(TEXTS): odd_value(draw, depth + 1) for _ in range(draw.randrange(4))}
    if way == 6:
        value: Any = draw.choice((1, "x", {}))
        for _ in range(draw.choice((2, 60, 150, 250))):
            value = [value] if draw.random() < 0.5 else {"a": value}
        return value
    return [draw.choice((0, "x", None))] * draw.choice((10, 300, 5000))


def damaged_value(draw: random.Random, value: Any, n: int = 1) -> Any:
    """A copy of a JSON value in which some places are replaced, removed, renamed, doubled or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(n):
        holders = [place for place in _holders(value) if place]
        if not holders or draw.random() < 0.02:
            value = odd_value(draw)
            continue
        holder = draw.choice(holders)
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        way = draw.randrange(6)
        if way <= 1:
            holder[key] = odd_value(draw)
        elif way == 2:
            del holder[key]
        elif way == 3:
            holder[key] = [holder[key]] if draw.random() < 0.5 else {"x": holder[key]}
        elif isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), draw.choice(holder))
        elif way == 4:
            holder[draw.choice(TEXTS)] = holder.pop(key)
        else:
            holder[key] = draw.choice(list(holder.values()))
    return value


def _holders(value: Any) -> list[Any]:
    found: list[Any] = []
    left = [value]
    while left and len(found) < 2000:
        one = left.pop()
        if isinstance(one, dict | list):
            found.append(one)
            left += one.values() if isinstance(one, dict) else one
    return found


def damaged_bytes(draw: random.Random, data: bytes, n: int | None = None) -> bytes:
    """A copy in which bytes are changed, cut out, doubled, put in, or the end is missing."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16)) if n is None else n):
        at = draw.randrange(len(changed) + 1)
        way = draw.randrange(7)
        if way <= 2 and at < len(changed):
            changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, changed[at] ^ (1 << draw.randrange(8))))
        elif way == 3:
            changed[at : at + 8] = draw.choice(NUMBERS).to_bytes(9, "little", signed=True)[:8] if at % 2 else b""
        elif way == 4:
            changed[at:at] = changed[at : at + draw.randrange(64)]
        elif way == 5:
            changed[at:at] = draw.randbytes(draw.choice((1, 2, 8, 33)))
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed)
