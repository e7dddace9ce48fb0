"""First token after switching back to an adapter whose prefix is known, against computing that prefix again.

    python -m slm_edge.benchmarks.proofs.prefix_restore base.gguf --tokens 512 --runs 5

Two random rank-16 adapters take turns in one session. Each run asks the first adapter for one token after the other
one had the KV cache: once with the prefix in memory, once from disk, once with neither. The prefix is a system message
of about so many tokens, the question after it is short. Logits of all three must be equal bit for bit. Times are the
session's own, from the call to the first token, rebuilding llama.cpp's buffers included. Prints a line per run, then
one JSON document; exit 1 when bits differ or the median ratio of restored to computed is above the bound.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from ...edge.gguf.base import BaseInfo
from ...edge.prefix.chunks import PrefixStore
from ...edge.session.session import Session
from ..made.random_adapter import write_random_adapter

BOUND = 0.05
QUESTION = "Why?"


def system_of(session: Session, n_tokens: int) -> tuple[str, int]:
    """A system message that makes the shared prefix at least `n_tokens` long, and that length."""
    words = ["Note"]
    while True:
        text = " ".join(words)
        found = session.rendered(QUESTION, text, session.choice)[1]
        if found >= n_tokens:
            return text, found
        words += [f"that{i % 7}" if i % 5 == 0 else "the" for i in range(max(1, (n_tokens - found) // 3))]


def measure(session: Session, system: str, runs: int) -> list[dict[str, Any]]:
    """Times in seconds of each run, and whether all logits agreed."""
    cache = session.prefixes
    disk, memory, nothing = cache.disk, PrefixStore(1 << 30), PrefixStore(0)
    results: list[dict[str, Any]] = []

    def first_token(store: PrefixStore, from_disk: bool) -> tuple[float, int, Any]:
        cache.store, cache.disk = store, disk if from_disk else None
        session.use("b").ask("Hi", max_tokens=1)
        answer = session.use("a").ask(QUESTION, system=system, max_tokens=1)
        return answer.first_token_s, answer.n_kept_tokens, session.context.logits()

    first_token(memory, True)
    first_token(memory, True)
    cache.flush()
    for _ in range(runs):
        restored_s, n_restored, restored = first_token(memory, False)
        disk_s, n_disk, from_disk = first_token(nothing, True)
        computed_s, n_computed, computed = first_token(nothing, False)
        blob = session.context.read_sequence(0)
        began_s = time.perf_counter()
        session.context.write_sequence(0, blob)
        copy_s = time.perf_counter() - began_s
        session._lane.record.cut(0)
        exact = all(np.array_equal(row.view(np.uint32), computed.view(np.uint32)) for row in (restored, from_disk))
        result = {
            "computed_s": round(computed_s, 4),
            "restored_s": round(restored_s, 4),
            "from_disk_s": round(disk_s, 4),
            "copy_s": round(copy_s, 5),
            "kept_tokens": [n_restored, n_disk, n_computed],
            "ratio": round(restored_s / computed_s, 4),
            "disk_ratio": round(disk_s / computed_s, 4),
            "bit_exact": exact and n_restored == n_disk > n_computed == 0,
        }
        results.append(result)
        click.echo(
            f"computed {computed_s:.3f} s, restored {restored_s:.4f} s ({100 * restored_s / computed_s:.1f} %), "
            f"from disk {disk_s:.4f} s, {'bit-exact' if result['bit_exact'] else 'BITS DIFFER'}",
            err=True,
        )
    return results


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=512, show_default=True, help="Length of the prefix.")
@click.option("--runs", default=5, show_default=True)
@click.option("--threads", type=int)
def main(base: Path, tokens: int, runs: int, threads: int | None) -> None:
    """Measure restoring a known prefix against computing it."""
    info = BaseInfo.open(base)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = {name: folder / f"{name}.gguf" for name in "ab"}
        for seed, file in enumerate(files.values()):
            write_random_adapter(info, file, seed=seed)
        with Session.of_files(
            base,
            {name: (file, None) for name, file in files.items()},
            threads=threads,
            prefix_cache=folder / "kv",
        ) as session:
            system, n_tokens = system_of(session, tokens)
            results = measure(session, system, runs)
            disk_bytes = sum(file.stat().st_size for file in (folder / "kv").glob("*.kv"))
            used_threads = session.context.threads
    ratio = statistics.median(result["ratio"] for result in results)
    exact = all(result["bit_exact"] for result in results)
    summary = {
        "base": base.name,
        "threads": used_threads,
        "prefix_tokens": n_tokens,
        "prefix_file_bytes": disk_bytes,
        "runs": results,
        "median_ratio": ratio,
        "median_disk_ratio": statistics.median(result["disk_ratio"] for result in results),
        "bound": BOUND,
        "within_bound": ratio <= BOUND,
        "bit_exact": exact,
    }
    click.echo(json.dumps(summary, indent=2))
    sys.exit(not (exact and ratio <= BOUND))


if __name__ == "__main__":
    main()
