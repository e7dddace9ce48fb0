"""What threads that adapt are worth beside busy processes, against every fixed number of threads, in turns.

    python -m slm_edge.benchmarks.proofs.busy_threads base.gguf --others 0 --others 1 --others 2 --runs 10
    taskset -c 0,1 python -m slm_edge.benchmarks.proofs.busy_threads base.gguf       # as on two cores

One model, one context for each number of threads from one to the fast cores, and one whose number is left open. In
each turn each computes a prompt and the tokens after it, while so many other processes compute all the time. A ratio is
the seconds of the best fixed number over those of the open one, all turns added up: the best is chosen afterwards, from
its own sums. Bounds: 0.99 with no other process, 0.85 with one or more. Processes that were there before count too:
they are shown, and with them no ratio tells of an idle machine. Prints a line for each, then one JSON document; ends
with 1 if a bound is missed.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.system.load import OthersCores
from ...edge.system.machine import default_threads
from ..stats import spread

IDLE_BOUND: Final = 0.99
BUSY_BOUND: Final = 0.85
OPEN: Final = 0
PROMPT: Final = 128


def spin(until: Any) -> None:
    """Computes until it is told, or its parent is gone."""
    parent = os.getppid()
    while not until.is_set() and os.getppid() == parent:
        for _ in range(1_000_000):
            pass


@contextlib.contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    spawn = multiprocessing.get_context("spawn")
    until = spawn.Event()
    processes = [spawn.Process(target=spin, args=(until,), daemon=True) for _ in range(n)]
    for process in processes:
        process.start()
    try:
        # Until Python has started in them.
        time.sleep(0.5 if n else 0.0)
        yield
    finally:
        until.set()
        for process in processes:
            process.join()


def measure(context: Context, n_decode: int) -> tuple[float, float]:
    """Seconds of a prompt and of `n_decode` tokens after it."""
    context.clear()
    began_s = time.perf_counter()
    context.decode([1 + i % 200 for i in range(PROMPT)], 0)
    prompt_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    for i in range(n_decode):
        context.decode_one(1 + i % 200, PROMPT + i)
    return prompt_s, time.perf_counter() - began_s


def ratio(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """The best fixed number's seconds over the open one's."""
    sums = {number: sum(taken) for number, taken in seconds.items()}
    best = min((number for number in sums if number != OPEN), key=lambda number: sums[number])
    turns = [fixed / adapted for fixed, adapted in zip(seconds[best], seconds[OPEN], strict=True)]
    return {"ratio": round(sums[best] / sums[OPEN], 4), "best_threads": best, "turns": spread(turns)}


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--others", "counts", multiple=True, type=click.IntRange(0), default=(0, 1, 2), show_default=True)
@click.option("--decode", "n_decode", type=click.IntRange(1, 1000), default=100, show_default=True, help="Tokens.")
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True)
def main(base: Path, counts: tuple[int, ...], n_decode: int, runs: int) -> None:
    """Compare threads that adapt with fixed numbers of them on BASE."""
    rows = []
    size: Any = {"n_ctx_tokens": PROMPT + n_decode, "n_batch_tokens": PROMPT}
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(Model.load(base))
        contexts = {
            number: stack.enter_context(Context(model, threads=number or None, **size))
            for number in range(OPEN, default_threads() + 1)
        }
        for count in counts:
            taken: dict[int, list[tuple[float, float]]] = {number: [] for number in contexts}
            with busy_processes(count):
                others = OthersCores()
                for _ in range(runs):
                    for number, context in contexts.items():
                        taken[number].append(measure(context, n_decode))
                others_cores = others()
            found = {
                name: ratio({number: [pair[at] for pair in pairs] for number, pairs in taken.items()})
                for at, name in enumerate(("prompt", "decode"))
            }
            rates = {
                number or "open": round(n_decode * runs / sum(pair[1] for pair in pairs), 1)
                for number, pairs in taken.items()
            }
            bound = BUSY_BOUND if count else IDLE_BOUND
            kept = found["decode"]["ratio"] >= bound
            rows.append(
                {"others": count, "others_cores": round(others_cores, 2), "bound": bound, "kept": kept}
                | {"decode_tokens_per_s": rates, **found}
            )
            click.echo(
                f"{count} other processes ({others_cores:.2f} cores busy): decode {found['decode']['ratio']:.3f} of "
                f"{found['decode']['best_threads']} threads, prompt {found['prompt']['ratio']:.3f} of "
                f"{found['prompt']['best_threads']}"
            )
    click.echo(json.dumps({"base": base.name, "runs": runs, "rows": rows}))
    if not all(row["kept"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
