"""What threads that adapt are worth beside busy processes, against every fixed number of threads, in turns.

    python -m slm_edge.benchmarks.proofs.busy_threads base.gguf --others 0 --others 1 --others 2 --runs 10
    python -m slm_edge.benchmarks.proofs.busy_threads base.gguf --cpus 0        # as on one core
    python -m slm_edge.benchmarks.proofs.busy_threads base.gguf --cpus 0-3      # as on four of more
    python -m slm_edge.benchmarks.proofs.busy_threads onnx-base                 # onnxruntime, whose number stays

One model, one context for each number of threads from one to the fast cores, and one whose number is left open. In
each turn each computes a prompt and the tokens after it, while so many other processes compute all the time on the same
CPUs. A ratio is the seconds of the best fixed number over those of the open one, all turns added up: the best is chosen
afterwards, from its own sums. Bounds, of prompts and of tokens: 0.99 with no other process, 0.85 with one or more.
Processes that were there before count too: they are shown, and with them no ratio tells of an idle machine. Prints a
line for each, then one JSON document; ends with 1 if a bound is missed.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.onnx.engine import OnnxEngine
from ...edge.onnx.folder import OnnxBase
from ...edge.system.load import OthersCores
from ...edge.system.machine import cpu_list, default_threads
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


Decode = Callable[[list[int], int], object]


def opened(base: Path, n_tokens: int, stack: contextlib.ExitStack) -> dict[int, Decode]:
    """What computes tokens at a position, by its number of threads: of a GGUF file, or of an ONNX base's folder."""
    numbers = range(OPEN, default_threads() + 1)
    if base.is_dir():
        onnx = OnnxBase.open(base)
        engines = {number: OnnxEngine(onnx, n_ctx_tokens=n_tokens, threads=number or None) for number in numbers}
        for engine in engines.values():
            stack.callback(engine.close)
        return {number: engine.decode for number, engine in engines.items()}
    model = stack.enter_context(Model.load(base))
    size: Any = {"n_ctx_tokens": n_tokens, "n_batch_tokens": PROMPT}
    contexts = {number: stack.enter_context(Context(model, threads=number or None, **size)) for number in numbers}

    def of_llama(context: Context) -> Decode:
        def decode(token_ids: list[int], position: int) -> None:
            if position == 0:
                context.clear()
                context.decode(token_ids, 0)
            else:
                context.decode_one(token_ids[0], position)

        return decode

    return {number: of_llama(context) for number, context in contexts.items()}


def measure(decode: Decode, n_decode: int) -> tuple[float, float]:
    """Seconds of a prompt and of `n_decode` tokens after it."""
    began_s = time.perf_counter()
    decode([1 + i % 200 for i in range(PROMPT)], 0)
    prompt_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    for i in range(n_decode):
        decode([1 + i % 200], PROMPT + i)
    return prompt_s, time.perf_counter() - began_s


def ratio(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """The best fixed number's seconds over the open one's."""
    sums = {number: sum(taken) for number, taken in seconds.items()}
    best = min((number for number in sums if number != OPEN), key=lambda number: sums[number])
    turns = [fixed / adapted for fixed, adapted in zip(seconds[best], seconds[OPEN], strict=True)]
    return {"ratio": round(sums[best] / sums[OPEN], 4), "best_threads": best, "turns": spread(turns)}


@click.command()
@click.argument("base", type=click.Path(exists=True, path_type=Path))
@click.option("--others", "counts", multiple=True, type=click.IntRange(0), default=(0, 1, 2), show_default=True)
@click.option("--decode", "n_decode", type=click.IntRange(1, 1000), default=100, show_default=True, help="Tokens.")
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--cpus", metavar="LIST", help="The CPUs that all of it runs on, such as 0 or 0-3.  [default: all]")
def main(base: Path, counts: tuple[int, ...], n_decode: int, runs: int, cpus: str | None) -> None:
    """Compare threads that adapt with fixed numbers of them on BASE, a GGUF file or an ONNX base's folder."""
    if cpus is not None:
        wanted = cpu_list(cpus)
        if not wanted or not wanted <= os.sched_getaffinity(0):
            raise click.UsageError(f"--cpus {cpus}: this process may use {sorted(os.sched_getaffinity(0))}.")
        os.sched_setaffinity(0, wanted)
    rows = []
    with contextlib.ExitStack() as stack:
        contexts = opened(base, PROMPT + n_decode, stack)
        # The first to compute brings the file's pages in, and each its own memory.
        for context in contexts.values():
            measure(context, 1)
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
            kept = all(one["ratio"] >= bound for one in found.values())
            rows.append(
                {"others": count, "others_cores": round(others_cores, 2), "bound": bound, "kept": kept}
                | {"decode_tokens_per_s": rates, **found}
            )
            click.echo(
                f"{count} other processes ({others_cores:.2f} cores busy): decode {found['decode']['ratio']:.3f} of "
                f"{found['decode']['best_threads']} threads, prompt {found['prompt']['ratio']:.3f} of "
                f"{found['prompt']['best_threads']}"
            )
    click.echo(json.dumps({"base": base.name, "cpus": len(os.sched_getaffinity(0)), "runs": runs, "rows": rows}))
    if not all(row["kept"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
