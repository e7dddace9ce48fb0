"""Speed, memory and size of onnxruntime against llama.cpp on the same base, and what LoRA costs there.

    python -m slm_edge.benchmarks.proofs.onnx_speed --gguf base.gguf --onnx onnx-base --adapter 16=r16.gguf --threads 1

Every measurement is a process of its own, and they take turns round by round, so that what else the machine does falls
on all of them alike. Reported are medians over the rounds, and times as ratios within a round, with the lowest and the
highest: base alone against llama.cpp's base alone, adapters against the base alone on the same engine. With one thread
also CPU time per token: on a busy machine it is nearer to the truth. LoRA pairs on onnxruntime are random numbers in a
file of the rank; llama.cpp needs an adapter file for each rank.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from ...edge.console import emit, json_option, progress
from ...edge.onnx.adapter import ADAPTER_VERSION, SUFFIX
from ...edge.written import human_bytes

if TYPE_CHECKING:
    from ...edge.onnx.folder import OnnxBase

PREFILL_TOKENS: Final = 128
# Long enough that onnxruntime's weights have been moved to huge pages (`edge/onnx/engine.py`).
WARM_TOKENS: Final = 40
CONTEXT_TOKENS: Final = 512
FIRST_ID: Final = 100
SWAPS: Final = 20


def _ids(n: int) -> list[int]:
    return [FIRST_ID + i % 97 for i in range(n)]


def _random_pairs(base: "OnnxBase", rank: int) -> dict[str, Any]:
    """Numbers for every LoRA input of a base, by name."""
    rng = np.random.default_rng(0)
    dtype = np.float16 if base.dtype == "f16" else np.float32
    found: dict[str, Any] = {}
    for pair in base.lora:
        n_rank = rank * len(pair.widths)
        found[pair.a] = (rng.standard_normal((pair.n_in, n_rank)) * 1e-3).astype(dtype)
        found[pair.b] = (rng.standard_normal((n_rank, pair.n_out)) * 1e-3).astype(dtype)
    return found


def _write_adapter(base: "OnnxBase", rank: int, path: Path) -> None:
    import onnxruntime as ort

    pairs, file = _random_pairs(base, rank), ort.AdapterFormat()
    file.set_adapter_version(ADAPTER_VERSION)
    file.set_model_version(base.version_number)
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in pairs.items()})
    file.export_adapter(str(path))


def measure_onnx(folder: str, threads: int, ranks: Sequence[int], n_tokens: int) -> dict[str, Any]:
    """One process's figures on onnxruntime.

    Args:
        ranks: none for the graph without LoRA; 0 for the graph with its inputs left empty; the last one is timed, and
            with two the swap between them is too.
    """
    from ...edge.onnx.adapter import OnnxAdapter
    from ...edge.onnx.engine import OnnxEngine
    from ...edge.onnx.folder import OnnxBase

    base = OnnxBase.open(folder)
    adapters: list[dict[str, Any]] = []
    load_s = adapter_bytes = None
    with tempfile.TemporaryDirectory(prefix="slm-edge-") as place:
        for index, rank in enumerate(ranks):
            use: dict[str, Any] = {"key": index, "pairs": {}}
            if rank:
                path = Path(place) / f"{index}{SUFFIX}"
                _write_adapter(base, rank, path)
                start_s = time.perf_counter()
                use["pairs"] = OnnxAdapter.open(path, base).arrays
                load_s, adapter_bytes = time.perf_counter() - start_s, path.stat().st_size
            adapters.append(use)
        engine = OnnxEngine(base, n_ctx_tokens=min(CONTEXT_TOKENS, base.max_length_tokens), threads=threads)
        use = adapters[-1] if adapters else {}

        def decode(ids: Sequence[int], position: int) -> None:
            engine.decode(ids, position, **use)

        found = _timed(decode, n_tokens, engine.settle)
        swap_s = None
        if len(adapters) > 1:
            engine.decode([FIRST_ID], PREFILL_TOKENS, **adapters[0])
            spent: list[float] = []
            steady: list[float] = []
            for turn in range(SWAPS):
                for times, next_one in ((spent, adapters[turn % 2]), (steady, adapters[turn % 2])):
                    start_s = time.perf_counter()
                    engine.decode([FIRST_ID], PREFILL_TOKENS, **next_one)
                    times.append(time.perf_counter() - start_s)
            swap_s = statistics.median(swapped - same for swapped, same in zip(spent, steady, strict=True))
    return {**found, "swap_s": swap_s, "load_s": load_s, "adapter_bytes": adapter_bytes}


def measure_llama(gguf: str, threads: int, adapter: str | None, n_tokens: int) -> dict[str, Any]:
    """One process's figures on llama.cpp, through the same calls that a session makes."""
    from ...edge.llama.context import Context
    from ...edge.llama.model import Model

    load_s = None
    with Model.load(gguf) as model, Context(model, n_ctx_tokens=CONTEXT_TOKENS, threads=threads) as context:
        if adapter is not None:
            start_s = time.perf_counter()
            context.set_adapters([(model.load_adapter(adapter), 1.0)])
            load_s = time.perf_counter() - start_s

        def decode(ids: Sequence[int], position: int) -> None:
            # Computing a position again means forgetting what stands from there on.
            context.remove(0, position)
            context.decode(ids, position)

        found = _timed(decode, n_tokens, lambda: None)
    adapter_bytes = None if adapter is None else Path(adapter).stat().st_size
    return {**found, "swap_s": None, "load_s": load_s, "adapter_bytes": adapter_bytes}


