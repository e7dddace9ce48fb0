"""Tokens per second of several requests answered together (`Session.submit`), and whether they stay the same tokens.

    python -m slm_edge.benchmarks.batch_throughput base.gguf --parallel 1 --parallel 8 --tokens 64

For each number of sequences as many different prompts are answered greedily with one random adapter, so many tokens
each, in turns over the runs. The same prompts asked one at a time give the tokens to compare with. llama.cpp's own
figure for the same file is that of `llama-batched-bench -npp 32 -ntg TOKENS -npl 1,2,4,8`, which knows no adapters:
compare it with `--no-adapter`. Prints one JSON document.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import click

from ..edge.base_info import BaseInfo
from ..edge.session import Session
from .random_adapter import write_random_adapter

SUBJECTS = ("rivers", "bread", "the moon", "ships", "numbers", "gardens", "clocks", "winter", "glass", "horses")


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--parallel", multiple=True, type=int, default=(1, 2, 4, 8), show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Length of each answer.")
@click.option("--runs", default=3, show_default=True)
@click.option("--threads", type=int)
@click.option("--no-adapter", is_flag=True, help="The base alone.")
def main(base: Path, parallel: tuple[int, ...], tokens: int, runs: int, threads: int | None, no_adapter: bool) -> None:
    """Measure answering several requests together."""
    n_most = max(parallel)
    prompts = [f"Tell me {i + 1} things about {SUBJECTS[i % len(SUBJECTS)]}." for i in range(n_most)]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "a.gguf"
        write_random_adapter(BaseInfo.open(base), file)
        with Session.of_files(base, {"a": (file, None)}, threads=threads, n_parallel=n_most) as session:
            session.use(None if no_adapter else "a")
            alone = [session.ask(prompt, max_tokens=tokens).token_ids for prompt in prompts]
            rates: dict[int, list[float]] = {n: [] for n in parallel}
            same: dict[int, int] = dict.fromkeys(parallel, 0)
            for _ in range(runs):
                for n in parallel:
                    began_s = time.perf_counter()
                    waiting = [session.submit(prompt, max_tokens=tokens) for prompt in prompts[:n]]
                    answers = [pending.result() for pending in waiting]
                    taken_s = time.perf_counter() - began_s
                    rates[n].append(sum(answer.n_tokens for answer in answers) / taken_s)
                    same[n] = sum(answer.token_ids == one for answer, one in zip(answers, alone, strict=False))
    results = [
        {
            "sequences": n,
            "tokens_per_s": round(statistics.median(rates[n]), 2),
            "min_max": [round(min(rates[n]), 2), round(max(rates[n]), 2)],
            "same_tokens_as_alone": f"{same[n]} of {n}",
        }
        for n in parallel
    ]
    click.echo(json.dumps({"base": base.name, "tokens_each": tokens, "runs": runs, "results": results}, indent=2))


if __name__ == "__main__":
    main()
