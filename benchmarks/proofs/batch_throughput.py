"""Tokens per second of several requests answered together (`Session.submit`), and whether they stay the same tokens.

    python -m slm_edge.benchmarks.proofs.batch_throughput base.gguf --parallel 1 --parallel 8 --tokens 64

For each number of sequences as many different prompts are answered greedily with one random adapter, so many tokens
each, in turns over the runs; the ratio to the first number is that of each turn. The same prompts asked one at a time
give the tokens to compare with.

With `--batched-bench PATH` llama.cpp's own tool takes its turn in each run (it knows no adapters: the base alone
answers then). It decodes as many tokens in as many sequences after prompts of the same length, and neither samples nor
stops; the ratio is that of generated tokens over the time of all, prompts included.

With `--onnx FOLDER` the base's ONNX form answers on onnxruntime, the base alone. Prints one JSON document.
"""

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from ...edge.answer.base import SessionBase
from ...edge.errors import EngineError
from ...edge.gguf.base import BaseInfo
from ...edge.onnx.session import OnnxSession
from ...edge.session.session import Session
from ..made.random_adapter import write_random_adapter
from ..stats import spread

# The tool writes its figures from a thread that its end may overtake: lines get lost on a busy machine.
TRIES = 3
SUBJECTS = ("rivers", "bread", "the moon", "ships", "numbers", "gardens", "clocks", "winter", "glass", "horses")


def batched_bench(
    tool: Path, base: Path, n_prompt: int, n_tokens: int, parallel: tuple[int, ...], threads: int
) -> dict[int, float]:
    """llama-batched-bench's generated tokens per second of the whole, prompts included, by number of sequences."""
    command = [
        tool,
        "-m",
        base,
        "-npp",
        n_prompt,
        "-ntg",
        n_tokens,
        "-npl",
        ",".join(map(str, parallel)),
        "-t",
        threads,
    ]
    command += ["-c", max(parallel) * (n_prompt + n_tokens) + 256, "-ngl", 0, "--output-format", "jsonl"]
    for _ in range(TRIES):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith('{"n_kv_max"')]
        if done.returncode == 0 and {row["pl"] for row in rows} == set(parallel):
            return {row["pl"]: row["pl"] * row["tg"] / row["t"] for row in rows}
    problems = done.stderr.splitlines()[-3:]
    raise EngineError(f"gave no figures (code {done.returncode})", where=tool, problems=problems)


def _session(base: Path, onnx: Path | None, adapter: Path, threads: int | None, n_parallel: int) -> SessionBase[Any]:
    if onnx is not None:
        return OnnxSession.of_files(onnx, {}, threads=threads, n_parallel=n_parallel)
    return Session.of_files(base, {"a": (adapter, None)}, threads=threads, n_parallel=n_parallel)


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--parallel", multiple=True, type=int, default=(1, 2, 4, 8), show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Length of each answer.")
@click.option("--runs", default=3, show_default=True)
@click.option("--threads", type=int)
@click.option("--no-adapter", is_flag=True, help="The base alone.")
@click.option("--onnx", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The base's ONNX form.")
@click.option("--batched-bench", "tool", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(
    base: Path,
    parallel: tuple[int, ...],
    tokens: int,
    runs: int,
    threads: int | None,
    no_adapter: bool,
    onnx: Path | None,
    tool: Path | None,
) -> None:
    """Measure answering several requests together."""
    n_most = max(parallel)
    alone_only = no_adapter or onnx is not None or tool is not None
    prompts = [f"Tell me {i + 1} things about {SUBJECTS[i % len(SUBJECTS)]}." for i in range(n_most)]
    theirs: dict[int, list[float]] = {n: [] for n in parallel}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "a.gguf"
        write_random_adapter(BaseInfo.open(base), file)
        with _session(base, onnx, file, threads, n_most) as session:
            session.use(None if alone_only else "a")
            used_threads = session.threads
            n_prompt = round(statistics.mean(len(session.prompt_tokens(prompt)) for prompt in prompts))
            alone = [session.ask(prompt, max_tokens=tokens).token_ids for prompt in prompts]
            # The batch's context is made once, for as many as will be.
            for pending in [session.submit(prompt, max_tokens=2) for prompt in prompts]:
                pending.result()
            rates: dict[int, list[float]] = {n: [] for n in parallel}
            same: dict[int, int] = dict.fromkeys(parallel, 0)
            for _ in range(runs):
                if tool is not None:
                    for n, rate in batched_bench(tool, base, n_prompt, tokens, parallel, used_threads).items():
                        theirs[n].append(rate)
                for n in parallel:
                    began_s = time.perf_counter()
                    waiting = [session.submit(prompt, max_tokens=tokens) for prompt in prompts[:n]]
                    answers = [pending.result() for pending in waiting]
                    taken_s = time.perf_counter() - began_s
                    rates[n].append(sum(answer.n_tokens for answer in answers) / taken_s)
                    same[n] = sum(answer.token_ids == one for answer, one in zip(answers, alone, strict=False))
    results: list[dict[str, Any]] = []
    for n in parallel:
        row = {
            "sequences": n,
            "tokens_per_s": spread(rates[n]),
            f"ratio_to_{parallel[0]}": spread(
                [own / one for own, one in zip(rates[n], rates[parallel[0]], strict=True)]
            ),
            "same_tokens_as_alone": f"{same[n]} of {n}",
        }
        if tool is not None:
            row["llama_batched_bench_tokens_per_s"] = spread(theirs[n])
            row["ratio_to_llama_batched_bench"] = spread([a / b for a, b in zip(rates[n], theirs[n], strict=True)])
        results.append(row)
    engine = "llama.cpp" if onnx is None else "onnxruntime"
    about = {
        "base": base.name,
        "engine": engine,
        "threads": used_threads,
        "prompt_tokens": n_prompt,
        "tokens_each": tokens,
        "runs": runs,
    }
    click.echo(json.dumps({**about, "results": results}, indent=2))


if __name__ == "__main__":
    main()
