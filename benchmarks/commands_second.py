"""`slm-edge router eval-second`: what the router's second stage gains, and what it costs."""

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edge.commands_options import data_option, threads_option
from ..edge.console import emit, json_option

if TYPE_CHECKING:
    from ..edge.hidden_state import StateReader
    from ..edge.router import Router
    from ..edge.second_stage import SecondStage
    from .router_sets import Set

PATH = click.Path(path_type=Path)
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@click.command()
@click.option("--pack", type=PATH, help="Pack whose second stage is measured.  [default: the starter pack]")
@data_option("Folder with the public sets, as for bench.")
@click.option("--sets", type=PATH, multiple=True, help="Files of lines SET | ADAPTER | PROMPT.  [default: our unseen]")
@click.option("--limit", type=click.IntRange(1), default=300, show_default=True, help="Prompts of our own, drawn.")
@click.option("--public", type=click.IntRange(0), default=20, show_default=True, help="Prompts of each public set.")
@threads_option
@json_option
def evaluate(
    pack: Path | None,
    data: Path | None,
    sets: tuple[Path, ...],
    limit: int,
    public: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the second stage: right by the first stage, by the second alone, and by both, and what is asked.

    The base reads every prompt, cut to 96 tokens; the seconds are those of that reading.

    \b
    Example:
      slm-edge router eval-second --data DATA --limit 300 --threads 1
    """
    from ..edge.hidden_state import StateReader
    from ..edge.pack import Pack
    from ..edge.pack_router import open_router
    from ..edge.second_stage import read_second_stage
    from .router_sets import FOLDER, public_sets, written_sets

    opened = Pack.open(pack)
    router, stage = open_router(opened), read_second_stage(opened)
    lots: dict[str, Set] = {}
    for path in sets or sorted(FOLDER.glob("unseen*.txt")):
        lots[path.stem] = [row for rows in written_sets(path).values() for row in rows]
    each = limit // max(len(lots), 1)
    lots = {name: random.Random(7).sample(rows, min(each, len(rows))) for name, rows in lots.items()}
    if data is not None and public:
        lots |= public_sets(data, public)
    with StateReader(opened.base_path(allow_pull=True), threads=threads) as reader:
        report = judge_second(router, stage, reader, lots)
    emit(report, as_json, _text(report))


def judge_second(
    router: "Router", stage: "SecondStage", reader: "StateReader", sets: "dict[str, Set]"
) -> dict[str, Any]:
    """The figures of `slm-edge router eval-second` for named sets of (prompt, right adapter).

    Returns:
        For each set `n`, `first`, `second` and `both` (shares right, `both` at the stage's own threshold) and `asked`;
        `thresholds`: the same over all prompts for other thresholds; `reading_s`: quartiles of seconds a prompt.
    """
    import numpy as np

    rows: list[tuple[str, float, bool, bool, bool]] = []
    seconds: list[float] = []
    for name, prompts in sets.items():
        for text, wanted in prompts:
            first = router.choose(text)
            started_s = time.perf_counter()
            opinion = stage.opinion(reader.read(text))
            seconds.append(time.perf_counter() - started_s)
            alone = max(opinion, key=lambda task: opinion[task])
            both = router.choose(text, opinion=opinion)
            rows.append((name, first.confidence, first.adapter == wanted, alone == wanted, both.adapter == wanted))

    def figures(below: float, of: str | None = None) -> dict[str, Any]:
        mine = [row for row in rows if of in (None, row[0])]
        asked = [row[1] < below for row in mine]
        right = [row[4] if ask else row[2] for row, ask in zip(mine, asked, strict=True)]
        return {
            "n": len(mine),
            "first": float(np.mean([row[2] for row in mine])),
            "second": float(np.mean([row[3] for row in mine])),
            "both": float(np.mean(right)),
            "asked": float(np.mean(asked)),
        }

    return {
        "below": stage.below,
        "sets": [{"set": name, **figures(stage.below, name)} for name in sets],
        "thresholds": [{"below": below, **figures(below)} for below in _THRESHOLDS],
        "reading_s": dict(zip(("p25", "p50", "p75"), np.percentile(seconds, [25, 50, 75]).tolist(), strict=True)),
    }


def _text(report: dict[str, Any]) -> str:
    def line(name: str, row: dict[str, Any]) -> str:
        shares = ", ".join(f"{what} {row[what]:.1%}" for what in ("first", "second", "both", "asked"))
        return f"{name:48} {row['n']:5}  {shares}"

    lines = [line(row["set"], row) for row in report["sets"]]
    lines += [line(f"all, asked below {row['below']:.2f}", row) for row in report["thresholds"]]
    quartiles = report["reading_s"]
    lines.append(
        f"the base read a prompt in {1e3 * quartiles['p50']:.0f} ms at the median "
        f"({1e3 * quartiles['p25']:.0f} to {1e3 * quartiles['p75']:.0f})"
    )
    return "\n".join(lines)