def _timed(decode: Callable[[Sequence[int], int], None], n_tokens: int, settle: Callable[[], None]) -> dict[str, Any]:
    """Prefill and decode through `decode(ids, position)`, warmed up first."""
    from ...edge.system.machine import peak_memory_bytes

    decode(_ids(PREFILL_TOKENS), 0)
    for step in range(WARM_TOKENS):
        decode([FIRST_ID], PREFILL_TOKENS + step)
    settle()
    start_s = time.perf_counter()
    decode(_ids(PREFILL_TOKENS), 0)
    prefill_s = time.perf_counter() - start_s
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    for step in range(n_tokens):
        decode([FIRST_ID], PREFILL_TOKENS + step)
    return {
        "prefill_tokens_per_s": PREFILL_TOKENS / prefill_s,
        "decode_tokens_per_s": n_tokens / (time.perf_counter() - start_s),
        "decode_cpu_s": (time.process_time() - start_cpu_s) / n_tokens,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _in_a_process(function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    code = (
        "import json, sys\nfrom slm_edge.benchmarks import onnx_speed\n"
        f"print(json.dumps(onnx_speed.{function}(**json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise click.ClickException(f"a measurement failed: {result.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def _plan(gguf: Path, onnx: Sequence[Path], adapters: Mapping[int, Path], threads: int, n: int) -> dict[str, Any]:
    """Name of each measurement -> function, arguments, and the name of that which it is compared with."""
    common = {"threads": threads, "n_tokens": n}
    first = "llama.cpp off"
    plan: dict[str, Any] = {first: ("measure_llama", {"gguf": str(gguf), "adapter": None, **common}, first)}
    for rank, path in adapters.items():
        arguments: dict[str, Any] = {"gguf": str(gguf), "adapter": str(path), **common}
        plan[f"llama.cpp r{rank}"] = ("measure_llama", arguments, first)
    for folder in onnx:
        for name, ranks in (("off", []), ("rank 0", [0]), ("r16", [16, 16]), ("r64", [64])):
            arguments = {"folder": str(folder), "ranks": ranks, **common}
            reference = first if name == "off" else f"{folder.name} off"
            plan[f"{folder.name} {name}"] = ("measure_onnx", arguments, reference)
    return plan


def _adapter_files(texts: Sequence[str]) -> dict[int, Path]:
    """RANK=FILE of the command line."""
    found = {}
    for text in texts:
        rank, _, path = text.partition("=")
        if not rank.isdecimal() or not Path(path).is_file():
            raise click.BadParameter(f"{text!r} is not RANK=FILE with a file that is there", param_hint="--adapter")
        found[int(rank)] = Path(path)
    return found


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
    plan = _plan(gguf, onnx, _adapter_files(adapters), threads, n_tokens)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    with progress("measuring", rounds * len(plan), "processes") as advance:
        for _ in range(rounds):
            for name, (function, arguments, _) in plan.items():
                found[name].append(_in_a_process(function, arguments))
                advance(1, text=name)
    rows = {name: {"against": plan[name][2], **_summary(found[name], found[plan[name][2]])} for name in plan}
    sizes = {path.name: _folder_bytes(path) for path in (gguf, *onnx)}
    data = {"threads": threads, "rounds": rounds, "n_tokens": n_tokens, "rows": rows, "size_bytes": sizes}
    head = f"{'':<24} {'decode/s':>8} {'x (base: llama.cpp)':>21} {'cpu ms':>7} {'x':>5} {'prefill/s':>9} {'x':>5}"
    lines = [f"{head} {'load ms':>8} {'swap ms':>8} {'peak':>10} {'adapter':>10}"]
    lines += [f"{name:<24} {_line(row)}" for name, row in rows.items()]
    lines += [f"{name}: {human_bytes(size)}" for name, size in sizes.items()]
    emit(data, as_json, "\n".join(lines))


def _line(row: Mapping[str, Any]) -> str:
    ratio, cpu = row["decode_time_ratio"], row["decode_cpu_ratio"]

    def milliseconds(seconds_s: float | None) -> str:
        return "" if seconds_s is None else f"{seconds_s * 1e3:.2f}"

    adapter = "" if row["adapter_bytes"] is None else human_bytes(row["adapter_bytes"])
    return (
        f"{row['decode_tokens_per_s']:>8.1f} {ratio['median']:>7.2f} [{ratio['low']:.2f} - {ratio['high']:.2f}] "
        f"{row['decode_cpu_s'] * 1e3:>7.2f} {cpu['median']:>5.2f} {row['prefill_tokens_per_s']:>9.1f} "
        f"{row['prefill_time_ratio']['median']:>5.2f} {milliseconds(row['load_s']):>8} "
        f"{milliseconds(row['swap_s']):>8} {human_bytes(row['peak_memory_bytes']):>10} {adapter:>10}"
    )


def _median(measured: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(row[key]) for row in measured if row[key] is not None]
    return statistics.median(values) if values else None


def _summary(measured: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, times as ratios to the reference's of the same round, and the highest memory."""

    def ratios(time_of: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
        found = [time_of(ours) / time_of(theirs) for ours, theirs in zip(measured, reference, strict=True)]
        return {"median": statistics.median(found), "low": min(found), "high": max(found)}

    keys = ("decode_tokens_per_s", "decode_cpu_s", "prefill_tokens_per_s", "load_s", "swap_s")
    return {
        **{key: _median(measured, key) for key in keys},
        "decode_time_ratio": ratios(lambda row: 1 / float(row["decode_tokens_per_s"])),
        "decode_cpu_ratio": ratios(lambda row: float(row["decode_cpu_s"])),
        "prefill_time_ratio": ratios(lambda row: 1 / float(row["prefill_tokens_per_s"])),
        "peak_memory_bytes": max(int(row["peak_memory_bytes"]) for row in measured),
        "adapter_bytes": measured[0]["adapter_bytes"],
        "rounds": list(measured),
    }


if __name__ == "__main__":
    main()
