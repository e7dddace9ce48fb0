"""A profile as one self-contained HTML file: tables and charts drawn as SVG, for dark and light screens. No script."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...edge.sizes import human_bytes
from .text import table

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 60, 40, 12
# Room for half a point and half a line beside the last one
RIGHT = WIDTH - 6
STYLE: Final = """
:root{--bg:#fff;--fg:#1c2024;--dim:#6b7480;--line:#d8dde3;
--c0:#2563eb;--c1:#d97706;--c2:#059669;--c3:#c026d3;--c4:#dc2626;
color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9ec;--dim:#9aa4af;--line:#333a42;
--c0:#6ea0ff;--c1:#f5a742;--c2:#3ecf9a;--c3:#e879f9;--c4:#ff7b72}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;
max-width:900px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}svg{width:100%;max-width:720px;height:auto;display:block}
svg text{fill:var(--dim);font:11px system-ui,sans-serif}.axis{stroke:var(--line);stroke-width:1}
pre{overflow-x:auto;background:color-mix(in srgb,var(--fg) 6%,transparent);padding:1em;border-radius:6px;font-size:12px}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .4em 0 1em}.dim{color:var(--dim)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
"""
Series = tuple[str, list[tuple[float, float]]]


def report(profile: Mapping[str, Any]) -> str:
    """The whole page."""
    machine = profile["machine"]
    title = f"{profile['model']['name']} on {machine['device']}"
    cases = profile["cases"]

    def series(part: str, x: str) -> list[Series]:
        return [
            (case["adapter"] or "base", [(row[x], row["tokens_per_s"]["median"]) for row in case[part]])
            for case in cases
        ]

    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=dim>{html.escape(profile['created'])}, slm-edge {html.escape(profile['version'])}</p>",
        _section(
            "Decode by depth of the context, tokens/s",
            _lines(series("decode", "depth_tokens"), "tokens in the context"),
        ),
        _section(
            "Prefill by length of the prompt, tokens/s",
            _lines(series("prefill", "n_prompt_tokens"), "tokens of prompt"),
        ),
        _section("Time between tokens, ms: how many took so long", _histogram(cases)),
        _section("Memory by part, planned, against the measured peak", _memory(profile["memory"])),
        _section("Temperature over time, °C", _temperature(profile["sensors"]["samples"])),
    ]
    if profile.get("sustained"):
        rows = [(row["at_s"], row["tokens_per_s"]) for row in profile["sustained"]["rows"]]
        parts.append(_section("Sustained decoding, tokens/s", _lines([("sustained", rows)], "seconds")))
    parts.append(_section("Numbers", f"<pre>{html.escape(table(profile))}</pre>"))
    facts = {**machine, **profile["setup"], "sha256": profile["model"]["sha256"]}
    rows_html = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(_fact(value))}</dd>" for key, value in facts.items()
    )
    parts.append(_section("Machine and setup", f"<dl>{rows_html}</dl>"))
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _fact(value: Any) -> str:
    return "not available" if value is None else html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _color(i: int) -> str:
    return f"var(--c{i % 5})"


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    keys = "".join(
        f"<span class=key style='background:{_color(i)}'></span>{html.escape(name)}" for i, name in enumerate(names)
    )
    return f"<p>{keys}</p>"


def _frame(x_most: float, y_most: float, x_title: str, body: str) -> str:
    """Axes from 0 with five steps each, around drawn content."""
    marks = []
    for step in range(6):
        x, y = _at(x_most * step / 5, y_most * step / 5, x_most, y_most)
        marks.append(f"<line class=axis x1={LEFT} x2={RIGHT} y1={y:.1f} y2={y:.1f} />")
        marks.append(f"<text x={LEFT - 6} y={y + 4:.1f} text-anchor=end>{_mark(y_most * step / 5)}</text>")
        anchor = "end" if step == 5 else "middle"
        marks.append(f"<text x={x:.1f} y={HEIGHT - BOTTOM + 16} text-anchor={anchor}>{_mark(x_most * step / 5)}</text>")
    title = f"<text x={(LEFT + RIGHT) / 2} y={HEIGHT - 6} text-anchor=middle>{html.escape(x_title)}</text>"
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>{''.join(marks)}{title}{body}</svg>"


def _mark(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _at(x: float, y: float, x_most: float, y_most: float) -> tuple[float, float]:
    return (
        LEFT + (RIGHT - LEFT) * x / (x_most or 1),
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y / (y_most or 1),
    )


def _lines(series: Sequence[Series], x_title: str) -> str:
    points = [point for _, own in series for point in own]
    x_most = max((x for x, _ in points), default=1) or 1
    y_most = 1.1 * max((y for _, y in points), default=1)
    drawn = []
    for i, (_, own) in enumerate(series):
        places = [_at(x, y, x_most, y_most) for x, y in own]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f"<polyline points='{path}' fill=none stroke='{_color(i)}' stroke-width=2 />")
        if len(places) < 40:
            drawn += [f"<circle cx={x:.1f} cy={y:.1f} r=3 fill='{_color(i)}' />" for x, y in places]
    return _legend([name for name, _ in series]) + _frame(x_most, y_most, x_title, "".join(drawn))


def _histogram(cases: Sequence[Mapping[str, Any]]) -> str:
    own = [
        (case["adapter"] or "base", [1000 * s for s in case["decode"][0]["inter_token_s"]["samples"]]) for case in cases
    ]
    every = sorted(ms for _, samples in own for ms in samples)
    # The slowest percent would squeeze all others into one bar.
    x_most = every[int(0.99 * (len(every) - 1))] * 1.05
    n_bins = 30
    counts = []
    for _, samples in own:
        bins = [0] * n_bins
        for ms in samples:
            bins[min(int(ms / x_most * n_bins), n_bins - 1)] += 1
        counts.append(bins)
    y_most = 1.1 * max(max(bins) for bins in counts)
    drawn = []
    for i, bins in enumerate(counts):
        steps = []
        for at, count in enumerate(bins):
            for edge in (at, at + 1):
                x, y = _at(edge * x_most / n_bins, count, x_most, y_most)
                steps.append(f"{x:.1f},{y:.1f}")
        drawn.append(f"<polyline points='{' '.join(steps)}' fill=none stroke='{_color(i)}' stroke-width=2 />")
    return _legend([name for name, _ in own]) + _frame(
        x_most, y_most, "ms (the last bar holds all slower ones)", "".join(drawn)
    )


def _memory(memory: Mapping[str, Any]) -> str:
    names = ("weights", "repacked", "kv", "compute", "outputs", "adapters", "snapshots", "process")
    rows = [(name, memory["planned"][f"{name}_bytes"]) for name in names if memory["planned"][f"{name}_bytes"]]
    rows += [("planned peak", memory["planned"]["total_bytes"]), ("measured peak", memory["peak_rss_bytes"])]
    most = max(size for _, size in rows) or 1
    drawn = []
    for i, (name, size) in enumerate(rows):
        y, width = 10 + 24 * i, (WIDTH - 200) * size / most
        color = _color(0 if i < len(rows) - 2 else 1 if i < len(rows) - 1 else 2)
        drawn.append(f"<text x=100 y={y + 12} text-anchor=end>{name}</text>")
        drawn.append(f"<rect x=110 y={y} width={max(width, 1):.1f} height=16 rx=2 fill='{color}' />")
        drawn.append(f"<text x={116 + width:.1f} y={y + 12}>{human_bytes(size)}</text>")
    return f"<svg viewBox='0 0 {WIDTH} {20 + 24 * len(rows)}' role=img>{''.join(drawn)}</svg>"


def _temperature(samples: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({name for row in samples for name in row.get("temperature_c", {})})
    if not names:
        return "<p class=dim>not available on this machine</p>"
    series = [
        (name, [(row["at_s"], row["temperature_c"][name]) for row in samples if name in row.get("temperature_c", {})])
        for name in names
    ]
    return _lines(series, "seconds")
