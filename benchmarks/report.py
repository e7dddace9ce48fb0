"""From answer files to the report: every cell with n and interval, every adapter against the base on the same items.

    report = make_report(cells, folder, pack, made_at="2026-11-24T19:40:00Z", command="slm-edge bench ...")
    print(markdown(report))

Scores are read from the answers as they were written; nothing is generated here.
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..edge.pack import Pack
from .answers import AnswerFile, Record, identity_sha256
from .cells import Cell
from .stats import Paired, mean, paired_means, paired_shares, share
from .task import Metric

REPORT_SCHEMA = 1


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
        counted.append(record)
    return counted


def _column(records: Sequence[Record], metric: Metric) -> list[float]:
    return [record.scores[metric.name] for record in records]


def _cell_report(cell: Cell, answers: AnswerFile, records: list[Record]) -> dict[str, Any]:
    tokens = sum(record.n_tokens for record in records)
    return {
        "task": cell.task.name,
        "adapter": cell.adapter_name,
        "own": cell.is_own,
        "n": len(records),
        "n_wanted": cell.n,
        "n_test_set": len(cell.items),
        "metrics": {
            metric.name: (share if metric.binary else mean)(_column(records, metric)).as_dict()
            for metric in cell.task.metrics
        },
        "n_prompt_tokens": sum(record.n_prompt_tokens for record in records),
        "n_tokens": tokens,
        "tokens_per_answer": tokens / len(records),
        "cut_at_cap": sum(1 for record in records if record.n_tokens >= cell.max_tokens) / len(records),
        "max_tokens": cell.max_tokens,
        "wall_s": round(answers.wall_s(), 1),
        "identity": dict(cell.identity),
        "identity_sha256": identity_sha256(cell.identity),
        "answers": answers.path.name,
    }


def _compare(metric: Metric, first: Sequence[Record], second: Sequence[Record]) -> Paired:
    n = min(len(first), len(second))
    compare = paired_shares if metric.binary else paired_means
    return compare(_column(first[:n], metric), _column(second[:n], metric))


def make_report(cells: Sequence[Cell], folder: Path, pack: Pack, *, made_at: str, command: str) -> dict[str, Any]:
    """The report as JSON data. Cells without a single counted answer are left out.

    Args:
        folder: the answer files.
        made_at, command: stated in it.
    """
    rows: list[dict[str, Any]] = []
    counted: dict[tuple[str, str | None], list[Record]] = {}
    for cell in cells:
        with AnswerFile(folder, cell.identity) as answers:
            records = complete_prefix(cell, answers)
            if records:
                rows.append(_cell_report(cell, answers, records))
                counted[cell.task.name, cell.adapter_name] = records
    comparisons: list[dict[str, Any]] = []
    for cell in cells:
        base = counted.get((cell.task.name, None))
        own = counted.get((cell.task.name, cell.adapter_name))
        if cell.adapter is None or base is None or own is None:
            continue
        for metric in cell.task.metrics:
            paired = _compare(metric, base, own)
            comparisons.append(
                {
                    "task": cell.task.name,
                    "adapter": cell.adapter_name,
                    "against": None,
                    "own": cell.is_own,
                    "metric": metric.name,
                    **paired.as_dict(),
                }
            )
    tasks = {cell.task.name: cell.task for cell in cells}
    return {
        "schema": REPORT_SCHEMA,
        "made_at": made_at,
        "command": command,
        "slm_edge": metadata.version("slm-edge"),
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        "pack": {
            "name": pack.name,
            "base": {"file": pack.base.file_name, "sha256": pack.base.sha256, "fingerprint": pack.base.fingerprint},
            "adapters": {name: adapter.sha256 for name, adapter in pack.adapters.items()},
        },
        "tasks": {
            name: {
                "title": task.title,
                "protocol": task.protocol,
                "metrics": {metric.name: {"title": metric.title, "binary": metric.binary} for metric in task.metrics},
            }
            for name, task in tasks.items()
        },
        "cells": rows,
        "comparisons": comparisons,
    }


def card_scores(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each task card says under `scores`: task -> n, and by metric the value, its interval, the base's value."""
    by_cell = {(row["task"], row["adapter"]): row for row in report["cells"]}
    scores: dict[str, dict[str, Any]] = {}
    for (task, adapter), row in by_cell.items():
        if adapter is None:
            continue
        entry: dict[str, Any] = {"n": row["n"], "measured": report["made_at"][:10]}
        base = by_cell.get((task, None))
        for metric, found in row["metrics"].items():
            entry[metric] = {key: round(found[key], 4) for key in ("value", "low", "high")}
            if base is not None:
                entry[metric]["base"] = round(base["metrics"][metric]["value"], 4)
        scores.setdefault(adapter, {})[task] = entry
    return scores


def _number(value: float, binary: bool) -> str:
    return f"{100 * value:.1f}" if binary else f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def markdown(report: dict[str, Any]) -> str:
    """The matrix and the comparisons as Markdown. Shares are in per cent; own adapters' cells are bold."""
    adapters = list(dict.fromkeys(row["adapter"] for row in report["cells"]))
    adapters.sort(key=lambda name: [None, *report["pack"]["adapters"]].index(name))
    by_cell = {(row["task"], row["adapter"]): row for row in report["cells"]}
    lines = ["| | " + " | ".join(name or "base" for name in adapters) + " |", "|---" * (len(adapters) + 1) + "|"]
    for task, about in report["tasks"].items():
        for metric, facts in about["metrics"].items():
            shown = []
            for adapter in adapters:
                row = by_cell.get((task, adapter))
                if row is None:
                    shown.append("")
                    continue
                binary, found = facts["binary"], row["metrics"][metric]
                low, high = _number(found["low"], binary), _number(found["high"], binary)
                text = _number(found["value"], binary)
                shown.append(f"{f'**{text}**' if row['own'] else text} [{low}, {high}] n={row['n']}")
            if any(shown):
                unit = ", %" if facts["binary"] else ""
                lines.append(f"| {about['title']}, {facts['title']}{unit} | " + " | ".join(shown) + " |")
    lines += ["", "| against the base, same items | metric | difference [95 %] | n | p |", "|---|---|---|---|---|"]
    for row in report["comparisons"]:
        about = report["tasks"][row["task"]]
        facts = about["metrics"][row["metric"]]
        difference, binary = row["difference"], facts["binary"]
        value, low, high = (_number(difference[key], binary) for key in ("value", "low", "high"))
        unit = " points" if binary else ""
        name = f"**{row['adapter']}**" if row["own"] else row["adapter"]
        lines.append(
            f"| {name} on {about['title']} | {facts['title']} | {'' if value.startswith('-') else '+'}{value}{unit} "
            f"[{low}, {high}] | {row['n']} | {_p(row['p_value'])} ({row['test']}) |"
        )
    lines += ["", *(f"- {about['title']}: {about['protocol']}" for about in report["tasks"].values())]
    lines += [
        "- Intervals: Wilson (shares), bootstrap (means); differences: Newcombe's paired interval, paired bootstrap.",
        f"- Base `{report['pack']['base']['file']}` sha256 `{report['pack']['base']['sha256'][:16]}`, pack "
        f"`{report['pack']['name']}`, slm-edge {report['slm_edge']}, llama-cpp-python {report['llama_cpp_python']}, "
        f"{report['made_at']}.",
    ]
    return "\n".join(lines) + "\n"
