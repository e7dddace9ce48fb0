"""MBPP test: 500 small Python functions (task_id 11 to 510), pass@1 of one greedy answer (Austin et al. 2021).

The model sees the text and the first test; all three asserts must hold, in the sandbox of `code_sandbox`.
"""

import re
from pathlib import Path

from ..edge.prompts import mbpp_messages
from .code_sandbox import run_program
from .task import Item, Metric, Task, json_lines

# A fence that the answer ends without closing counts: it was cut at the token cap
_PYTHON_FENCE = re.compile(r"```[ \t]*(?:python3?|py)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_BARE_FENCE = re.compile(r"```[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(text: str) -> str:
    """The code of an answer: its first ```python block, else its first ``` block without a language, else all of it."""
    found = _PYTHON_FENCE.search(text) or _BARE_FENCE.search(text)
    return found.group(1) if found else text


def load(data: Path) -> list[Item]:
    """The test split of `mbpp/mbpp.jsonl`."""
    rows = json_lines(data / "mbpp" / "mbpp.jsonl", "text", "task_id", "test_list", "test_setup_code")
    return [
        Item(
            f"mbpp-{row['task_id']}",
            mbpp_messages(row["text"], row["test_list"]),
            {"tests": row["test_list"], "setup": row["test_setup_code"]},
        )
        for row in rows
        if 11 <= row["task_id"] <= 510
    ]


def score(item: Item, text: str) -> dict[str, float]:
    """1 where the answer's code passes every test."""
    verdict = run_program(code_of(text), item.truth["tests"], setup=item.truth["setup"])
    return {"pass@1": float(verdict.passed)}


TASK = Task(
    name="mbpp",
    kind="code",
    title="MBPP test",
    files=("mbpp/mbpp.jsonl",),
    max_tokens=200,
    metrics=(Metric("pass@1", True, "pass@1"),),
    load=load,
    score=score,
    protocol="0-shot, chat template, text and first test shown, one greedy answer; its first ```python block (else a "
    "bare block, else the whole) must pass all three asserts: standard library only, 5 s of CPU, 512 MiB, no network.",
)
