"""One measurement of `memory.py`, in a process that does nothing else: a step's peak memory on one kind of weights.

The largest resident memory is VmHWM of /proc if there is one: getrusage's figure would include what the parent
process held when it started this one.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..data.examples import Example
from ..data.prepare import Data
from ..model import attention
from ..model.frozen import FrozenLinear
from ..model.gguf_model import load_gguf_model
from ..model.lora import add_lora, trainable
from ..recipe import Recipe
from ..run.loop import Machine, memory_bytes, train_step
from ..run.ranks import Ranks
from ..run.workers import Workers


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def frozen_bytes(model: torch.nn.Module) -> int:
    """Bytes of all frozen tensors, those that two modules share counted once."""
    parts = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad}
    scales = [layer.state_bytes() for layer in model.modules() if isinstance(layer, FrozenLinear)]
    return sum(parts.values()) + sum(scales)


def measure(path: str, weights: Any, rank: int, n_tokens: int, n_steps: int) -> dict[str, Any]:
    """Loads the base, puts an adapter on it, and trains; see `memory.measure` for what comes back."""
    torch.manual_seed(0)
    recipe = Recipe(task="memory", rank=rank, weights=weights, forward_tokens=n_tokens, lr=1e-4)
    import peft  # noqa: F401 - so that it counts as a start, not as the model
    import transformers.models.llama.modeling_llama  # noqa: F401

    start_bytes, begun = memory_bytes(), time.perf_counter()
    model = add_lora(load_gguf_model(path, attention=attention.register(), weights=weights), recipe, "base")
    load_s = time.perf_counter() - begun
    causal: Any = model.get_base_model()
    ids = torch.randint(0, causal.config.vocab_size, (n_tokens,)).tolist()
    rows = [Example(tuple(ids), n_tokens // 2)]
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=recipe.lr, fused=True)
    seconds, loss = [], 0.0
    with Workers(1) as workers, Ranks() as ranks:
        for _ in range(n_steps):
            begun = time.perf_counter()
            data = Data(rows, [], 0)
            loss = train_step(model, optimizer, rows, data, recipe, recipe.lr, Machine(workers, ranks))[0]
            seconds.append(time.perf_counter() - begun)
    return {
        "weights": weights,
        "rank": rank,
        "tokens": n_tokens,
        "file_bytes": Path(path).stat().st_size,
        "start_bytes": start_bytes,
        "weights_bytes": frozen_bytes(model),
        "peak_bytes": peak_bytes(),
        "load_s": load_s,
        "step_s": statistics.median(seconds),
        "loss": loss,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))  # noqa: T201 - the parent reads it
