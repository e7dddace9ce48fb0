"""Speed, memory and size of onnxruntime against llama.cpp on the same base, and what LoRA costs there.

    python -m slm_edge.benchmarks.onnx_speed --gguf base.gguf --onnx onnx-base --threads 1 --rounds 6 --json out.json

Every measurement is a process of its own, and they take turns round by round, so that what else the machine does falls
on all of them alike. Reported are the median and the best of the rounds; compare figures of one run only. LoRA pairs
are random numbers of the rank: their values cost no time. For llama.cpp an adapter file is needed for each rank.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ..edge.console import emit, human_bytes, json_option, progress

PREFILL_TOKENS: Final = 128
CONTEXT_TOKENS: Final = 512
FIRST_ID: Final = 100
SWAPS: Final = 8


def _ids(n: int) -> list[int]:
    return [FIRST_ID + i % 97 for i in range(n)]


def measure_onnx(folder: str, threads: int, ranks: Sequence[int], n_tokens: int) -> dict[str, Any]:
    """One process's figures on onnxruntime.

    Args:
        ranks: none for the graph without LoRA; 0 for the graph with its inputs left empty; the last one is timed, and
            with two the swap between them is too.
    """
    from ..edge.memory import peak_memory_bytes
    from ..edge.onnx_engine import OnnxEngine
    from ..edge.onnx_folder import OnnxBase

    base = OnnxBase.open(folder)
    engine = OnnxEngine(base, n_ctx_tokens=min(CONTEXT_TOKENS, base.max_length_tokens), threads=threads)
    rng = np.random.default_rng(0)
    dtype = np.float16 if base.dtype == "f16" else np.float32

    def pairs(rank: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pair in base.lora if rank else ():
            n_rank = rank * len(pair.widths)
            found[pair.a] = (rng.standard_normal((pair.n_in, n_rank)) * 1e-3).astype(dtype)
            found[pair.b] = (rng.standard_normal((n_rank, pair.n_out)) * 1e-3).astype(dtype)
        return found

    adapters: list[dict[str, Any]] = [
        {"key": f"{index}-{rank}", "pairs": pairs(rank)} for index, rank in enumerate(ranks)
    ] or [{}]
    use = adapters[-1]
    engine.decode(_ids(PREFILL_TOKENS), 0, **use)
    start_s = time.perf_counter()
    engine.decode(_ids(PREFILL_TOKENS), 0, **use)
    prefill_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    for step in range(n_tokens):
        engine.decode([FIRST_ID], PREFILL_TOKENS + step, **use)
    decode_s = time.perf_counter() - start_s
    swap_s = None
    if len(adapters) > 1:
        steady = decode_s / n_tokens
        engine.decode([FIRST_ID], PREFILL_TOKENS, **adapters[0])
        spent = []
        for turn in range(SWAPS):
            start_s = time.perf_counter()
            engine.decode([FIRST_ID], PREFILL_TOKENS, **adapters[turn % 2])
            spent.append(time.perf_counter() - start_s)
        swap_s = statistics.median(spent) - steady
    return {
        "prefill_tokens_per_s": PREFILL_TOKENS / prefill_s,
        "decode_tokens_per_s": n_tokens / decode_s,
        "swap_s": swap_s,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def measure_llama(gguf: str, threads: int, adapter: str | None, n_tokens: int) -> dict[str, Any]:
    """One process's figures on llama.cpp, through the same calls that a session makes."""
    from ..edge.engine import Context, Model
    from ..edge.memory import peak_memory_bytes

    with Model.load(gguf) as model, Context(model, n_ctx_tokens=CONTEXT_TOKENS, threads=threads) as context:
        if adapter is not None:
            context.set_adapters([(model.load_adapter(adapter), 1.0)])
        context.decode(_ids(PREFILL_TOKENS), 0)
        context.clear()
        start_s = time.perf_counter()
        context.decode(_ids(PREFILL_TOKENS), 0)
        prefill_s = time.perf_counter() - start_s
        start_s = time.perf_counter()
        for step in range(n_tokens):
            context.decode([FIRST_ID], PREFILL_TOKENS + step)
        decode_s = time.perf_counter() - start_s
    return {
        "prefill_tokens_per_s": PREFILL_TOKENS / prefill_s,
        "decode_tokens_per_s": n_tokens / decode_s,
        "swap_s": None,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _in_a_process(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    code = (
        "import json, sys\nfrom slm_edge.benchmarks import onnx_speed\n"
        f"print(json.dumps(onnx_speed.{function}(**json.loads(sys.argv[1]))))"
    )
    # Waiting threads of OpenMP must sleep too, or the other side pays for them.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise click.ClickException(f"a measurement failed: {result.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def _plan(gguf: Path, onnx: Sequence[Path], adapters: Mapping[int, Path], threads: int, n: int) -> dict[str, Any]:
    """Name of each measurement -> function and arguments."""
    common = {"threads": threads, "n_tokens": n}
    plan: dict[str, Any] = {"llama.cpp off": ("measure_llama", {"gguf": str(gguf), "adapter": None, **common})}
    for rank, path in adapters.items():
        plan[f"llama.cpp r{rank}"] = ("measure_llama", {"gguf": str(gguf), "adapter": str(path), **common})
    for folder in onnx:
        for name, ranks in (("off", []), ("rank 0", [0]), ("r16", [16, 16]), ("r64", [64])):
            arguments = {"folder": str(folder), "ranks": ranks, **common}
            plan[f"{folder.name} {name}"] = ("measure_onnx", arguments)
    return plan


def _folder_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in ([path] if path.is_file() else path.iterdir()) if part.is_file())


@click.command()
@click.option("--gguf", required=True, type=click.Path(path_type=Path), help="The base that the ONNX form was made of.")
@click.option(
    "--onnx", multiple=True, required=True, type=click.Path(path_type=Path), help="ONNX form; may be repeated."
)
@click.option("--adapter", "adapters", multiple=True, metavar="RANK=FILE", help="A GGUF adapter for llama.cpp's side.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=6, show_default=True, help="Turns of all measurements.")
@click.option(
    "--tokens", "n_tokens", type=click.IntRange(1, 300), default=64, show_default=True, help="Decoded in each."
)
@json_option
def main(
    gguf: Path,
    onnx: tuple[Path, ...],
    adapters: tuple[str, ...],
    threads: int,
    rounds: int,
    n_tokens: int,
    as_json: bool,
) -> None:
    """Measure onnxruntime against llama.cpp on the same base, in turns, each in a process of its own."""
    files = {int(rank): Path(path) for rank, _, path in (text.partition("=") for text in adapters)}
    plan = _plan(gguf, onnx, files, threads, n_tokens)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    with progress("measuring", rounds * len(plan), "processes") as advance:
        for _ in range(rounds):
            for name, (function, arguments) in plan.items():
                found[name].append(_in_a_process(function, arguments))
                advance(1, text=name)
    rows = {name: _summary(measured) for name, measured in found.items()}
    sizes = {path.name: _folder_bytes(path) for path in (gguf, *onnx)}
    data = {"threads": threads, "rounds": rounds, "n_tokens": n_tokens, "rows": rows, "size_bytes": sizes}
    lines = [f"{'':<28} {'decode/s':>9} {'best':>7} {'prefill/s':>9} {'swap ms':>8} {'peak':>10}"]
    for name, row in rows.items():
        swap = "" if row["swap_s"] is None else f"{row['swap_s'] * 1e3:.2f}"
        lines.append(
            f"{name:<28} {row['decode_tokens_per_s']:>9.1f} {row['decode_best_tokens_per_s']:>7.1f} "
            f"{row['prefill_tokens_per_s']:>9.1f} {swap:>8} {human_bytes(row['peak_memory_bytes']):>10}"
        )
    lines += [f"{name}: {human_bytes(size)}" for name, size in sizes.items()]
    emit(data, as_json, "\n".join(lines))


def _summary(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, the fastest and slowest decode, and the highest memory."""
    decode = [float(row["decode_tokens_per_s"]) for row in measured]
    swaps = [float(row["swap_s"]) for row in measured if row["swap_s"] is not None]
    return {
        "decode_tokens_per_s": statistics.median(decode),
        "decode_best_tokens_per_s": max(decode),
        "decode_worst_tokens_per_s": min(decode),
        "prefill_tokens_per_s": statistics.median(float(row["prefill_tokens_per_s"]) for row in measured),
        "swap_s": statistics.median(swaps) if swaps else None,
        "peak_memory_bytes": max(int(row["peak_memory_bytes"]) for row in measured),
    }


if __name__ == "__main__":
    main()
