"""From answer files to the report: every cell with n and interval, every adapter against the base on the same items.

    report = make_report(cells, folder, about, made_at="2026-11-24T19:40:00Z", command="slm-edge bench ...")
    report_text.markdown(report), report_html.html(report)

Scores are read from the answers as they were written; nothing is generated here.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...edge.onnx.engine import runtime
from ...edge.pack.pack import Pack
from ..scores.answers import AnswerFile, Record, identity_sha256
from ..scores.cells import AUTO, Cell, pack_template
from ..scores.energy import energy_rows
from ..scores.runner import with_all_scores
from ..stats import Interval, Paired, mean, paired_means, paired_shares, problem_value, share
from ..tasks.benchmark import Metric

REPORT_SCHEMA = 1
Key = tuple[str, str | None]  # task, adapter


def complete_prefix(cell: Cell, answers: AnswerFile) -> list[Record]:
    """The answers to count: those of the first items of the running order up to the first one without an answer.

    A cell that was stopped has more answers, but short ones among the last, because they end first: counting these
    would favour them. The order is random, so its beginning is a fair sample.
    """
    counted: list[Record] = []
    for item in cell.items[: cell.n]:
        record = answers.records.get(item.id)
        if record is None:
            break
        counted.append(with_all_scores(cell, item, record))
    # Of the last problem only some samples may be there
    return counted[: len(counted) // cell.decoding.samples * cell.decoding.samples]


def values_of(cell: Cell, records: Sequence[Record], metric: Metric) -> list[float]:
    """A metric's value for each problem, in running order: the answer's score, or pass@k of its samples.

    Empty if there are fewer than k samples of a problem.
    """
    scores = [record.scores[metric.source] for record in records]
    if metric.k is None:
        return scores
    size = cell.decoding.samples
    found = [problem_value(scores[at : at + size], metric.k) for at in range(0, len(scores), size)]
    return [value for value in found if value is not None]


def _is_share(cell: Cell, metric: Metric) -> bool:
    """Whether a problem's value is 0 or 1: pass@k of several samples lies between."""
    return metric.binary and cell.decoding.samples == 1


def _interval(cell: Cell, metric: Metric, values: Sequence[float]) -> Interval:
    return (share if _is_share(cell, metric) else mean)(values)


def _cell_report(cell: Cell, answers: AnswerFile, records: list[Record]) -> dict[str, Any]:
    tokens = sum(record.n_tokens for record in records)
    wall_s = answers.wall_s()
    found = {metric.name: values_of(cell, records, metric) for metric in cell.task.metrics}
    by: dict[str, int] = {}
    for record in records:
        if record.by is not None:
            by[record.by] = by.get(record.by, 0) + 1
    row: dict[str, Any] = {
        "task": cell.task.name,
        "adapter": cell.adapter_name,
        "own": cell.is_own,
        "n": len(records) // cell.decoding.samples,
        "n_samples": cell.decoding.samples,
        "n_wanted": cell.n // cell.decoding.samples,
        "n_test_set": len(cell.items) // cell.decoding.samples,
        "decoding": {
            "temperature": cell.decoding.temperature,
            "top_p": cell.decoding.top_p,
            "seed": None if cell.decoding.greedy else cell.seed,
        },
        "metrics": {
            metric.name: _interval(cell, metric, found[metric.name]).as_dict()
            for metric in cell.task.metrics
            if found[metric.name]
        },
        "n_prompt_tokens": sum(record.n_prompt_tokens for record in records),
        "n_tokens": tokens,
        "tokens_per_answer": tokens / len(records),
        "cut_at_cap": sum(1 for record in records if record.n_tokens >= cell.max_tokens) / len(records),
        "max_tokens": cell.max_tokens,
        "wall_s": round(wall_s, 3),
        "tokens_per_s": round(sum(record.n_tokens for record in answers.records.values()) / wall_s, 1)
        if wall_s
        else None,
        "identity": dict(cell.identity),
        "identity_sha256": identity_sha256(cell.identity),
        "answers": answers.path.name,
    }
    # The router's column takes over answers, which costs nothing; an endpoint's machine is not this one
    is_of_a_pack = cell.identity["base_sha256"] is not None and not cell.column.is_auto
    row["energy"] = energy_rows(answers.records.values(), cell.task.metrics[0]) if is_of_a_pack else []
    if by:
        row["by"] = by
    if cell.task.way != "answers":
        del row["cut_at_cap"]
    return row


def _compare(metric: Metric, cell: Cell, first: Sequence[float], second: Sequence[float]) -> Paired:
    n = min(len(first), len(second))
    compare = paired_shares if _is_share(cell, metric) else paired_means
    return compare(first[:n], second[:n])


def about_pack(pack: Pack, engine: str = "llama", day: datetime.date | None = None) -> dict[str, Any]:
    """What was measured, with its hashes; the chat template's where the base is at hand, and the day of its prompts."""
    return {
        **({"onnxruntime": runtime().__version__} if engine == "onnx" else {}),
        "pack": {
            "name": pack.name,
            "base": {"file": pack.base.file_name, "sha256": pack.base.sha256, "fingerprint": pack.base.fingerprint},
            "adapters": {name: adapter.sha256 for name, adapter in pack.adapters.items()},
            "files": dict(pack.manifest.files),
        },
        **_about_template(pack, day or datetime.date.today()),
    }


