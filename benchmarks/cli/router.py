"""`slm-edge router eval` and `speed`: how right, how sure and how fast a router is."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...edge.cli.options import PackType, data_option
from ...edge.console import emit, json_option

if TYPE_CHECKING:
    from ...edge.router.router import Router
    from ..router.sets import Set

PATH = click.Path(path_type=Path)
_WORST = 5


@click.command()
@click.option("--pack", type=PackType(), help="Pack whose router is measured.  [default: the starter pack]")
@click.option("--router", "file", type=PATH, help="A router's file, in place of a pack's.")
@data_option("Folder with the public sets, as for bench.")
@click.option("--sets", type=PATH, multiple=True, help="Files of lines SET | ADAPTER | PROMPT.  [default: ours]")
@click.option("--prompts", type=PATH, multiple=True, help='JSON Lines with "prompt" and "adapter" or null.')
@click.option("--mistakes", is_flag=True, help="Show the surest mistakes of each set.")
@json_option
def evaluate(
    pack: Path | None,
    file: Path | None,
    data: Path | None,
    sets: tuple[Path, ...],
    prompts: tuple[Path, ...],
    mistakes: bool,
    as_json: bool,
) -> None:
    """Measure a router: for each set the share decided right, and what was chosen; then calibration and coverage.

    "Captured" is the share of prompts of no task that an adapter was chosen for. Calibration error compares the
    confidences with how often they were right (10 bins). Sets count equally, whatever their size.

    \b
    Example:
      slm-edge router eval --data DATA --mistakes
    """
    from ...edge.errors import InputError
    from ...edge.pack.pack import Pack
    from ...edge.router.in_pack import open_router
    from ...edge.router.router import Router
    from ..router.sets import FOLDER, public_sets, written_sets
    from ..tasks.benchmark import json_lines

    router = Router.open(file) if file else open_router(Pack.open(pack))
    found: dict[str, Set] = {}
    if data is not None:
        found |= public_sets(data)
    for path in sets or (() if prompts else sorted(FOLDER.glob("*.txt"))):
        found |= {f"{path.stem}: {name}": rows for name, rows in written_sets(path).items()}
    for path in prompts:
        rows = list(json_lines(path, "prompt"))
        if not all("adapter" in row and isinstance(row["adapter"], str | None) for row in rows):
            raise InputError('each row needs "adapter", a name or null', where=path)
        found[path.stem] = [(row["prompt"], row["adapter"]) for row in rows]
    report = judge(router, found)
    emit(report, as_json, _text(report, mistakes))


def judge(router: "Router", sets: "dict[str, Set]") -> dict[str, Any]:
    """The figures of `slm-edge router eval` for named sets of (prompt, right adapter)."""
    import numpy as np

    from ...edge.router.calibration import coverage_risk, expected_calibration_error

    rows: list[dict[str, Any]] = []
    sure: list[float] = []
    right: list[bool] = []
    weights: list[float] = []
    for name, prompts in sets.items():
        decisions = [router.choose(text) for text, _ in prompts]
        good = [decision.adapter == wanted for decision, (_, wanted) in zip(decisions, prompts, strict=True)]
        chosen: dict[str, int] = {}
        for decision in decisions:
            chosen[decision.adapter or "none"] = chosen.get(decision.adapter or "none", 0) + 1
        bad = [
            {"prompt": text, "wanted": wanted, "chosen": decision.adapter, "confidence": round(decision.confidence, 3)}
            for decision, (text, wanted) in zip(decisions, prompts, strict=True)
            if decision.adapter != wanted
        ]
        wanted_none = [i for i, (_, wanted) in enumerate(prompts) if wanted is None]
        captured = sum(decisions[i].adapter is not None for i in wanted_none)
        rows.append(
            {
                "set": name,
                "n": len(prompts),
                "right": sum(good) / len(good),
                "captured": captured / len(wanted_none) if wanted_none else None,
                "chosen": dict(sorted(chosen.items(), key=lambda one: -one[1])),
                "mistakes": sorted(bad, key=lambda one: -float(str(one["confidence"])))[:_WORST],
            }
        )
        sure += [decision.confidence for decision in decisions]
        right += good
        weights += [1 / len(prompts)] * len(prompts)
    return {
        "sets": rows,
        "accuracy": float(np.average(right, weights=weights)) if rows else None,
        "expected_calibration_error": expected_calibration_error(sure, right, weights),
        "coverage_risk": coverage_risk(sure, right),
    }


def _text(report: dict[str, Any], mistakes: bool) -> str:
    width = max((len(row["set"]) for row in report["sets"]), default=0)
    lines = []
    for row in report["sets"]:
        chosen = ", ".join(f"{name} {n}" for name, n in row["chosen"].items())
        lines.append(f"{row['set']:{width}}  {row['right']:6.1%} of {row['n']:4}   {chosen}")
        if mistakes:
            for bad in row["mistakes"]:
                text = " ".join(bad["prompt"].split())[:90]
                lines.append(
                    f"    {bad['chosen'] or 'none'} {bad['confidence']:.2f}, not {bad['wanted'] or 'none'}: {text}"
                )
    lines.append(
        f"sets alike: {report['accuracy']:.1%} right, calibration error {report['expected_calibration_error']:.3f}"
    )
    parts = [f"{one['coverage']:.0%}: {one['risk']:.2%}" for one in report["coverage_risk"]]
    lines.append(f"wrong among the surest: {', '.join(parts)}")
    return "\n".join(lines)


@click.command()
@click.option("--pack", type=PackType(), help="Pack whose router is timed.  [default: the starter pack]")
@click.option("--router", "file", type=PATH, help="A router's file, in place of a pack's.")
@click.option("--runs", type=click.IntRange(10), default=300, show_default=True, help="Decisions of each kind.")
@json_option
def speed(pack: Path | None, file: Path | None, runs: int, as_json: bool) -> None:
    """Time decisions at 3 and at 1,000 adapters, for prompts of 60 to 8,000 characters, and the opening of the file.

    The 997 further adapters have weights drawn at random: only the time is of interest.

    \b
    Example:
      slm-edge router speed --json
    """
    import numpy as np

    from ...edge.pack.pack import Pack
    from ...edge.router.file import read_router
    from ...edge.router.in_pack import read_pack_router
    from ...edge.router.router import Router

    opened = None if file else Pack.open(pack)

    def load() -> Any:
        return read_router(file) if file else read_pack_router(opened) if opened else None

    load_s, load_cpu_s = _times(lambda _: Router(load()), [""] * 20)
    model = load()
    rows = []
    for n_adapters in (len(model.tasks), 1000):
        router = Router(model if n_adapters < 1000 else _many(model, n_adapters - len(model.tasks)))
        for name, prompt in _prompts().items():
            clock, cpu = _times(router.choose, [prompt] * runs)
            p50, p99 = np.percentile(clock, [50, 99]).tolist()
            cpu50, cpu99 = np.percentile(cpu, [50, 99]).tolist()
            row = {"adapters": n_adapters, "prompt": name, "n_chars": len(prompt)}
            rows.append({**row, "p50_s": p50, "p99_s": p99, "cpu_p50_s": cpu50, "cpu_p99_s": cpu99})
    opening = {"load_s": float(np.median(load_s)), "load_cpu_s": float(np.median(load_cpu_s))}
    lines = [f"opening the file: {1e3 * opening['load_s']:.1f} ms, CPU {1e3 * opening['load_cpu_s']:.1f} ms"]
    lines += [
        f"{row['adapters']:5} adapters, {row['prompt']:9} {row['n_chars']:5} characters: "
        f"p50 {1e3 * row['p50_s']:.2f} ms, p99 {1e3 * row['p99_s']:.2f} ms; "
        f"CPU p50 {1e3 * row['cpu_p50_s']:.2f} ms, p99 {1e3 * row['cpu_p99_s']:.2f} ms"
        for row in rows
    ]
    emit({**opening, "decisions": rows}, as_json, "\n".join(lines))


def _times(call: Any, arguments: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds by the clock and of this thread's CPU, for each call; on a busy machine only the second says much."""
    clock, cpu = [], []
    for argument in arguments:
        start_s, cpu_s = time.perf_counter(), time.thread_time()
        call(argument)
        clock.append(time.perf_counter() - start_s)
        cpu.append(time.thread_time() - cpu_s)
    return clock, cpu


