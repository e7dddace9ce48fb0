"""Drills of bare arithmetic: a list of calculations and the same list worked out, the same for the same seed.

    next(arithmetic_drills(1, seed=7))
    # {"question": "Work these out.\n36 + 59\n81 - 59", "answer": "36 + 59 = 95\n81 - 59 = 22\n#### 22"}

A small model sets a problem up rightly and then gets 81 - 59 wrong: many sums in few tokens are what it lacks. The
notation changes from row to row as in GSM8K (`3*4=12`, `$3 x 4 = $12`); the last result is the row's answer.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

_REQUESTS = (
    "Work these out.",
    "Calculate each of these.",
    "What are the results?",
    "Do these sums one after the other.",
    "Solve the following.",
)
Sum = tuple[str, str, str, str]  # left, sign, right, result


def _number(rng: random.Random) -> int:
    return rng.randint(1, rng.choice((20, 100, 100, 100, 300, 1000)))


def _add(rng: random.Random) -> Sum:
    a, b = _number(rng), _number(rng)
    return str(a), "+", str(b), str(a + b)


def _subtract(rng: random.Random) -> Sum:
    b, rest = _number(rng), _number(rng)
    return str(b + rest), "-", str(b), str(rest)


def _multiply(rng: random.Random) -> Sum:
    a, b = rng.choice(((12, 12), (12, 12), (100, 9), (300, 5), (30, 30)))
    a, b = rng.randint(2, a), rng.randint(2, b)
    if rng.random() < 0.5:
        a, b = b, a
    return str(a), "*", str(b), str(a * b)


def _multiply_round(rng: random.Random) -> Sum:
    a = rng.randint(2, rng.choice((9, 12, 30)))
    b = rng.randint(2, rng.choice((9, 9, 12))) * rng.choice((10, 10, 100, 1000))
    if rng.random() < 0.3:
        a *= 10
    if rng.random() < 0.5:
        a, b = b, a
    return str(a), "*", str(b), str(a * b)


def _subtract_round(rng: random.Random) -> Sum:
    unit = rng.choice((5, 10, 10, 50, 100))
    b, rest = rng.randint(1, 40) * unit, rng.randint(1, 40) * unit
    return str(b + rest), "-", str(b), str(rest)


def _halve(rng: random.Random) -> Sum:
    b, tenths = rng.choice((2, 2, 4, 5, 10)), rng.randint(1, 200)
    whole = tenths * b
    return f"{whole / 10:g}", "/", str(b), f"{tenths / 10:g}"


def _money(rng: random.Random) -> Sum:
    cents = rng.choice((25, 50, 50, 75, 10, 20)) + 100 * rng.randint(0, 20)
    n = rng.randint(2, 12)
    total = cents * n
    return f"{cents / 100:.2f}", "*", str(n), f"{total / 100:.2f}" if total % 100 else str(total // 100)


def _divide(rng: random.Random) -> Sum:
    b, result = rng.randint(2, rng.choice((10, 10, 12, 20))), rng.randint(2, rng.choice((12, 12, 40, 100)))
    return str(b * result), "/", str(b), str(result)


def _percent(rng: random.Random) -> Sum:
    share, whole = rng.choice((10, 20, 25, 30, 40, 50, 75, 80)), rng.randint(1, 30) * 20
    return f"{share}%", "of", str(whole), str(share * whole // 100)


_KINDS: tuple[tuple[Callable[[random.Random], Sum], int], ...] = (
    (_add, 4), (_subtract, 4), (_multiply, 3), (_divide, 3), (_percent, 1),
    (_multiply_round, 2), (_subtract_round, 2), (_halve, 1), (_money, 1),
)  # fmt: skip


def _written(one: Sum, *, times: str, space: str, dollar: str) -> tuple[str, str]:
    """A calculation and its result in the row's notation."""
    left, sign, right, result = one
    if sign == "of":
        return f"{left} of {dollar}{right}", f"{dollar}{result}"
    gap = " " if times == "x" else space
    return f"{dollar}{left}{gap}{sign.replace('*', times)}{gap}{right}", f"{dollar}{result}"


def arithmetic_drills(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """`n` rows with `question` and `answer`, of 5 to 8 calculations each."""
    rng = random.Random(f"arithmetic drills/{seed}")
    kinds, weights = zip(*_KINDS, strict=True)
    for _ in range(n):
        sums = [kind(rng) for kind in rng.choices(kinds, weights, k=rng.randint(5, 8))]
        style = {
            "times": rng.choice(("*", "*", "x")),
            "space": rng.choice(("", " ")),
            "dollar": rng.choice(("", "", "", "$")),
        }
        written = [_written(one, **style) for one in sums]
        lines = [f"{asked}{style['space']}={style['space']}{result}" for asked, result in written]
        yield {
            "question": "\n".join([rng.choice(_REQUESTS), *(asked for asked, _ in written)]),
            "answer": "\n".join([*lines, f"#### {sums[-1][3]}"]),
        }
