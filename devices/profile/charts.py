"""Charts as SVG, for a page that gives the colours --c0 to --c4 and --dim: round steps, figures where there is room."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...edge.written import human_bytes

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 60, 40, 16
# Room for half a point and half a line beside the last one
RIGHT: Final = WIDTH - 6
# More points than this are a curve: their figures would be a wall.
MOST_FIGURES: Final = 20
FIGURE_HEIGHT: Final = 12
N_BINS: Final = 30
Series = tuple[str, list[tuple[float, float]]]


def steps_to(most: float, n_most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to the first that is not below `most`, at most `n_most` steps: 0, 50, …, 250 for 237.

    Args:
        whole: what is counted has no fractions.
    """
    most = max(most, n_most / 2) if whole else most if most > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(most / n_most))
    factors = (1, 2, 5, 10, 20) if whole else (1, 2, 2.5, 5, 10, 20)
    step = next(factor * power for factor in factors if factor * power * n_most >= most and factor * power >= whole)
    # A hair more than a whole number of steps is that number.
    return [round(step * i, 10) for i in range(math.ceil(most / step - 1e-9) + 1)]


def legend(names: Sequence[str]) -> str:
    """The names with their colours; nothing for one name."""
    if len(names) < 2:
        return ""
    keys = "".join(
        f"<span class=key style='background:{_color(i)}'></span>{html.escape(name)}" for i, name in enumerate(names)
    )
    return f"<p>{keys}</p>"


def _color(i: int) -> str:
    return f"var(--c{i % 5})"


def _frame(x_steps: Sequence[float], y_steps: Sequence[float], x_title: str, body: str) -> str:
    """Axes around drawn content."""
    marks = []
    for value in y_steps:
        _, y = _at(0, value, x_steps[-1], y_steps[-1])
        marks.append(f"<line class=axis x1={LEFT} x2={RIGHT} y1={y:.1f} y2={y:.1f} />")
        marks.append(f"<text x={LEFT - 6} y={y + 4:.1f} text-anchor=end>{figure(value)}</text>")
    for value in x_steps:
        x, _ = _at(value, 0, x_steps[-1], y_steps[-1])
        anchor = "end" if value == x_steps[-1] else "middle"
        marks.append(f"<text x={x:.1f} y={HEIGHT - BOTTOM + 16} text-anchor={anchor}>{figure(value)}</text>")
    title = f"<text x={(LEFT + RIGHT) / 2} y={HEIGHT - 6} text-anchor=middle>{html.escape(x_title)}</text>"
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>{''.join(marks)}{title}{body}</svg>"


def figure(value: float) -> str:
    """A number as it stands in a chart: 1,250, 98.4, 2.5, 0."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _at(x: float, y: float, x_most: float, y_most: float) -> tuple[float, float]:
    return (
        LEFT + (RIGHT - LEFT) * x / (x_most or 1),
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y / (y_most or 1),
    )


def lines(series: Sequence[Series], x_title: str) -> str:
    """One line for each series, with the value at each point where there are few."""
    points = [point for _, own in series for point in own]
    x_steps = steps_to(max((x for x, _ in points), default=1))
    # Room for the figure above the highest point
    y_steps = steps_to(1.06 * max((y for _, y in points), default=1))
    drawn = []
    places: list[tuple[float, float, float, int]] = []
    for i, (_, own) in enumerate(series):
        at = [(*_at(x, y, x_steps[-1], y_steps[-1]), y) for x, y in own]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
        drawn.append(f"<polyline points='{path}' fill=none stroke='{_color(i)}' stroke-width=2 />")
        if len(at) < 2 * MOST_FIGURES:
            drawn += [f"<circle cx={x:.1f} cy={y:.1f} r=3 fill='{_color(i)}' />" for x, y, _ in at]
            places += [(x, y, value, i) for x, y, value in at]
    if len(points) <= MOST_FIGURES:
        drawn += _figures(places)
    return legend([name for name, _ in series]) + _frame(x_steps, y_steps, x_title, "".join(drawn))


def _figures(places: Sequence[tuple[float, float, float, int]]) -> list[str]:
    """Each point's value: above the highest of a column, below the lowest, beside those that have no room there."""
    drawn = []
    for x in sorted({place[0] for place in places}):
        column = sorted((place for place in places if place[0] == x), key=lambda place: place[1])
        taken = -math.inf
        for at, (_, y, value, i) in enumerate(column):
            last = at > 0 and at == len(column) - 1
            beside = at > 0 and not last and y - FIGURE_HEIGHT - 5 < taken
            height = max(y + FIGURE_HEIGHT + 3, taken + FIGURE_HEIGHT) if last else y + 4 if beside else y - 7
            # Below it would stand on the axis's figures: to the left, where between others the right is taken.
            left = last and height > HEIGHT - BOTTOM and x > LEFT + 40
            height, beside = (y + 4, True) if left else (height, beside)
            taken = height
            anchor = "start" if x < LEFT + 20 else "end" if left or x > RIGHT - 20 else "start" if beside else "middle"
            shift = (-8 if anchor == "end" else 8) if beside else 5 if anchor == "start" else 0
            drawn.append(
                f"<text class=figure x={x + shift:.1f} y={height:.1f} text-anchor={anchor} style='fill:{_color(i)}'>"
                f"{figure(value)}</text>"
            )
    return drawn


def histogram(own: Sequence[tuple[str, list[float]]], x_title: str) -> str:
    """How many samples of each series fall into each of `N_BINS` bars; the slowest percent is in the last one."""
    every = sorted(value for _, samples in own for value in samples)
    # The slowest percent would squeeze all others into one bar.
    x_steps = steps_to(every[int(0.99 * (len(every) - 1))] * 1.05)
    x_most = x_steps[-1]
    counts = []
    for _, samples in own:
        bins = [0] * N_BINS
        for value in samples:
            bins[min(int(value / x_most * N_BINS), N_BINS - 1)] += 1
        counts.append(bins)
    y_steps = steps_to(max(max(bins) for bins in counts), whole=True)
    drawn = []
    for i, bins in enumerate(counts):
        corners = []
        for at, count in enumerate(bins):
            for edge in (at, at + 1):
                x, y = _at(edge * x_most / N_BINS, count, x_most, y_steps[-1])
                corners.append(f"{x:.1f},{y:.1f}")
        drawn.append(f"<polyline points='{' '.join(corners)}' fill=none stroke='{_color(i)}' stroke-width=2 />")
    names = [f"{name}, median {figure(sorted(samples)[len(samples) // 2])} ms" for name, samples in own]
    shown = legend(names) or f"<p>{html.escape(names[0])}</p>"
    return shown + _frame(x_steps, y_steps, x_title, "".join(drawn))


def memory_bars(memory: Mapping[str, Any]) -> str:
    """The planned parts, their sum and the measured peak."""
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
