"""Cost against what grows: the model's size, the context, the adapters in a pack, the clients at once.

    python -m slm_edge.benchmarks.scaling size 135m.gguf 0.5b.gguf 1.5b.gguf
    python -m slm_edge.benchmarks.scaling context base.gguf --depth 512 --depth 2048 --depth 8192
    python -m slm_edge.benchmarks.scaling adapters base.gguf --count 1 --count 16 --count 256
    python -m slm_edge.benchmarks.scaling clients base.gguf --clients 1 --clients 4 --clients 16

Each point is measured once in each round, all points in turns; a figure is the median of the rounds with its spread.
`per_unit` is a cost for each unit of what grows, as a ratio to the first point's: 1 at every point is a straight line
through zero, and what falls has a part that does not grow. Models for `size` that may not be fetched are made with
random weights by `benchmarks.made.random_base`. Adapters are random, rank 16 on all linear layers, and one file under
many names. Prints a line for each point, then one JSON document.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import click

from ...edge.gguf.base import BaseInfo
from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.pack.pack import Pack
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.scheduler.engine import Engine
from ...edge.session.session import Session
from ..made.random_adapter import write_random_adapter
from ..stats import spread

CHUNK: Final = 256
ANSWER_TOKENS: Final = 20
Row = dict[str, Any]
BASE = click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
RUNS = click.option("--runs", type=click.IntRange(1), default=3, show_default=True)
THREADS = click.option("--threads", type=click.IntRange(1))


def tokens_of(n_tokens: int) -> list[int]:
    """Ids that every vocabulary has."""
    return [1 + i % 200 for i in range(n_tokens)]


def timed(work: Callable[..., object], *arguments: Any, **named: Any) -> float:
    """Milliseconds of a call."""
    began_s = time.perf_counter()
    work(*arguments, **named)
    return (time.perf_counter() - began_s) * 1e3


def decode(context: Context, n_tokens: int, position: int) -> None:
    """Single tokens one after another, from a position on."""
    for i in range(n_tokens):
        context.decode_one(1, position + i)


def rounds(points: Sequence[Any], runs: int, measure: Callable[[Any], dict[str, float]]) -> list[Row]:
    """The figures of every point over the rounds, each round all points in turn."""
    found: list[list[dict[str, float]]] = [[] for _ in points]
    for _ in range(runs):
        for at, point in enumerate(points):
            found[at].append(measure(point))
    return spreads(found)


def spreads(found: Sequence[Sequence[dict[str, float]]]) -> list[Row]:
    """Each point's figures over its rounds."""
    return [{name: spread([row[name] for row in rows]) for name in rows[0]} for rows in found]


@contextmanager
def opened(base: Path, n_ctx_tokens: int, threads: int | None) -> Iterator[Context]:
    """A context over a model that is closed with it."""
    with (
        Model.load(base) as model,
        Context(model, n_ctx_tokens=n_ctx_tokens, n_batch_tokens=CHUNK, threads=threads) as context,
    ):
        yield context


def report(what: str, sizes: Sequence[float], rows: list[Row], costs: Sequence[str], about: Row) -> None:
    """Prints the points and the document; `costs` are what should grow with the size."""
    for size, row in zip(sizes, rows, strict=True):
        shown = ", ".join(f"{name} {value['median']:.4g}" for name, value in row.items())
        row[what] = size
        row["per_unit"] = {
            cost: round(row[cost]["median"] / size / (rows[0][cost]["median"] / sizes[0]), 3) for cost in costs
        }
        click.echo(f"{what} {size:,}: {shown}; per unit {row['per_unit']}")
    click.echo(json.dumps(about | {"points": rows}))


@click.group()
def main() -> None:
    """Measure how cost grows."""


