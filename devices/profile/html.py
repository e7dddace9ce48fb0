"""A profile as one self-contained HTML file: charts and tables, for dark and light screens. No script."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .charts import Series, histogram, lines, memory_bars
from .text import table

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
.figure{paint-order:stroke;stroke:var(--bg);stroke-width:4px}
pre{overflow-x:auto;background:color-mix(in srgb,var(--fg) 6%,transparent);padding:1em;border-radius:6px;font-size:12px}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .4em 0 1em}.dim{color:var(--dim)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
"""
# What is good, in a line under each heading
GOOD: Final = {
    "decode": "Higher is better. People read about 5 tokens a second. It falls as the context fills: each token looks "
    "at all before it.",
    "prefill": "Higher is better: a prompt's tokens divided by it are the seconds until the first word.",
    "between": "Narrow and to the left is good. A second hill or a long tail is another process, heat, or swapping.",
    "memory": "The measured peak belongs at or below the planned one. What is mapped (weights) can be dropped and read "
    "again; all else must have room.",
    "temperature": "Flat is good. Most boards slow down from 80 to 85 °C.",
    "sustained": "Flat is good: a fall is heat, or a power supply that is too weak.",
}


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

    between = [
        (case["adapter"] or "base", [1000 * s for s in case["decode"][0]["inter_token_s"]["samples"]]) for case in cases
    ]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=dim>{html.escape(profile['created'])}, slm-edge {html.escape(profile['version'])}</p>",
        *(f"<p><b>{html.escape(note)}</b></p>" for note in profile["notes"]),
        _section(
            "Decode by depth of the context, tokens/s",
            lines(series("decode", "depth_tokens"), "tokens in the context"),
            "decode",
        ),
        _section(
            "Prefill by length of the prompt, tokens/s",
            lines(series("prefill", "n_prompt_tokens"), "tokens of prompt"),
            "prefill",
        ),
        _section(
            "Time between tokens, ms: how many took so long",
            histogram(between, "ms (the last bar holds all slower ones)"),
            "between",
        ),
        _section("Memory by part, planned, against the measured peak", memory_bars(profile["memory"]), "memory"),
        _temperature(profile["sensors"]["samples"]),
    ]
    if profile.get("sustained"):
        rows = [(row["at_s"], row["tokens_per_s"]) for row in profile["sustained"]["rows"]]
        parts.append(_section("Sustained decoding, tokens/s", lines([("sustained", rows)], "seconds"), "sustained"))
    parts.append(_section("Numbers", f"<pre>{html.escape(table(profile))}</pre>"))
    facts = {**machine, **profile["setup"], "sha256": profile["model"]["sha256"]}
    facts = {key: value for key, value in facts.items() if value is not None}
    rows_html = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items()
    )
    parts.append(_section("Machine and setup", f"<dl>{rows_html}</dl>"))
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, body: str, good: str | None = None) -> str:
    said = f"<p class=dim>{html.escape(GOOD[good])}</p>" if good else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{body}</section>"


def _temperature(samples: Sequence[Mapping[str, Any]]) -> str:
    """Its chart; nothing on a machine that does not tell."""
    names = sorted({name for row in samples for name in row.get("temperature_c", {})})
    if not names:
        return ""
    series = [
        (name, [(row["at_s"], row["temperature_c"][name]) for row in samples if name in row.get("temperature_c", {})])
        for name in names
    ]
    return _section("Temperature over time, °C", lines(series, "seconds"), "temperature")
