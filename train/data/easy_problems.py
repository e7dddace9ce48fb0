"""Easy word problems of our own making: one or two steps, worked out in GSM8K's style, the same for the same seed.

    next(easy_problems(1, seed=7))
    # {"question": "Mia has 14 shells. Omar gives Mia 9 more. How many ...", "answer": "Mia has 14 + 9 = 23 ..."}

A small model is best at short problems, and public sets have few of them. A template names its arithmetic (`kind`);
numbers are drawn so that every step is a whole number and none is negative. `{d}` is a number that doesn't matter.
All texts are written here; no test set was looked at for them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .easy_templates import CONTAINERS, NAMES, TEMPLATES, THINGS, Template

Draw = dict[str, int]


def _large(rng: random.Random, low: int = 2) -> int:
    return rng.randint(low, rng.choice((12, 20, 50, 100, 100, 400)))


def _small(rng: random.Random) -> int:
    return rng.randint(2, rng.choice((6, 10, 12, 20)))


def _add(rng: random.Random) -> Draw:
    a, b = _large(rng), _large(rng)
    return {"a": a, "b": b, "y": a + b}


def _sub(rng: random.Random) -> Draw:
    b, y = _large(rng), _large(rng, 1)
    return {"a": b + y, "b": b, "y": y}


def _mul(rng: random.Random) -> Draw:
    a, b = _small(rng), rng.choice((_small(rng), rng.randint(2, 60)))
    return {"a": a, "b": b, "y": a * b}


def _div(rng: random.Random) -> Draw:
    b, y = _small(rng), rng.choice((_small(rng), rng.randint(2, 40)))
    return {"a": b * y, "b": b, "y": y}


def _add_add(rng: random.Random) -> Draw:
    a, b, c = _large(rng), _large(rng), _large(rng)
    return {"a": a, "b": b, "c": c, "x": a + b, "y": a + b + c}


def _add_sub(rng: random.Random) -> Draw:
    a, b = _large(rng, 3), _large(rng)
    c = rng.randint(1, a + b - 1)
    return {"a": a, "b": b, "c": c, "x": a + b, "y": a + b - c}


def _sub_add(rng: random.Random) -> Draw:
    b, x, c = _large(rng), _large(rng, 1), _large(rng)
    return {"a": b + x, "b": b, "c": c, "x": x, "y": x + c}


def _sub_sub(rng: random.Random) -> Draw:
    b, c, y = _large(rng), _large(rng), _large(rng, 1)
    return {"a": b + c + y, "b": b, "c": c, "x": c + y, "y": y}


def _mul_add(rng: random.Random) -> Draw:
    a, b, c = _small(rng), _small(rng), _large(rng)
    return {"a": a, "b": b, "c": c, "x": a * b, "y": a * b + c}


def _mul_sub(rng: random.Random) -> Draw:
    a, b = _small(rng), _small(rng)
    c = rng.randint(1, a * b - 1)
    return {"a": a, "b": b, "c": c, "x": a * b, "y": a * b - c}


def _add_mul(rng: random.Random) -> Draw:
    a, b, c = _small(rng), _small(rng), _small(rng)
    return {"a": a, "b": b, "c": c, "x": a + b, "y": (a + b) * c}


def _sub_mul(rng: random.Random) -> Draw:
    b, x, c = _small(rng), _small(rng), _small(rng)
    return {"a": b + x, "b": b, "c": c, "x": x, "y": x * c}


def _add_div(rng: random.Random) -> Draw:
    c, y = _small(rng), _small(rng)
    a = rng.randint(1, c * y - 1)
    return {"a": a, "b": c * y - a, "c": c, "x": c * y, "y": y}


def _sub_div(rng: random.Random) -> Draw:
    c, y, b = _small(rng), _small(rng), _large(rng)
    return {"a": c * y + b, "b": b, "c": c, "x": c * y, "y": y}


def _mul_mul(rng: random.Random) -> Draw:
    a, b, c = rng.randint(2, 10), rng.randint(2, 10), rng.randint(2, 12)
    return {"a": a, "b": b, "c": c, "x": a * b, "y": a * b * c}


def _mul_div(rng: random.Random) -> Draw:
    x, c = rng.randint(2, 10), rng.randint(2, 8)
    b = rng.randint(2, 9)
    return {"a": x * c, "b": b, "c": c, "x": x * c * b, "y": x * b}


def _half_add(rng: random.Random) -> Draw:
    x = _large(rng, 1)
    return {"a": 2 * x, "x": x, "y": 3 * x}


def _twice_add(rng: random.Random) -> Draw:
    a, b = _large(rng), rng.randint(2, 5)
    return {"a": a, "b": b, "x": a * b, "y": a * b + a}


def _more_add(rng: random.Random) -> Draw:
    a, b = _large(rng), _large(rng)
    return {"a": a, "b": b, "x": a + b, "y": a + a + b}


KINDS: dict[str, Callable[[random.Random], Draw]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "add_add": _add_add,
    "add_sub": _add_sub,
    "sub_add": _sub_add,
    "sub_sub": _sub_sub,
    "mul_add": _mul_add,
    "mul_sub": _mul_sub,
    "add_mul": _add_mul,
    "sub_mul": _sub_mul,
    "add_div": _add_div,
    "sub_div": _sub_div,
    "mul_mul": _mul_mul,
    "mul_div": _mul_div,
    "half_add": _half_add,
    "twice_add": _twice_add,
    "more_add": _more_add,
}


@dataclass(frozen=True)
class _Words:
    N: str
    M: str
    things: str
    others: str
    boxes: str
    box: str


def _words(rng: random.Random) -> _Words:
    first, second = rng.sample(NAMES, 2)
    things, others = rng.sample(THINGS, 2)
    box, boxes = rng.choice(CONTAINERS)
    return _Words(first, second, things, others, boxes, box)


def fill(template: Template, rng: random.Random) -> dict[str, Any]:
    """One problem of a template as a GSM8K-like row."""
    numbers = KINDS[template.kind](rng)
    values: dict[str, Any] = {**vars(_words(rng)), **numbers, "d": _large(rng)}
    return {
        "question": template.question.format(**values),
        "answer": template.answer.format(**values) + f"\n#### {numbers['y']}",
    }


def easy_problems(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """`n` rows with `question` and `answer`; every template comes up about equally often."""
    rng = random.Random(f"easy problems/{seed}")
    order: list[Template] = []
    for _ in range(n):
        if not order:
            order = rng.sample(TEMPLATES, len(TEMPLATES))
        yield fill(order.pop(), rng)
