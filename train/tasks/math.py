"""Word problems worked out step by step: GSM8K train (MIT), and easy problems and drills of our own making.

A completion keeps GSM8K's last line, `#### N`; its calculator marks `<<48/2=24>>` are removed.
"""

import re
from collections.abc import Iterator

from ...edge.datasets.prompts import gsm8k_messages
from ..data.arithmetic_drills import arithmetic_drills
from ..data.easy_problems import easy_problems
from ..data.examples import Pair, Row, text_of
from ..data.task import Skip, Task

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def without_calculator_marks(answer: str) -> str:
    """`48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    return _CALCULATOR.sub("", answer)


def pair(row: Row) -> Pair:
    """The worked answer is the completion."""
    if not {"question", "answer"} <= row.keys():
        raise Skip("not a row of GSM8K")
    answer = without_calculator_marks(text_of(row, "answer")).strip()
    if "\n#### " not in answer:
        raise Skip("no final line '#### N'")
    return Pair(gsm8k_messages(text_of(row, "question")), answer)


def made(n: int, seed: int) -> Iterator[Row]:
    """Easy word problems, and for every two of them one drill of bare arithmetic."""
    n_drills = n // 3
    yield from easy_problems(n - n_drills, seed)
    yield from arithmetic_drills(n_drills, seed)


TASK = Task(
    name="math",
    about="word problems, worked out step by step (GSM8K)",
    pair=pair,
    defaults={"max_tokens": 256, "batch": 8, "lr": 1e-3},
    made=made,
)
