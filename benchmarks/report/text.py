"""A report as Markdown: the matrix, what choosing right is worth, the comparisons, and the intervals as a chart."""

from collections.abc import Mapping
from typing import Any

CHART_WIDTH = 50
# Of a cell's answers, from which on it is said that they were cut off.
SHARE_CUT = 0.05


def number(value: float, binary: bool) -> str:
    """A share in per cent, a real score as it is."""
    return f"{100 * value:.1f}" if binary else f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"


def p_text(value: float) -> str:
    """A p value in two digits, or that it is below what is shown."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def column_name(adapter: str | None) -> str:
    """What a column is called."""
    return "base" if adapter is None else "router" if adapter == "auto" else adapter


def columns(report: Mapping[str, Any]) -> list[str | None]:
    """The columns that have a cell: the base, the pack's adapters in its order, then the router or the models."""
    found = list(dict.fromkeys(row["adapter"] for row in report["cells"]))
    order: list[str | None] = [None, *(report["pack"]["adapters"] if "pack" in report else [])]
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def versions(report: Mapping[str, Any]) -> str:
    """What made the answers; on onnxruntime llama.cpp is the tokenizer only."""
    engines = [f"onnxruntime {report['onnxruntime']}"] if "onnxruntime" in report else []
    return ", ".join([f"slm-edge {report['slm_edge']}", *engines, f"llama-cpp-python {report['llama_cpp_python']}"])


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report. Shares are in per cent; own adapters' cells are bold."""
    lines = [*matrix(report), *choice(report), *comparisons(report), "", *_chart(report)]
    lines += [f"- {about['title']}: {about['protocol']}" for about in report["tasks"].values()]
    lines += [
        "- Intervals: Wilson (shares), bootstrap (means); differences: Newcombe's paired interval, paired bootstrap.",
        *_effort(report),
        f"- {_measured(report)}, {versions(report)}, {report['made_at']}: `{report['command']}`.",
    ]
    return "\n".join(lines) + "\n"


