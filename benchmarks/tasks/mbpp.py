"""MBPP test: 500 small Python functions (task_id 11 to 510), pass@1 of one greedy answer (Austin et al. 2021).

The model sees the text and the first test; all three asserts must hold, in the sandbox of `sandbox`.
"""

from pathlib import Path

from ...edge.datasets.prompts import mbpp_messages
from ..sandbox.child import tested_names
from ..sandbox.sandbox import run_program
from .benchmark import Benchmark, Item, Metric, json_lines, refuse_rows
from .code_block import asserts, code_of, definitions


def load(data: Path) -> list[Item]:
    """The test split of `mbpp/mbpp.jsonl`.

    Raises:
        InputError: the tests of a row assert nothing, so that every program would pass.
    """
    path = data / "mbpp" / "mbpp.jsonl"
    rows = json_lines(path, "text", "test_setup_code", numbers=["task_id"], lists=["test_list"])
    items = [
        Item(
            f"mbpp-{row['task_id']}",
            mbpp_messages(row["text"], row["test_list"]),
            {"tests": row["test_list"], "setup": row["test_setup_code"]},
        )
        for row in rows
        if 11 <= row["task_id"] <= 510
    ]
    refuse_rows(
        path, [item.id for item in items if not asserts("\n".join(item.truth["tests"]))], "tests without an assert"
    )
    return items


def score(item: Item, text: str) -> dict[str, float]:
    """1 if the answer's code passes every test."""
    verdict = run_program(program_of(item, text), item.truth["tests"], setup=item.truth["setup"])
    return {"pass@1": float(verdict.passed)}


def program_of(item: Item, text: str) -> str:
    """The program in an answer to one of this module's items."""
    names = tested_names(item.truth["tests"])
    return definitions(code_of(text, names), names)


BENCHMARK = Benchmark(
    name="mbpp",
    kind="code",
    title="MBPP test",
    files=("mbpp/mbpp.jsonl",),
    max_tokens=200,
    metrics=(Metric("pass@1", True, "pass@1", k=1), Metric("pass@10", True, "pass@10", k=10, of="pass@1")),
    load=load,
    score=score,
    protocol="0-shot, chat template, text and first test shown, one greedy answer; its ```python block that defines "
    "the function (else a bare block, else its lines), without statements that define nothing (as EvalPlus), must pass "
    "all three asserts: standard library only, 5 s of CPU, 512 MiB, no network.",
    runs_code=True,
)
