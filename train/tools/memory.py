"""What a training step takes: peak memory and time for each way to keep the frozen weights, each in its own process.

measure("SmolLM2-135M-Instruct.Q4_1.gguf")
measure("llama-3.2-1b:q4_0", ["gguf"])          # a file of random blocks in the real model's shape
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...edge.console import note
from ...edge.errors import EngineError, InputError
from ...edge.written import human_bytes
from ..recipe import Weights
from .memory_shapes import SHAPES, TYPES, write_shape

KINDS: tuple[Weights, ...] = ("f32", "bf16", "gguf", "nf4")


def measure(
    base: str, kinds: Sequence[str] = KINDS, *, rank: int = 16, n_tokens: int = 512, n_steps: int = 1
) -> list[dict[str, Any]]:
    """Trains `n_steps` steps on random tokens, for each way in a process of its own.

    Args:
        base: a GGUF file, or SHAPE:TYPE of `memory_shapes`.
        n_tokens: of the one row of a step; the loss is on its second half.

    Returns:
        per way: weights, file_bytes, start_bytes (resident before the model is there), weights_bytes (the frozen
        tensors), peak_bytes (largest resident memory, weights and all), load_s, step_s (median), loss; or error.

    Raises:
        InputError: no such file or shape.
    """
    if Path(base).is_file():
        return [_in_child(Path(base), kind, rank, n_tokens, n_steps) for kind in kinds]
    shape, _, kind_name = base.partition(":")
    if shape not in SHAPES or kind_name not in TYPES:
        shapes = ", ".join(f"{name}:{kind}" for name in SHAPES for kind in TYPES)
        raise InputError("no such file, and no shape", where=base, hint=f"shapes are {shapes}")
    with tempfile.TemporaryDirectory(prefix="slm-edge-memory-") as folder:
        path = Path(folder) / "random.gguf"
        note(f"writing random blocks in the shape of {shape} …")
        write_shape(path, SHAPES[shape], TYPES[kind_name])
        return [_in_child(path, kind, rank, n_tokens, n_steps) for kind in kinds]


def _in_child(path: Path, kind: str, rank: int, n_tokens: int, n_steps: int) -> dict[str, Any]:
    note(f"measuring {kind} …")
    asked = {"path": str(path), "weights": kind, "rank": rank, "n_tokens": n_tokens, "n_steps": n_steps}
    command = [sys.executable, "-m", "slm_edge.train.tools.memory_child", json.dumps(asked)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode < 0:
        return {"weights": kind, "error": f"killed by signal {-result.returncode}: most likely out of memory"}
    if result.returncode:
        said = (result.stderr.strip().splitlines() or ["no message"])[-1]
        if result.returncode == EngineError.exit_code or "MemoryError" in said or "memory" in said:
            return {"weights": kind, "error": said}
        raise EngineError(f"the measuring process failed: {said}", where=kind)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as text."""
    lines = [f"{'weights':8} {'frozen':>10} {'peak':>10} {'above start':>12} {'step':>9}  loss"]
    for entry in results:
        if "error" in entry:
            lines.append(f"{entry['weights']:8} {entry['error']}")
            continue
        above = entry["peak_bytes"] - entry["start_bytes"]
        lines.append(
            f"{entry['weights']:8} {human_bytes(entry['weights_bytes']):>10} {human_bytes(entry['peak_bytes']):>10} "
            f"{human_bytes(above):>12} {entry['step_s']:>7.2f} s  {entry['loss']:.4f}"
        )
    return "\n".join(lines)