def matrix(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table of tasks and columns: value, interval and number of items of each cell."""
    names = columns(report)
    by_cell = {(row["task"], row["adapter"]): row for row in report["cells"]}
    lines = ["| | " + " | ".join(map(column_name, names)) + " |", "|---" * (len(names) + 1) + "|"]
    for task, about in report["tasks"].items():
        for metric, facts in about["metrics"].items():
            shown = []
            for adapter in names:
                row = by_cell.get((task, adapter))
                if row is None or metric not in row["metrics"]:
                    shown.append("")
                    continue
                binary, found = facts["binary"], row["metrics"][metric]
                low, high = number(found["low"], binary), number(found["high"], binary)
                text = number(found["value"], binary)
                times = f"x{row['n_samples']}" if row["n_samples"] > 1 else ""
                shown.append(f"{f'**{text}**' if row['own'] else text} [{low}, {high}] n={row['n']}{times}")
            if any(shown):
                unit = ", %" if facts["binary"] else ""
                lines.append(f"| {about['title']}, {facts['title']}{unit} | " + " | ".join(shown) + " |")
    return lines


def choice(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table that sets the router beside base, own and wrong adapters; none without a router."""
    if not report["choice"]:
        return []
    lines = [
        "",
        "| choosing | base | router | oracle (own adapter) | n | wrong adapter, mean | worst, n |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["choice"]:
        about = report["tasks"][row["task"]]
        binary = about["metrics"][row["metric"]]["binary"]
        unit = ", %" if binary else ""
        cells = ["" if row[key] is None else number(row[key]["value"], binary) for key in ("base", "router", "oracle")]
        cells += [str(row["oracle"]["n"]), *wrong_cells(row["wrong"], binary)]
        title = f"{about['title']}, {about['metrics'][row['metric']]['title']}{unit}"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def wrong_cells(wrong: Mapping[str, Any] | None, binary: bool) -> list[str]:
    """Mean of the wrong adapters, and the worst of them with its name and number of items."""
    if wrong is None:
        return ["", ""]
    worst = wrong["worst"]
    return [number(wrong["value"], binary), f"{number(worst['value'], binary)} ({worst['adapter']}, n={worst['n']})"]


def comparisons(report: Mapping[str, Any], *, own: bool = False) -> list[str]:
    """The lines of the tables of paired differences.

    Args:
        own: only each adapter against the base, on the task that it was made for.
    """
    rows = [row for row in report["comparisons"] if not own or (row["own"] and row["against"] is None)]
    lines = []
    for against in dict.fromkeys(row["against"] for row in rows):
        head = "the base" if against is None else f"the adapter {against}"
        lines += ["", f"| against {head}, same items | metric | difference [95 %] | n | p |", "|---|---|---|---|---|"]
        for row in rows:
            if row["against"] != against:
                continue
            about = report["tasks"][row["task"]]
            facts = about["metrics"][row["metric"]]
            difference, binary = row["difference"], facts["binary"]
            value, low, high = (number(difference[key], binary) for key in ("value", "low", "high"))
            unit = " points" if binary else ""
            name = column_name(row["adapter"])
            lines.append(
                f"| {f'**{name}**' if row['own'] else name} on {about['title']} | {facts['title']} | "
                f"{'' if value.startswith('-') else '+'}{value}{unit} "
                f"[{low}, {high}] | {row['n']} | {p_text(row['p_value'])} ({row['test']}) |"
            )
    return lines


def _chart(report: Mapping[str, Any]) -> list[str]:
    """The intervals of shares, as text that any viewer shows: one scale from 0 to the largest bound of each task."""
    lines = []
    for task, about in report["tasks"].items():
        metric = next((name for name, facts in about["metrics"].items() if facts["binary"]), None)
        rows = [row for row in report["cells"] if row["task"] == task and metric in row["metrics"]]
        if metric is None or len(rows) < 2:
            continue
        top = max(row["metrics"][metric]["high"] for row in rows) or 1.0
        lines += ["```text", f"{about['title']}, {about['metrics'][metric]['title']}, 0 to {number(top, True)} %"]
        for row in rows:
            found = row["metrics"][metric]
            low, at, high = (
                min(CHART_WIDTH - 1, int(found[key] / top * CHART_WIDTH)) for key in ("low", "value", "high")
            )
            bar = [" "] * CHART_WIDTH
            bar[low : high + 1] = "─" * (high + 1 - low)
            bar[at] = "●"
            lines.append(f"{column_name(row['adapter'])[:16]:16} {''.join(bar).rstrip()}")
        lines += ["```", ""]
    return lines


def _effort(report: Mapping[str, Any]) -> list[str]:
    tokens = sum(row["n_tokens"] for row in report["cells"])
    prompts = sum(row["n_prompt_tokens"] for row in report["cells"])
    seconds = sum(row["wall_s"] for row in report["cells"])
    lines = [f"- {tokens:,} tokens generated after {prompts:,} of prompts in {seconds / 60:.1f} minutes."]
    drawn = {
        (
            row["task"],
            row["n_samples"],
            row["decoding"]["temperature"],
            row["decoding"]["top_p"],
            row["decoding"]["seed"],
        )
        for row in report["cells"]
        if row["decoding"]["temperature"]
    }
    lines += [
        f"- {task}: {n} samples of each problem, temperature {temperature:g}, top-p {top_p:g}, seed {seed}."
        for task, n, temperature, top_p, seed in sorted(drawn)
    ]
    return [*lines, *_cut(report), *_energy(report)]


def _cut(report: Mapping[str, Any]) -> list[str]:
    """Where answers were cut off, which may have cost a score: the protocol's doing, not the model's."""
    cut = [
        f"{row['task']} x {column_name(row['adapter'])} {100 * row['cut_at_cap']:.0f} % (at {row['max_tokens']} tokens)"
        for row in report["cells"]
        if row.get("cut_at_cap", 0) >= SHARE_CUT
    ]
    return [f"- Answers cut off before their end: {', '.join(cut)}; `--max-tokens` allows longer ones."] if cut else []


def joules_text(joules: float | None) -> str:
    """Joules in three digits; a dash if there are none."""
    return "-" if joules is None else f"{joules:,.0f}" if joules >= 100 else f"{joules:.3g}"


def _energy(report: Mapping[str, Any]) -> list[str]:
    by_sensor: dict[tuple[str, str], list[str]] = {}
    for row in report["cells"]:
        for found in row.get("energy", []):
            text = f"{row['task']} x {column_name(row['adapter'])} {joules_text(found['joules_per_correct'])}"
            text += f" ({joules_text(found['joules_per_answer'])} an answer)"
            by_sensor.setdefault((found["sensor"], found["includes"]), []).append(text)
    if not by_sensor:
        return ["- Joules per correct answer: not available, no sensor of power or energy was read."]
    return [
        f"- Joules per correct answer, {sensor} ({what}): {', '.join(texts)}."
        for (sensor, what), texts in by_sensor.items()
    ]


def _measured(report: Mapping[str, Any]) -> str:
    if "pack" not in report:
        endpoint = report["endpoint"]
        return f"Endpoint `{endpoint['url']}`, which calls itself {', '.join(endpoint['served_by']) or 'nothing'}"
    pack = report["pack"]
    template = report.get("chat_template_sha256")
    words = f", chat template sha256 `{template[:16]}`" if template else ""
    if day := report.get("prompts_of_the_day"):
        words += f" (writes the date into prompts: {day}; on another day the same questions are other prompts)"
    adapters = ", ".join(f"`{name}` `{sha256[:12]}`" for name, sha256 in pack["adapters"].items())
    return (
        f"Base `{pack['base']['file']}` sha256 `{pack['base']['sha256'][:16]}`{words}, pack `{pack['name']}`"
        f"{f' with {adapters}' if adapters else ''}"
    )
