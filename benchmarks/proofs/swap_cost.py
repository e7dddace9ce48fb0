"""What an adapter swap costs, against the number of adapters that are loaded, in one context or in one for each.

    python -m slm_edge.benchmarks.proofs.swap_cost base.gguf --loaded 1 --loaded 8 --loaded 64

One context: the adapter set is replaced and one token computed; llama.cpp rebuilds its scheduler at that decode. One
context for each adapter (two are made): the other context computes the token, nothing is rebuilt. Both are compared
with a token without a swap, in turns; the difference of medians is the cost, the ratio is that of each turn. Memory is
what a second context adds.
Adapters are random, rank 16 on all linear layers, copies of one file. Prints one JSON document.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil

from ...edge.files.read import sha256_file
from ...edge.gguf.base import BaseInfo
from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ..made.random_adapter import write_random_adapter
from ..stats import spread

N_CTX_TOKENS = 512


def token_s(context: Context, position: int) -> float:
    """Seconds to compute one token at a position, which is then forgotten."""
    began_s = time.perf_counter()
    context.decode([1], position)
    taken_s = time.perf_counter() - began_s
    context.remove(0, position)
    return taken_s


def measure(model: Model, file: Path, n_loaded: int, runs: int, threads: int | None) -> dict[str, Any]:
    """Costs in milliseconds with `n_loaded` adapters in memory."""
    while len(model.adapters) < n_loaded:
        model.load_adapter(file)
    adapters = list(model.adapters.values())
    pair = [[(adapters[0], 1.0)], [(adapters[1], 1.0)] if n_loaded > 1 else [(adapters[0], 0.5)]]
    process = psutil.Process()
    with Context(model, n_ctx_tokens=N_CTX_TOKENS, threads=threads) as first:
        before_bytes = process.memory_info().rss
        with Context(model, n_ctx_tokens=N_CTX_TOKENS, threads=threads) as second:
            for context, adapter in zip((first, second), pair, strict=True):
                context.set_adapters(adapter)
                context.decode(list(range(1, 17)), 0)
                token_s(context, 16)
            context_bytes = process.memory_info().rss - before_bytes
            still, other, swapped, loaded = [], [], [], []
            for run in range(runs):
                first.set_adapters(pair[0])
                token_s(first, 16)
                still.append(token_s(first, 16))
                token_s(second, 16)
                other.append(token_s((first, second)[run % 2], 16))
                began_s = time.perf_counter()
                first.set_adapters(pair[1])
                set_s = time.perf_counter() - began_s
                swapped.append(set_s + token_s(first, 16))
                began_s = time.perf_counter()
                sha256_file(file)
                again = model.load_adapter(file)
                loaded.append(time.perf_counter() - began_s)
                again.close()
    token, switch, swap = (statistics.median(times) * 1000 for times in (still, other, swapped))
    return {
        "n_loaded": n_loaded,
        "token_ms": round(token, 3),
        "one_context_swap_ms": round(swap - token, 3),
        "swap_and_token_ms_min_max": [round(1000 * value, 2) for value in (min(swapped), max(swapped))],
        "swap_and_token_to_token": spread(_ratios(swapped, still)),
        "context_each_swap_ms": round(switch - token, 3),
        "context_each_swap_and_token_to_token": spread(_ratios(other, still)),
        "context_each_bytes": context_bytes,
        "load_to_token": spread(_ratios(loaded, still)),
    }


def _ratios(after_s: list[float], before_s: list[float]) -> list[float]:
    return [after / before for after, before in zip(after_s, before_s, strict=True)]


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--loaded", multiple=True, type=int, default=(1, 2, 4, 8, 16, 32, 64), show_default=True)
@click.option("--runs", default=20, show_default=True)
@click.option("--threads", type=int)
def main(base: Path, loaded: tuple[int, ...], runs: int, threads: int | None) -> None:
    """Measure adapter swaps."""
    with tempfile.TemporaryDirectory() as temporary, Model.load(base) as model:
        file = Path(temporary) / "a.gguf"
        size_bytes = write_random_adapter(BaseInfo.open(base), file)
        results = []
        for n_loaded in sorted(loaded):
            results.append(measure(model, file, n_loaded, runs, threads))
            click.echo(json.dumps(results[-1]), err=True)
    click.echo(json.dumps({"base": base.name, "adapter_bytes": size_bytes, "runs": runs, "results": results}, indent=2))


if __name__ == "__main__":
    main()
