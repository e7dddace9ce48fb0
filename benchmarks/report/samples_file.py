"""The official samples.jsonl of HumanEval: written from our answers, and judged as the official script does.

    results = evaluate(read_samples(path), problems)
    summary(results)["pass@1"]

A row is {"task_id": "HumanEval/0", "completion": "    return 1\\n"}; judged rows get "result" and "passed".
"""

import concurrent.futures
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.files.atomic import atomic_file, make_folder
from ...edge.system.machine import usable_cpus
from ..sandbox.sandbox import Limits
from ..scores.answers import AnswerFile
from ..scores.cells import Cell
from ..stats import mean, problem_value, share
from ..tasks.benchmark import json_lines
from ..tasks.humaneval import LIMITS, check, samples
from .report import complete_prefix

KS = (1, 10, 100)


def write_samples(cell: Cell, out: Path) -> Path | None:
    """Writes `samples/TASK.COLUMN.jsonl` with the completions of a cell's answers; None if there are none."""
    with AnswerFile(out / "answers", cell.identity) as answers:
        texts = {record.id: record.text for record in complete_prefix(cell, answers)}
        name = answers.path.name.rsplit(".", 2)[0]
    rows = samples(cell.items, texts)
    return write_rows(make_folder(out / "samples") / f"{name}.jsonl", rows) if rows else None


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes JSON Lines, atomically."""
    with atomic_file(path) as aside:
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_samples(path: Path, problems: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a samples.jsonl.

    Raises:
        InputError: a row is not a sample, or names a problem that is not there; all such problems are named.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    rows = list(json_lines(path, "task_id", "completion"))
    unknown = sorted({str(row["task_id"]) for row in rows} - set(problems))
    if unknown:
        raise InputError("has samples of problems that the problem file lacks", where=path, problems=unknown)
    if not rows:
        raise InputError("has no samples", where=path)
    return rows


def evaluate(
    rows: Sequence[Mapping[str, Any]],
    problems: Mapping[str, Mapping[str, str]],
    *,
    limits: Limits = LIMITS,
    workers: int | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Every row with "result" and "passed", in the order given.

    Args:
        workers: programs run at once; None: one for each CPU.

    Raises:
        UnsupportedError: this system cannot confine the programs.
    """

    def judged(row: Mapping[str, Any]) -> dict[str, Any]:
        verdict = check(problems[row["task_id"]], row["completion"], limits)
        on_done()
        result = "passed" if verdict.passed else f"failed: {verdict.reason}"
        return {**row, "result": result, "passed": verdict.passed}

    with concurrent.futures.ThreadPoolExecutor(workers or usable_cpus()) as pool:
        return list(pool.map(judged, rows))


def summary(results: Sequence[Mapping[str, Any]], ks: Sequence[int] = KS) -> dict[str, Any]:
    """pass@k with its interval for each k that every problem has samples for; "n" problems, "n_samples" in all."""
    by_problem: dict[str, list[float]] = {}
    for row in results:
        by_problem.setdefault(row["task_id"], []).append(float(row["passed"]))
    found: dict[str, Any] = {"n": len(by_problem), "n_samples": len(results)}
    for k in ks:
        values = [problem_value(scores, k) for scores in by_problem.values()]
        whole = [value for value in values if value is not None]
        if len(whole) == len(values):
            single = all(len(scores) == 1 for scores in by_problem.values())
            found[f"pass@{k}"] = (share if single else mean)(whole).as_dict()
    return found