def _about_template(pack: Pack, day: datetime.date) -> dict[str, Any]:
    template = pack_template(pack)
    if template is None:
        return {"chat_template_sha256": None}
    about: dict[str, Any] = {"chat_template_sha256": hashlib.sha256(template.source.encode()).hexdigest()}
    if template.is_dated:
        about["prompts_of_the_day"] = day.isoformat()
    return about


def make_report(
    cells: Sequence[Cell], folder: Path, about: Mapping[str, Any], *, made_at: str, command: str
) -> dict[str, Any]:
    """The report as JSON data. Cells without a single counted answer are left out.

    Args:
        folder: the answer files.
        about: what was measured: `about_pack`, or the endpoint with what it said of itself.
        made_at, command: stated in it.
    """
    rows: list[dict[str, Any]] = []
    counted: dict[Key, tuple[Cell, list[Record]]] = {}
    for cell in cells:
        with AnswerFile(folder, cell.identity) as answers:
            records = complete_prefix(cell, answers)
            if records:
                rows.append(_cell_report(cell, answers, records))
                counted[cell.task.name, cell.adapter_name] = cell, records
    comparisons: list[dict[str, Any]] = []
    for cell, records in counted.values():
        against: list[str | None] = [] if cell.adapter_name is None else [None]
        if cell.column.is_auto:
            against += [name for task, name in counted if task == cell.task.name and counted[task, name][0].is_own]
        for name in against:
            if (cell.task.name, name) in counted:
                comparisons += _comparisons(cell, records, name, counted[cell.task.name, name][1])
    tasks = {cell.task.name: cell.task for cell in cells}
    return {
        "schema": REPORT_SCHEMA,
        "made_at": made_at,
        "command": command,
        "slm_edge": metadata.version("slm-edge"),
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        **about,
        "tasks": {
            name: {
                "title": task.title,
                "kind": task.kind,
                "protocol": task.protocol,
                "metrics": {metric.name: {"title": metric.title, "binary": metric.binary} for metric in task.metrics},
            }
            for name, task in tasks.items()
        },
        "cells": rows,
        "comparisons": comparisons,
        "choice": choice_matrix(counted),
    }


def _comparisons(cell: Cell, records: list[Record], name: str | None, others: list[Record]) -> list[dict[str, Any]]:
    found = []
    for metric in cell.task.metrics:
        first, second = values_of(cell, others, metric), values_of(cell, records, metric)
        if not first or not second:
            continue
        found.append(
            {
                "task": cell.task.name,
                "adapter": cell.adapter_name,
                "against": name,
                "own": cell.is_own,
                "metric": metric.name,
                **_compare(metric, cell, first, second).as_dict(),
            }
        )
    return found


def choice_matrix(counted: Mapping[Key, tuple[Cell, list[Record]]]) -> list[dict[str, Any]]:
    """What choosing right is worth, by task: the main metric of base, router, oracle and wrong adapters.

    oracle: the adapter made for the task. These three are of the same items, as many as all of them have; wrong: the
    mean over all other adapters, and the worst of them, each on the items that it has.
    """
    found = []
    for task in dict.fromkeys(task for task, _ in counted):
        of = [pair for (name, _), pair in counted.items() if name == task]
        own = next((cell.adapter_name for cell, _ in of if cell.is_own), None)
        metric = next((one for one in of[0][0].task.metrics if values_of(*of[0], one)), None)
        if own is None or metric is None:
            continue
        values = {cell.adapter_name: values_of(cell, records, metric) for cell, records in of}
        same = {name: key for name, key in (("base", None), ("router", AUTO), ("oracle", own)) if key in values}
        n = min(len(values[key]) for key in same.values())

        def rate(key: str | None, n: int, values: Mapping[str | None, list[float]] = values) -> dict[str, Any]:
            return {"value": sum(values[key][:n]) / n, "n": n, "adapter": key}

        wrong = [rate(key, len(values[key])) for key in values if key not in (None, AUTO, own)]
        found.append(
            {
                "task": task,
                "metric": metric.name,
                **{name: rate(same[name], n) if name in same else None for name in ("base", "router", "oracle")},
                "wrong": {
                    "value": sum(one["value"] for one in wrong) / len(wrong),
                    "n": min(one["n"] for one in wrong),
                    "worst": min(wrong, key=lambda one: float(one["value"])),
                }
                if wrong
                else None,
            }
        )
    return found


def card_scores(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each task card says under `scores`: task -> n, and by metric the value, its interval, the base's value."""
    by_cell = {(row["task"], row["adapter"]): row for row in report["cells"]}
    scores: dict[str, dict[str, Any]] = {}
    for (task, adapter), row in by_cell.items():
        if adapter is None or adapter == AUTO:
            continue
        entry: dict[str, Any] = {"n": row["n"], "measured": report["made_at"][:10]}
        base = by_cell.get((task, None))
        for metric, found in row["metrics"].items():
            entry[metric] = {key: round(found[key], 4) for key in ("value", "low", "high")}
            if base is not None and metric in base["metrics"]:
                entry[metric]["base"] = round(base["metrics"][metric]["value"], 4)
        scores.setdefault(adapter, {})[task] = entry
    return scores
