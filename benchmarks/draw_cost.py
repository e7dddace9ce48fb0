"""What drawing a token costs from real logits: our sampler against llama.cpp's chain over a whole vocabulary, in turns.

    python -m slm_edge.benchmarks.draw_cost base.gguf TEXT --top-k 0 --top-p 0.95 --temperature 0.2

Logits are those after each of a text's first tokens. Both draw with one seed from the same rows, in processor time;
`same_tokens` is the share that is the same: llama.cpp adds up a vocabulary's probabilities one by one in float32, which
is off by some 1e-4, so that from flat distributions its nucleus has a few of the least likely more or less. One JSON
document.
"""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from ..edge.llama import lib
from ..edge.sampling import Sampler, Sampling, draw, new_chain
from ..edge.session import Session
from .stats import spread

Rows = Sequence[npt.NDArray[np.float32]]


def by_llama_cpp(rows: Rows, sampling: Sampling) -> list[int]:
    """The tokens that llama.cpp's links alone draw from the whole vocabulary."""
    assert sampling.seed is not None
    chain = new_chain(sampling, sampling.seed)
    try:
        return [draw(chain, row) for row in rows]
    finally:
        lib().llama_sampler_free(chain)


def by_us(rows: Rows, sampling: Sampling) -> list[int]:
    """The tokens that our sampler draws."""
    with Sampler(sampling) as sampler:
        return [sampler.sample_row(row) for row in rows]


def rows_of(base: Path, text: str, n_tokens: int, threads: int | None) -> Rows:
    """Logits after each of a text's first tokens, (n_vocab,) each."""
    with Session.of_files(base, {}, threads=threads) as session:
        rows = []
        for at, token_id in enumerate(session.vocab.encode(text, special=False)[:n_tokens]):
            session.context.decode([token_id], at, outputs="last")
            rows.append(np.array(session.context.logits_view(-1)))
    return rows


def _timed(draws: Callable[[Rows, Sampling], list[int]], rows: Rows, sampling: Sampling) -> tuple[list[int], float]:
    """Token ids, and processor time in ms for each."""
    begun_s = time.process_time()
    ids = draws(rows, sampling)
    return ids, 1e3 * (time.process_time() - begun_s) / len(rows)


def compare(rows: Rows, sampling: Sampling, rounds: int) -> dict[str, Any]:
    """Milliseconds of a draw by both, in turns, and their ratio."""
    ours, theirs, same = [], [], []
    for _ in range(rounds):
        mine, own_ms = _timed(by_us, rows, sampling)
        other, chain_ms = _timed(by_llama_cpp, rows, sampling)
        same += [one == two for one, two in zip(mine, other, strict=True)]
        ours.append(own_ms)
        theirs.append(chain_ms)
    return {
        "n_vocab": len(rows[0]),
        "n_draws": len(rows),
        "rounds": rounds,
        "ms_per_draw": spread(ours),
        "llama_cpp_ms_per_draw": spread(theirs),
        "ratio": spread([own / other for own, other in zip(ours, theirs, strict=True)]),
        "same_tokens": sum(same) / len(same),
    }


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("text_file", metavar="TEXT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", "n_tokens", type=click.IntRange(1), default=200, show_default=True, help="Rows of logits.")
@click.option("--top-k", type=int, multiple=True, default=(0, 40), show_default=True)
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option("--min-p", type=float, default=0.0, show_default=True)
@click.option("--temperature", type=float, multiple=True, default=(0.2, 1.0), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1))
def main(
    base: Path,
    text_file: Path,
    n_tokens: int,
    top_k: tuple[int, ...],
    top_p: float,
    min_p: float,
    temperature: tuple[float, ...],
    rounds: int,
    threads: int | None,
) -> None:
    """Measure drawing from a base's logits after the tokens of TEXT."""
    rows = rows_of(base, text_file.read_text(encoding="utf-8"), n_tokens, threads)
    found = [
        {"top_k": k, "temperature": heat, "top_p": top_p, "min_p": min_p, **compare(rows, sampling, rounds)}
        for k, heat in itertools.product(top_k, temperature)
        for sampling in [Sampling(temperature=heat, top_k=k, top_p=top_p, min_p=min_p, seed=1)]
    ]
    click.echo(json.dumps({"base": base.name, "text": text_file.name, "rows": found}, indent=2))


if __name__ == "__main__":
    main()
