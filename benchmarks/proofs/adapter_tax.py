"""What an adapter costs while it acts, by rank and type: prefill and decode with it against the base alone, in turns.

    python -m slm_edge.benchmarks.proofs.adapter_tax base.gguf --rank 16 --rank 128 --dtype f16 --dtype q8_0 --runs 5

One context over one model. In each turn every adapter, and first the base alone, computes the same prompt and the same
tokens after it; a ratio is the base's seconds over the adapter's of the same turn, so 0.9 is a tenth slower. The token
that rebuilds llama.cpp's buffers after a change of adapters is not counted (`swap_cost`). Adapters are random, on all
linear layers, as exports write them: with q8_0 a matrix whose rows are no whole blocks of 32 stays F16. Prints a line
for each adapter, then one JSON document.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from ...edge.gguf.base import BaseInfo
from ...edge.llama.context import Context
from ...edge.llama.model import Adapter, Model
from ..made.random_adapter import write_random_adapter
from ..stats import spread

Seconds = tuple[float, float]
Key = TypeVar("Key")


def measure(context: Context, adapters: list[tuple[Adapter, float]], n_prompt: int, n_decode: int,
            clock: Callable[[], float]) -> Seconds:  # fmt: skip
    """Seconds of a prompt of `n_prompt` tokens and of `n_decode` single ones after it."""
    context.set_adapters(adapters)
    tokens = [1 + i % 200 for i in range(n_prompt)]
    # Buffers are rebuilt for each shape of batch
    context.decode(tokens[: context.n_batch_tokens], 0)
    context.decode([1], min(n_prompt, context.n_batch_tokens))
    context.clear()
    began = clock()
    context.decode(tokens, 0)
    prompt_s = clock() - began
    began = clock()
    for i in range(n_decode):
        context.decode([1 + i % 200], n_prompt + i)
    decode_s = clock() - began
    context.clear()
    return prompt_s, decode_s


def in_turns(context: Context, sets: Mapping[Key, list[tuple[Adapter, float]]], n_prompt: int, n_decode: int, runs: int,
             clock: Callable[[], float] = time.perf_counter) -> dict[Key, list[Seconds]]:  # fmt: skip
    """What each set of adapters takes in each of `runs` turns."""
    taken: dict[Key, list[Seconds]] = {key: [] for key in sets}
    for _ in range(runs):
        for key, adapters in sets.items():
            taken[key].append(measure(context, adapters, n_prompt, n_decode, clock))
    return taken


def ratios(plain: list[Seconds], with_adapter: list[Seconds]) -> dict[str, dict[str, float]]:
    """The base's seconds over the adapter's of the same turn, for prompts and for single tokens."""
    pairs = list(zip(plain, with_adapter, strict=True))
    return {
        "prefill_ratio": spread([base[0] / other[0] for base, other in pairs]),
        "decode_ratio": spread([base[1] / other[1] for base, other in pairs]),
    }


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rank", "ranks", multiple=True, type=click.IntRange(1), default=(16, 64, 128), show_default=True)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["f16", "q8_0"]), default=("f16", "q8_0"),
              show_default=True)  # fmt: skip
@click.option("--prompt", "n_prompt", type=click.IntRange(1), default=128, show_default=True, help="Tokens.")
@click.option("--decode", "n_decode", type=click.IntRange(1), default=32, show_default=True, help="Tokens.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Turns.")
@click.option("--threads", type=click.IntRange(1))
@click.option("--cpu-time", is_flag=True, help="Processor time instead of the clock's: for 1 thread on a busy machine.")
def main(base: Path, ranks: tuple[int, ...], dtypes: tuple[str, ...], n_prompt: int, n_decode: int, runs: int,
         threads: int | None, cpu_time: bool) -> None:  # fmt: skip
    """Measure what adapters cost while they act."""
    clock = time.process_time if cpu_time else time.perf_counter
    info = BaseInfo.open(base)
    with tempfile.TemporaryDirectory() as temporary, Model.load(base) as model:
        sets: dict[tuple[int, str] | None, list[tuple[Adapter, float]]] = {None: []}
        sizes: dict[tuple[int, str], int] = {}
        for rank in ranks:
            for dtype in dtypes:
                file = Path(temporary) / f"r{rank}-{dtype}.gguf"
                sizes[rank, dtype] = write_random_adapter(info, file, rank=rank, dtype=dtype)
                sets[rank, dtype] = [(model.load_adapter(file), 1.0)]
        with Context(model, n_ctx_tokens=n_prompt + n_decode, threads=threads) as context:
            taken = in_turns(context, sets, n_prompt, n_decode, runs, clock)
            used_threads = context.threads
    results: list[dict[str, Any]] = []
    for (rank, dtype), size_bytes in sizes.items():
        row: dict[str, Any] = {
            "rank": rank,
            "dtype": dtype,
            "adapter_bytes": size_bytes,
            "share_of_base": round(size_bytes / base.stat().st_size, 4),
            **ratios(taken[None], taken[rank, dtype]),
        }
        results.append(row)
        texts = [
            f"{name} x{row[key]['median']:.2f} ({row[key]['min']:.2f}-{row[key]['max']:.2f})"
            for name, key in (("prefill", "prefill_ratio"), ("decode", "decode_ratio"))
        ]
        click.echo(f"rank {rank} {dtype}, {size_bytes / 1e6:.1f} MB: {', '.join(texts)}", err=True)
    plain = {
        "prefill_tokens_per_s": spread([n_prompt / seconds[0] for seconds in taken[None]]),
        "decode_tokens_per_s": spread([n_decode / seconds[1] for seconds in taken[None]]),
    }
    head = {"base": base.name, "threads": used_threads, "clock": "processor" if cpu_time else "wall", "runs": runs}
    tokens = {"prompt_tokens": n_prompt, "decode_tokens": n_decode}
    click.echo(json.dumps({**head, **tokens, "base_alone": plain, "results": results}, indent=2))


if __name__ == "__main__":
    main()
