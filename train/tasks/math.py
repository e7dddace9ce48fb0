"""Word problems worked out step by step: GSM8K train (MIT), and easy problems of our own making.

A completion keeps GSM8K's last line, `#### N`; its calculator marks `<<48/2=24>>` are removed.
"""

import re

from ...edge.prompts import gsm8k_messages
from ..easy_problems import easy_problems
from ..examples import Pair, Row
from ..task import Skip, Task

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def without_calculator_marks(answer: str) -> str:
    """`48/2 = <<48/2=24>>24` -> `48/2 = 24`."""
    return _CALCULATOR.sub("", answer)


def pair(row: Row) -> Pair:
    """The worked answer is the completion."""
    if not {"question", "answer"} <= row.keys():
        raise Skip("not a row of GSM8K")
    answer = without_calculator_marks(row["answer"]).strip()
    if "\n#### " not in answer:
        raise Skip("no final line '#### N'")
    return Pair(gsm8k_messages(row["question"]), answer)


TASK = Task(
    name="math",
    about="word problems, worked out step by step (GSM8K)",
    pair=pair,
    defaults={"max_tokens": 256, "batch": 8, "lr": 1e-3},
    made=easy_problems,
)
