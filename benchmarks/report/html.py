"""A report as one HTML file that needs nothing else: tables, and intervals drawn as SVG."""

import html as escape_html
from collections.abc import Mapping, Sequence
from typing import Any

from .text import column_name, columns, joules_text, number, p_text, versions, wrong_cells

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1a1d21;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:.75rem 0}
td,th{padding:.3rem .7rem;border-bottom:1px solid #d8dde3;text-align:left}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}small{color:#5a6470}code{font-size:.85em}
svg{display:block;margin:.5rem 0 1.25rem}svg text{font:12px system-ui,sans-serif;fill:currentColor}
.line{stroke:#5a6470;stroke-width:2}.grid{stroke:#e2e6ea}.dot{fill:#2463c4}.own{fill:#c4501f}
@media(prefers-color-scheme:dark){body{color:#e6e9ec;background:#16191d}td,th{border-color:#343b43}
.grid{stroke:#2b3138}.line{stroke:#98a3ae}.dot{fill:#7fb0ff}.own{fill:#ff9a6b}small{color:#98a3ae}}
"""
_LEFT, _WIDTH, _ROW = 150, 480, 22


def _e(text: object) -> str:
    return escape_html.escape(str(text))


def html(report: Mapping[str, Any]) -> str:
    """The whole report as an HTML document."""
    title = report["pack"]["name"] if "pack" in report else report["endpoint"]["url"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Scores of {_e(title)}</title><style>{_STYLE}</style><h1>Scores of {_e(title)}</h1>",
        f"<p><small>{_e(report['made_at'])}, <code>{_e(report['command'])}</code>, {_e(versions(report))}</small></p>",
    ]
    for task, about in report["tasks"].items():
        parts += _task(report, task, about)
    parts += [*_choice(report), *_comparisons(report), *_hashes(report)]
    return "\n".join(parts) + "</html>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}" for cell in head)
    body = "".join("<tr>" + "".join(f"<td class=n>{cell}" for cell in row) for row in rows)
    return f"<table><tr>{top}{body}</table>"


def _task(report: Mapping[str, Any], task: str, about: Mapping[str, Any]) -> list[str]:
    order = columns(report)
    rows = sorted((row for row in report["cells"] if row["task"] == task), key=lambda row: order.index(row["adapter"]))
    if not rows:
        return []
    parts = [f"<h2>{_e(about['title'])}</h2><p><small>{_e(about['protocol'])}</small></p>"]
    for metric, facts in about["metrics"].items():
        shown = [row for row in rows if metric in row["metrics"]]
        if shown:
            parts.append(_chart(f"{facts['title']}{', %' if facts['binary'] else ''}", metric, facts["binary"], shown))
    table = []
    for row in rows:
        values = [
            f"{number(found['value'], binary)} <small>[{number(found['low'], binary)}, {number(found['high'], binary)}]"
            "</small>"
            for name, found in row["metrics"].items()
            for binary in (about["metrics"][name]["binary"],)
        ]
        samples = f" x {row['n_samples']}" if row["n_samples"] > 1 else ""
        table.append(
            [
                _e(column_name(row["adapter"])),
                *values,
                *[""] * (len(about["metrics"]) - len(values)),
                f"{row['n']}{samples} of {row['n_test_set']}",
                f"{row['n_tokens']:,}",
                f"{row['wall_s']:,.1f}",
                "<br>".join(
                    f"{joules_text(found['joules_per_correct'])} <small>{_e(found['sensor'])}</small>"
                    for found in row.get("energy", [])
                )
                or "<small>not available</small>",
                f"<code>{row['identity_sha256'][:12]}</code>",
            ]
        )
    titles = [_e(facts["title"]) for facts in about["metrics"].values()]
    return [*parts, _table(["", *titles, "n", "tokens", "seconds", "J per correct answer", "cell"], table)]


def _chart(title: str, metric: str, binary: bool, rows: Sequence[Mapping[str, Any]]) -> str:
    """Dots with intervals, from 0 to the largest bound."""
    top = max(row["metrics"][metric]["high"] for row in rows) or 1.0
    height = _ROW * len(rows) + 40

    def x(value: float) -> float:
        return round(_LEFT + max(0.0, value) / top * _WIDTH, 1)

    parts = [
        f"<svg viewBox='0 0 {_LEFT + _WIDTH + 40} {height}' width={_LEFT + _WIDTH + 40} role=img "
        f"aria-label='{_e(title)}'><text x=0 y=14>{_e(title)}</text>"
    ]
    for step in range(5):
        value = top * step / 4
        parts.append(
            f"<line class=grid x1={x(value)} x2={x(value)} y1=22 y2={height - 16} />"
            f"<text x={x(value)} y={height - 2} text-anchor=middle>{number(value, binary)}</text>"
        )
    for i, row in enumerate(rows):
        found, y = row["metrics"][metric], 34 + _ROW * i
        kind = "own" if row["own"] else "dot"
        parts.append(
            f"<text x={_LEFT - 8} y={y + 4} text-anchor=end>{_e(column_name(row['adapter']))}</text>"
            f"<line class=line x1={x(found['low'])} x2={x(found['high'])} y1={y} y2={y} />"
            f"<circle class={kind} cx={x(found['value'])} cy={y} r=5 />"
        )
    return "".join(parts) + "</svg>"


def _choice(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in report["choice"]:
        about = report["tasks"][row["task"]]
        binary = about["metrics"][row["metric"]]["binary"]
        cells = ["" if row[key] is None else number(row[key]["value"], binary) for key in ("base", "router", "oracle")]
        cells += [str(row["oracle"]["n"]), *map(_e, wrong_cells(row["wrong"], binary))]
        rows.append([f"{_e(about['title'])}, {_e(about['metrics'][row['metric']]['title'])}", *cells])
    if not rows:
        return []
    return [
        "<h2>What choosing right is worth</h2>",
        _table(["", "base", "router", "oracle (own adapter)", "n", "wrong adapter, mean", "worst, n"], rows),
    ]


def _comparisons(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in report["comparisons"]:
        about = report["tasks"][row["task"]]
        facts = about["metrics"][row["metric"]]
        value, low, high = (number(row["difference"][key], facts["binary"]) for key in ("value", "low", "high"))
        against = column_name(row["against"])
        rows.append(
            [
                f"{_e(column_name(row['adapter']))} - {_e(against)}",
                f"{_e(about['title'])}, {_e(facts['title'])}",
                f"{value} <small>[{low}, {high}]</small>",
                str(row["n"]),
                f"{p_text(row['p_value'])} <small>{_e(row['test'])}</small>",
            ]
        )
    if not rows:
        return []
    return ["<h2>Differences on the same items</h2>", _table(["", "metric", "difference [95 %]", "n", "p"], rows)]


def _hashes(report: Mapping[str, Any]) -> list[str]:
    if "pack" not in report:
        endpoint = report["endpoint"]
        rows = [["endpoint", _e(endpoint["url"])], *(["answered by", _e(name)] for name in endpoint["served_by"])]
    else:
        pack = report["pack"]
        rows = [[f"base {_e(pack['base']['file'])}", f"<code>{pack['base']['sha256']}</code>"]]
        rows += [[f"adapter {_e(name)}", f"<code>{sha256}</code>"] for name, sha256 in pack["adapters"].items()]
        if report.get("chat_template_sha256"):
            rows.append(["chat template", f"<code>{report['chat_template_sha256']}</code>"])
        if report.get("prompts_of_the_day"):
            rows.append(["date that the chat template writes", _e(report["prompts_of_the_day"])])
    rows += [
        [f"prompts of {_e(row['task'])}", f"<code>{row['identity']['items_sha256']}</code>"]
        for row in {row["task"]: row for row in report["cells"]}.values()
    ]
    return ["<h2>What was measured (sha256)</h2>", _table(["", ""], rows)]
