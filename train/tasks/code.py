"""Python functions: MBPP's training and validation tasks (CC BY 4.0), and Alpaca-style rows.

MBPP's own split: task 1-10 prompts, 11-510 test, 511-600 validation, 601-974 train. Only 511-974 are trained on.
"""

from ...edge.datasets.prompts import mbpp_messages, user_message
from ...edge.files.read import is_text
from ..data.examples import Pair, Row, asked_of, text_of
from ..data.task import Skip, Task

MBPP_TRAINABLE = range(511, 975)


def fenced(code: str) -> str:
    """Code as it is answered: LF line ends, tabs as four spaces, no trailing blanks, in a python fence."""
    lines = [line.rstrip() for line in code.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4).split("\n")]
    body = "\n".join(lines).strip("\n")
    return f"```python\n{body}\n```"


def pair(row: Row) -> Pair:
    """The fenced code is the completion."""
    if {"text", "code", "test_list", "task_id"} <= row.keys():
        if row["task_id"] not in MBPP_TRAINABLE:
            raise Skip("MBPP's prompt and test tasks (1-510)")
        tests = row["test_list"]
        if not isinstance(tests, list) or not tests or not is_text(tests[0]):
            raise Skip("no test")
        return Pair(mbpp_messages(text_of(row, "text"), tests), fenced(text_of(row, "code")))
    if {"instruction", "output"} <= row.keys():
        asked, output = asked_of(row), text_of(row, "output").strip()
        if not asked or not output:
            raise Skip("no instruction or no output")
        return Pair(user_message(asked), output if "```" in output else fenced(output))
    raise Skip("neither a row of MBPP nor Alpaca-style")


TASK = Task(
    name="code",
    about="Python functions from a description and a test (MBPP), or Alpaca-style instructions",
    pair=pair,
    defaults={"max_tokens": 320, "batch": 8, "lr": 5e-4, "epochs": 2.0, "held_out": 24},
)