@main.command()
@click.argument("bases", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prompt", "n_prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens.")
@click.option("--decode", "n_decode", type=click.IntRange(1), default=48, show_default=True, help="Tokens.")
@RUNS
@THREADS
def size(bases: tuple[Path, ...], n_prompt: int, n_decode: int, runs: int, threads: int | None) -> None:
    """Milliseconds of a prompt and of a token against the file's size."""

    def measure(base: Path) -> dict[str, float]:
        with opened(base, n_prompt + n_decode, threads) as context:
            context.decode(tokens_of(min(n_prompt, CHUNK)), 0)
            context.clear()
            prompt_ms = timed(context.decode, tokens_of(n_prompt), 0)
            decode_ms = timed(decode, context, n_decode, n_prompt)
        return {"prompt_ms": prompt_ms, "token_ms": decode_ms / n_decode}

    ordered = sorted(bases, key=lambda base: base.stat().st_size)
    sizes = [base.stat().st_size for base in ordered]
    about = {"bases": [base.name for base in ordered], "prompt": n_prompt, "runs": runs}
    report("file_bytes", sizes, rounds(ordered, runs, measure), ("prompt_ms", "token_ms"), about)


@main.command()
@BASE
@click.option("--depth", "depths", multiple=True, type=click.IntRange(CHUNK), default=(512, 1024, 2048, 4096, 8192))
@click.option("--decode", "n_decode", type=click.IntRange(1), default=24, show_default=True, help="Tokens.")
@RUNS
@THREADS
def context(base: Path, depths: tuple[int, ...], n_decode: int, runs: int, threads: int | None) -> None:
    """Milliseconds of a chunk and of a token after so many others, and of the whole prompt."""
    ordered = sorted(depths)
    found: list[list[dict[str, float]]] = [[] for _ in ordered]
    with opened(base, ordered[-1] + n_decode, threads) as line:
        for _ in range(runs):
            line.clear()
            at, all_ms = 0, 0.0
            for index, depth in enumerate(ordered):
                chunk_ms = 0.0
                while at < depth:
                    n_tokens = min(CHUNK, depth - at)
                    chunk_ms = timed(line.decode, tokens_of(n_tokens), at)
                    all_ms += chunk_ms
                    at += n_tokens
                decode_ms = timed(decode, line, n_decode, depth)
                line.remove(0, depth)
                found[index].append({"prompt_ms": all_ms, "last_chunk_ms": chunk_ms, "token_ms": decode_ms / n_decode})
    report("depth_tokens", ordered, spreads(found), ("prompt_ms",), {"base": base.name, "chunk": CHUNK, "runs": runs})


@main.command()
@BASE
@click.option("--count", "counts", multiple=True, type=click.IntRange(1, 999), default=(1, 4, 16, 64, 256))
@click.option("--swaps", type=click.IntRange(1), default=8, show_default=True, help="In each round.")
@RUNS
@THREADS
def adapters(base: Path, counts: tuple[int, ...], swaps: int, runs: int, threads: int | None) -> None:
    """Opening a pack, and the first token after a swap, against the adapters in it; new ones, then known ones."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "adapter.gguf"
        n_bytes = write_random_adapter(BaseInfo.open(base), file)
        packs = {}
        for count in sorted(counts):
            news = [NewAdapter(f"a{i}", file) for i in range(count)]
            packs[count] = build_pack(Path(temporary) / f"pack{count}", base=base, adapters=news).folder

        def measure(count: int) -> dict[str, float]:
            began_s = time.perf_counter()
            with Session.open(Pack.open(packs[count]), threads=threads, n_ctx_tokens=512) as session:
                session.ask("hello", max_tokens=1)
                open_ms = (time.perf_counter() - began_s) * 1e3
                # A pack of one swaps between its adapter and the base.
                names = [f"a{i}" for i in range(count)] if count > 1 else ["a0", None]
                new_ms, known_ms = (
                    [timed(session.ask, "hello", adapter=name, max_tokens=1) for name in islice(cycle(ring), 2 * swaps)]
                    for ring in (names, names[:2])
                )
            return {
                "open_ms": open_ms,
                "swap_ms": sum(new_ms) / len(new_ms),
                "known_swap_ms": sum(known_ms) / len(known_ms),
            }

        rows = rounds(sorted(counts), runs, measure)
    report("adapters", sorted(counts), rows, (), {"base": base.name, "adapter_bytes": n_bytes, "runs": runs})


@main.command()
@BASE
@click.option("--clients", "counts", multiple=True, type=click.IntRange(1), default=(1, 2, 4, 8, 16))
@click.option("--prompt", "n_prompt", type=click.IntRange(1), default=40, show_default=True, help="Tokens, all new.")
@RUNS
@THREADS
def clients(base: Path, counts: tuple[int, ...], n_prompt: int, runs: int, threads: int | None) -> None:
    """Tokens per second of all together, of an engine whose clients ask once each at the same moment."""
    most, asked = max(counts), 0

    def session() -> Session:
        return Session.of_files(base, {}, threads=threads, n_ctx_tokens=n_prompt + ANSWER_TOKENS + CHUNK, n_rows=most)

    with Engine.of_session(session, parallel=most, max_wait_s=3600) as engine:

        def measure(count: int) -> dict[str, float]:
            nonlocal asked
            prompts = [[1 + (asked + i + 7 * at) % 199 for at in range(n_prompt)] for i in range(count)]
            asked += count
            began_s = time.perf_counter()
            tickets = [engine.submit(ids, None, max_tokens=ANSWER_TOKENS, temperature=0) for ids in prompts]
            n_tokens = sum(ticket.result().n_tokens for ticket in tickets)
            taken_s = time.perf_counter() - began_s
            return {"all_ms": taken_s * 1e3, "tokens_per_s": n_tokens / taken_s}

        measure(most)
        rows = rounds(sorted(counts), runs, measure)
    report("clients", sorted(counts), rows, ("all_ms",), {"base": base.name, "prompt": n_prompt, "runs": runs})


if __name__ == "__main__":
    main()
