"""`slm-edge bench`: the score matrix of a pack, tasks x adapters, through the runtime that users run."""

import datetime
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edge.console import emit, json_option, note
from .tasks import MODULES, task

if TYPE_CHECKING:
    from ..edge.pack import Pack
    from ..edge.session import Session
    from .cells import Cell
    from .runner import Generate
    from .task import Item

DEFAULT_PARALLEL = 16
# Answers per place in the batch between two points where all are done
BLOCK_ROUNDS = 8


@click.command()
@click.argument("tasks", nargs=-1, type=click.Choice(list(MODULES)), metavar="[TASK]...")
@click.option("--pack", "pack_folder", type=click.Path(path_type=Path), help="Pack to measure.  [default: the starter]")
@click.option(
    "--adapter", "names", multiple=True, metavar="NAME|none|each", help="May be given again.  [default: each, and none]"
)
@click.option("--limit", type=click.IntRange(1), help="Items of each cell, a fixed random sample.  [default: all]")
@click.option("--limit-others", type=click.IntRange(1), help="The same for adapters made for another task.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="SLM_EDGE_DATA",
    show_envvar=True,
    required=True,
    help="Folder with gsm8k/, mbpp/, dolly/, svamp/ as in the README.",
)
@click.option("--parallel", type=click.IntRange(1, 256), default=DEFAULT_PARALLEL, show_default=True, help="At once.")
@click.option("--threads", type=click.IntRange(1, 512), help="CPU threads.  [default: one per physical core]")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: each task's own]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="Answers and report."
)
@click.option("--report-only", is_flag=True, help="Ask nothing; report what the answers in --out say.")
@json_option
def bench(
    tasks: tuple[str, ...],
    pack_folder: Path | None,
    names: tuple[str, ...],
    limit: int | None,
    limit_others: int | None,
    data: Path,
    parallel: int,
    threads: int | None,
    max_tokens: int | None,
    out: Path,
    report_only: bool,
    as_json: bool,
) -> None:
    """Score a pack's adapters and its base on public test sets: gsm8k, mbpp, dolly, svamp (default: all).

    Greedy, batched. Each score has its number of items and a 95 % interval, each adapter is compared with the base
    on the same items. Every answer is written to --out as it comes: the same command again goes on where the last
    one stopped, killed or not, and measures only what is new. mbpp runs what the model wrote, in a sandbox.
    --out gets report.json, report.md, scores.json (for task cards) and answers/.

    \b
    Examples:
      slm-edge bench --data DATA --out bench
      slm-edge bench gsm8k svamp --adapter math --adapter none --limit 200 --data DATA
    """
    from ..edge.pack import Pack
    from .cells import adapters_of, plan

    pack = Pack.open(pack_folder)
    adapters = adapters_of(pack, names)
    chosen = [task(name) for name in dict.fromkeys(tasks or MODULES)]
    cells = plan(chosen, pack, adapters, data, limit=limit, limit_others=limit_others, max_tokens=max_tokens)

    def report(path: Path) -> dict[str, Any]:
        command = _command(tasks, names, limit, limit_others, max_tokens)
        return _write_report(cells, path, pack, command)

    if not report_only:
        _measure(cells, out, pack, parallel, threads, report)
    data_out = report(out)
    from .report import markdown

    emit(data_out, as_json, markdown(data_out))


def _measure(
    cells: "Sequence[Cell]",
    out: Path,
    pack: "Pack",
    parallel: int,
    threads: int | None,
    report: Callable[[Path], object],
) -> None:
    """Measures all cells; the report is written after each, so that a stop leaves what there is."""
    from ..edge.files import make_folder
    from ..edge.session import Session
    from .runner import run_cell

    make_folder(out / "answers")
    if any(cell.task.name == "mbpp" for cell in cells):
        _say_layers()
    pack.base_path(allow_pull=True)
    with Session.open(pack, threads=threads) as session:
        try:
            for cell in cells:
                asked = run_cell(cell, out / "answers", session_generator(session, parallel))
                report(out)
                note(f"{cell.label}: {cell.n} answers, {asked} of them new")
        except KeyboardInterrupt:
            report(out)
            note(f"stopped; {out} has what was measured, and the same command goes on from there")
            raise


def session_generator(session: "Session", n_parallel: int) -> "Generate":
    """Makes answers as the device does: the pack's session, the adapter's own card, many sequences at once."""
    from ..edge.batch import generate_batch

    def generate(cell: "Cell", items: "list[Item]", on_done: Callable[[int, Any], None]) -> None:
        # Every sequence attends over the longest one's room, so prompts of like length go together; but only within a
        # block, so that a run which stops early leaves whole blocks of the random order to count.
        block = BLOCK_ROUNDS * n_parallel
        for start in range(0, len(items), block):
            indices = range(start, min(start + block, len(items)))
            order = sorted(indices, key=lambda i: sum(len(turn["content"]) for turn in items[i].messages))
            generate_batch(
                session,
                [items[i].messages for i in order],
                adapter=cell.adapter_name,
                max_tokens=cell.max_tokens,
                n_parallel=n_parallel,
                on_done=functools.partial(_of_block, order, on_done),
            )

    return generate


def _of_block(order: list[int], on_done: Callable[[int, Any], None], at: int, answer: Any) -> None:
    """Tells of an answer by its place among the cell's items."""
    on_done(order[at], answer)


def _say_layers() -> None:
    from .code_sandbox import run_program

    layers = run_program("", ["pass"]).layers
    missing = [name for name in ("network", "files", "syscalls") if name not in layers]
    if missing:
        note(f"warning: this system does not confine the code under test in: {', '.join(missing)}")


def _command(
    tasks: Sequence[str], names: Sequence[str], limit: int | None, limit_others: int | None, max_tokens: int | None
) -> str:
    """What was measured, as a command; folders, which say nothing to others, are left out."""
    words = ["slm-edge bench", *tasks, *(f"--adapter {name}" for name in names)]
    options = {"--limit": limit, "--limit-others": limit_others, "--max-tokens": max_tokens}
    words += [f"{option} {value}" for option, value in options.items() if value is not None]
    return " ".join(words)


def _write_report(cells: "Sequence[Cell]", out: Path, pack: "Pack", command: str) -> dict[str, Any]:
    from ..edge.files import atomic_file, make_folder, write_json
    from .report import card_scores, make_report, markdown

    made_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    data = make_report(cells, make_folder(out) / "answers", pack, made_at=made_at, command=command)
    write_json(out / "report.json", data)
    write_json(out / "scores.json", card_scores(data))
    with atomic_file(out / "report.md") as aside:
        aside.write_text(markdown(data), encoding="utf-8")
    return data
