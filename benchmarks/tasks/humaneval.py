"""HumanEval: 164 Python functions from signature and docstring, pass@1 and pass@10 (Chen et al. 2021).

Two ways of asking: "humaneval" puts the unfinished function into the chat template and takes the answer's code block;
"humaneval-raw" lets the model go on with the bare text, as the paper does, and suits bases without a chat format.
An answer becomes a completion as in the official samples.jsonl; program and tests then run in the sandbox.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...edge.datasets.prompts import user_message
from ..sandbox.sandbox import Limits, Verdict, run_program
from .benchmark import Benchmark, Decoding, Item, Metric, json_lines, refuse_rows
from .code_block import asserts, code_of, defined_names, definitions

PROBLEM_KEYS = ("task_id", "prompt", "entry_point", "test")
# The official 3 s, as CPU time, so that a busy machine changes no score; sleepers end by the clock
LIMITS = Limits(cpu_s=3, run_s=9.0)
# The paper's, 3.1: what follows a finished function
RAW_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FILE = "humaneval/HumanEval.jsonl.gz"


def read_problems(path: Path) -> dict[str, dict[str, Any]]:
    """The problems of a `HumanEval.jsonl` or `.jsonl.gz`, by task_id.

    Raises:
        InputError: it cannot be read, or a row lacks a key.
    """
    return {row["task_id"]: row for row in json_lines(path, *PROBLEM_KEYS)}


def judging_problems(path: Path) -> dict[str, dict[str, Any]]:
    """The same, to be scored.

    Raises:
        InputError: as `read_problems`; and the tests of a row assert nothing, so that every program would pass.
    """
    problems = read_problems(path)
    refuse_rows(path, [name for name, row in problems.items() if not asserts(row["test"])], "tests without an assert")
    return problems


def humaneval_text(prompt: str) -> str:
    """What the chat model is asked."""
    return f"Complete this Python function. Answer with the whole function.\n```python\n{prompt.strip()}\n```"


def completion_of(problem: Mapping[str, str], text: str) -> str:
    """What an answer adds to the problem's prompt.

    A code block that defines the function is put behind the prompt, where it replaces the unfinished one; the imports
    and helpers of the prompt stay, and the model's own trials are left out. Anything else is taken as the rest of the
    function.
    """
    name = problem["entry_point"]
    code = code_of(text, [name])
    return f"\n\n{definitions(code, [name])}" if _defines(code, name) or not code[:1].isspace() else code


def _defines(code: str, name: str) -> bool:
    return name in defined_names(code) or any(line.startswith(f"def {name}(") for line in code.splitlines())


def _given(prompt: str) -> str:
    """The prompt as a module: where its last function has no docstring, it gets a body."""
    try:
        compile(prompt, "<prompt>", "exec")
    except SyntaxError:
        return f"{prompt}    pass\n"
    return prompt


def check(problem: Mapping[str, str], completion: str, limits: Limits = LIMITS) -> Verdict:
    """Runs prompt and completion against the problem's tests, as the official harness does, in the sandbox.

    The helpers that a prompt defines are the tests' own copies; only the function asked for is the program's.
    """
    name = problem["entry_point"]
    return run_program(
        problem["prompt"] + completion + "\n",
        [f"{problem['test']}\ncheck({name})"],
        names=[name],
        given=_given(problem["prompt"]),
        limits=limits,
    )


def _load(data: Path, raw: bool) -> list[Item]:
    problems = judging_problems(data / _FILE)
    return [
        Item(
            task_id,
            [] if raw else user_message(humaneval_text(row["prompt"])),
            {key: row[key] for key in PROBLEM_KEYS},
            raw=row["prompt"] if raw else None,
        )
        for task_id, row in problems.items()
    ]


def load(data: Path) -> list[Item]:
    """The problems, asked through the chat template."""
    return _load(data, raw=False)


def load_raw(data: Path) -> list[Item]:
    """The problems, to be gone on with."""
    return _load(data, raw=True)


def answer_completion(item: Item, text: str) -> str:
    """The completion of an answer to one of this module's items."""
    return text if item.raw is not None else completion_of(item.truth, text)


def score(item: Item, text: str) -> dict[str, float]:
    """1 if the function passes every test."""
    return {"passed": float(check(item.truth, answer_completion(item, text)).passed)}


def samples(items: Iterable[Item], texts: Mapping[str, str]) -> list[dict[str, str]]:
    """Rows of the official samples.jsonl: the items that have an answer, with its completion."""
    return [
        {"task_id": item.problem or item.id, "completion": answer_completion(item, texts[item.id])}
        for item in items
        if item.id in texts
    ]


BENCHMARK = Benchmark(
    name="humaneval",
    kind="code",
    title="HumanEval",
    files=(_FILE,),
    max_tokens=512,
    metrics=(
        Metric("pass@1", True, "pass@1", k=1, of="passed"),
        Metric("pass@10", True, "pass@10", k=10, of="passed"),
    ),
    load=load,
    score=score,
    protocol="0-shot, chat template, whole function asked for; the answer's ```python block that defines it (else a "
    "bare block, else its lines) behind the prompt, without statements that define nothing (as EvalPlus), must pass "
    "the official tests: standard library only, 3 s of CPU, 512 MiB, no network; pass@k is the unbiased estimate, its "
    "interval a bootstrap over problems.",
    decoding=Decoding(samples=20, temperature=0.2, top_p=0.95),
    runs_code=True,
)
RAW = dataclasses.replace(
    BENCHMARK,
    name="humaneval-raw",
    title="HumanEval, without template",
    load=load_raw,
    stop=RAW_STOPS,
    protocol="0-shot, no chat template: the model goes on with the prompt until a new top-level statement (the paper's "
    "stops); run and estimated as humaneval.",
)
