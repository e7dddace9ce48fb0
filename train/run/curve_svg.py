"""The loss curve of a run as a picture: an SVG of a few kilobytes, written by hand, no plotting library.

svg = curve_svg(record)         # from train.json
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 44
SMOOTH = 0.8


def curve_svg(record: Mapping[str, Any]) -> str:
    """Training loss (as it is, and smoothed) and held-out loss over the steps, both in nats per completion token."""
    train = [(entry["step"], entry["loss"]) for entry in record["curve"]]
    held_out = [(entry["step"], entry["loss"]) for entry in record.get("evaluations", [])]
    ends = record["held_out_loss"]
    if ends["base"] is not None:
        held_out = [(0, ends["base"]), *held_out]
        if held_out[-1][0] < record["steps"]:
            held_out.append((record["steps"], ends["adapter"]))
    losses = [loss for _, loss in (*train, *held_out)] or [0.0, 1.0]
    low, high = min(losses), max(losses)
    low, high = (low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else (low - 0.5, high + 0.5)
    last = max(1, record["steps"])

    def place(step: float, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)
        return f"{x:.1f},{y:.1f}"

    def line(points: Sequence[tuple[float, float]], color: str, width: float) -> str:
        drawn = " ".join(place(*point) for point in points)
        return f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="{width}"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, f"{record['recipe']['task']} on {record['base']['name']}: loss, nats per completion token"),
    ]
    for part in range(5):
        loss = low + (high - low) * part / 4
        y = float(place(0, loss).partition(",")[2])
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{loss:.3g}", anchor="end"))
        step = last * part / 4
        x = float(place(step, low).partition(",")[0])
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{step:.0f}", anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "optimiser steps", anchor="middle"))
    parts += [line(train, "#b8cfe8", 1), line(_smoothed(train), "#1f5fa8", 2)]
    if held_out:
        parts.append(line(held_out, "#c0392b", 2))
        parts += [
            f'<circle cx="{p.partition(",")[0]}" cy="{p.partition(",")[2]}" r="3" fill="#c0392b"/>'
            for p in (place(*point) for point in held_out)
        ]
    parts.append(_text(WIDTH - RIGHT, TOP - 4, "blue: training (smoothed); red: held out", anchor="end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """An exponential mean of the losses."""
    smooth, mean = [], None
    for step, loss in points:
        mean = loss if mean is None else SMOOTH * mean + (1 - SMOOTH) * loss
        smooth.append((step, mean))
    return smooth


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{escape(text)}</text>'