def _prompts() -> dict[str, str]:
    """Texts of several kinds at the lengths that matter."""
    prose = "The old mill (built in 1802) ground 12 tons a day. Nobody in Dorn knew why it had stopped. "
    code = "def f_one(a, b):\n    if a[0] == b:\n        return {'x': a + 1}\n    return None\n"
    return {
        "short": "A box has 12 eggs and 5 are used for a cake. How many are left?",
        "prose": ("Summarize this.\n\n" + prose * 100)[:8000],
        "lines": (prose.replace(". ", ".\n") * 100)[:8000],
        "code": (code * 120)[:8000],
        "one word": "a" * 8000,
    }


def _many(model: Any, n: int) -> Any:
    import dataclasses

    import numpy as np

    from ...edge.router.file import ADDED_SLOTS
    from ...edge.router.hashing import N_SLOTS
    from ...edge.router.words import NAMES

    draw = np.random.default_rng(0)
    return dataclasses.replace(
        model,
        added=tuple(f"adapter-{i}" for i in range(n)),
        added_bias=np.full(n, -5, dtype=np.float32),
        added_named=draw.normal(0, 0.1, (n, len(NAMES))).astype(np.float32),
        added_slots=np.sort(draw.integers(0, N_SLOTS, (n, ADDED_SLOTS)), axis=1).astype(np.int32),
        added_values=draw.normal(0, 0.1, (n, ADDED_SLOTS)).astype(np.float32),
    )
