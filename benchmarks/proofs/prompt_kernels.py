"""Prompts with our own products and with llama.cpp's, in turns in one process: rates, perplexity and divergence.

    python -m slm_edge.benchmarks.proofs.prompt_kernels base.gguf [--text docs/how-it-works.md]

Rates are tokens for a second of processor time of one thread, so that other work on the machine changes little.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError
from ...edge.llama.binding import prompt_kernels, take_from
from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.options import BATCH_TOKENS

CHUNK_TOKENS = 512
# Tokens of a chunk that only lead in
LEAD_TOKENS = 64


def rates(context: Context, n_vocab: int, n_tokens: int, rounds: int) -> dict[str, float]:
    """Median tokens for a second of processor time without and with the kernels."""
    prompt = np.random.default_rng(0).integers(3, n_vocab, n_tokens).tolist()
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for ours, times in found.items():
            with take_from(ours):
                start_s = time.process_time()
                _compute(context, prompt, lambda _: None)
                times.append(n_tokens / (time.process_time() - start_s))
    return {"without": median(found[False]), "with": median(found[True])}


def _compute(context: Context, prompt: list[int], each: Callable[[int], object], *, outputs: bool = False) -> None:
    context.clear()
    for at in range(0, len(prompt), BATCH_TOKENS):
        part = prompt[at : at + BATCH_TOKENS]
        context.decode(part, at, outputs="all" if outputs else "last")
        each(len(part))


def log_probabilities(context: Context, prompt: list[int]) -> npt.NDArray[np.float64]:
    """Of all tokens after each place, shape (n, n_vocab)."""
    rows: list[npt.NDArray[np.float32]] = []
    _compute(context, prompt, lambda n: rows.extend(context.logits(i) for i in range(n)), outputs=True)
    values = np.array(rows, np.float64)
    values -= values.max(axis=1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))


def quality(context: Context, ids: list[int], chunks: int) -> dict[str, float]:
    """Perplexity without and with the kernels, and the divergence between them."""
    loss: dict[bool, list[float]] = {False: [], True: []}
    divergence: list[float] = []
    same: list[bool] = []
    for at in range(0, min(chunks * CHUNK_TOKENS, len(ids) - CHUNK_TOKENS - 1), CHUNK_TOKENS):
        part, following = ids[at : at + CHUNK_TOKENS], np.array(ids[at + 1 : at + CHUNK_TOKENS + 1])
        rows = {}
        for ours in (False, True):
            with take_from(ours):
                rows[ours] = log_probabilities(context, part)[LEAD_TOKENS:]
            loss[ours] += (-rows[ours][np.arange(len(rows[ours])), following[LEAD_TOKENS:]]).tolist()
        divergence += (np.exp(rows[False]) * (rows[False] - rows[True])).sum(axis=1).tolist()
        same += (rows[False].argmax(axis=1) == rows[True].argmax(axis=1)).tolist()
    if not same:
        raise InputError(f"the text has {len(ids)} tokens, {CHUNK_TOKENS + 2} are needed")
    return {
        "places": len(same),
        "perplexity_without": float(np.exp(np.mean(loss[False]))),
        "perplexity_with": float(np.exp(np.mean(loss[True]))),
        "kl": float(np.mean(divergence)),
        "same_first_choice": float(np.mean(same)),
    }


@click.command()
@click.argument("base", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="For the quality.")
@click.option("--tokens", default="128,512,1200", show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True)
@click.option("--chunks", type=int, default=8, show_default=True, help="Of 512 tokens of the text.")
def main(base: Path, text: Path | None, tokens: str, rounds: int, chunks: int) -> None:
    """Measure the prompt kernels on BASE."""
    kernels = prompt_kernels()
    if kernels.name is None:
        raise InputError(f"there are no prompt kernels: {kernels.why}")
    report: dict[str, object] = {"base": base.name, "kernels": kernels.name}
    with Model.load(base, repack=False) as model:
        sizes = [int(n) for n in tokens.split(",")]
        size: dict[str, Any] = {"n_batch_tokens": BATCH_TOKENS, "n_outputs_max": BATCH_TOKENS, "threads": 1}
        with Context(model, n_ctx_tokens=max(*sizes, CHUNK_TOKENS), **size) as context:
            for n in sizes:
                found = rates(context, model.vocab.n_tokens, n, rounds)
                report[f"prompt_{n}"] = {**found, "ratio": found["with"] / found["without"]}
            if text:
                report["quality"] = quality(context, model.vocab.encode(text.read_text(encoding="utf-8")), chunks)
    click.echo(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
