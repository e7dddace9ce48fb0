"""The training loop: steps, checkpoints, held-out loss, progress. What it trains on is made elsewhere."""

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...edge.console import Advance, note, progress
from ...edge.errors import DoesNotFitError
from ...edge.written import human_bytes
from ..data.examples import Example
from ..data.prepare import Data
from ..model.alora import activated
from ..model.lora import trainable
from ..recipe import Recipe
from . import checkpoint
from .batches import Packed, pack, split_by_tokens, steps
from .checkpoint import State
from .loss import completion_loss, likeliest
from .ranks import Ranks
from .workers import Workers

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Machine:
    """What a run computes with: this process's threads, its device, and the other processes of the run."""

    workers: Workers
    ranks: Ranks
    device: str = "cpu"

    def passes(self, rows: Sequence[Example], data: Data, recipe: Recipe) -> list[Packed]:
        """This process's share of the forward passes over `rows`."""
        return [pack(part, data.prefix_tokens).to(self.device) for part in self.parts(rows, data, recipe)]

    def parts(self, rows: Sequence[Example], data: Data, recipe: Recipe) -> list[list[Example]]:
        """The rows of each of these passes."""
        # two at least for the cores of a CPU; a GPU computes one after another, and each costs it the same launches
        multiple = self.ranks.n if self.ranks.n > 1 or self.device != "cpu" else 2
        split = split_by_tokens(rows, data.prefix_tokens, recipe.forward_tokens, multiple)
        return list(self.ranks.mine(split))


def memory_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def memory_text(device: str) -> str:
    """How much memory the run takes where it computes: resident now, or of a GPU at most so far."""
    if device == "cpu":
        return f"memory {human_bytes(memory_bytes())}"
    return f"GPU memory {human_bytes(torch.cuda.max_memory_allocated())} at most"


def others_on_gpu(free_bytes: int, total_bytes: int, ours_bytes: int) -> str | None:
    """What to do where other processes hold a tenth of the GPU's memory or more; else None."""
    others_bytes = total_bytes - free_bytes - ours_bytes
    if others_bytes < total_bytes / 10:
        return None
    return (
        f"other processes hold {human_bytes(others_bytes)} of this GPU's {human_bytes(total_bytes)}: run fewer at "
        "once; the same command then goes on from its last checkpoint"
    )


def completion_states(model: "PeftModel", batch: Packed) -> Tensor:
    """Last hidden states (m, width) from which the completion tokens of one pass are told."""
    causal: Any = model.get_base_model()
    with activated(batch.active):
        out = causal.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            use_cache=False,
            layout=batch.layout,
            row_mask=batch.row_mask,
            padding=batch.padding,
        )
    states: Tensor = out.last_hidden_state[0, batch.at]
    return states


@torch.no_grad()
def end_states(model: "PeftModel", rows: Sequence[Example], device: str, n: int = 4) -> Tensor:
    """Last hidden states (n, width) from which the ends of the `n` shortest rows' answers are told."""
    shortest = sorted(rows, key=lambda row: len(row.ids))[:n]
    return torch.stack([completion_states(model, pack([row], 0).to(device))[-1] for row in shortest])


def packed_loss(model: "PeftModel", batch: Packed) -> Tensor:
    """Summed cross-entropy (nats) of the completion tokens of one pass."""
    causal: Any = model.get_base_model()
    return completion_loss(completion_states(model, batch), causal.lm_head, batch.targets)


def held_out_loss(model: "PeftModel", data: Data, recipe: Recipe, machine: Machine) -> float | None:
    """Mean cross-entropy (nats) per completion token of the held-out examples; None if there are none."""
    if not data.held_out:
        return None
    model.eval()
    parts = machine.passes(data.held_out, data, recipe)

    @torch.no_grad()
    def one(part: Packed) -> float:
        return float(packed_loss(model, part))

    total, n = machine.ranks.sum_([], [sum(machine.workers.map(one, parts)), sum(len(part.targets) for part in parts)])
    return total / n


def held_out_share(model: "PeftModel", data: Data, recipe: Recipe, machine: Machine, metric: str) -> float | None:
    """Share of the held-out examples ("exact") or of their completion tokens ("tokens") that the model is right in.

    A token is right where it is the likeliest one behind all that stands before it; an example where all of its tokens
    are, so that its answers are those that greedy decoding gives. None for the metric "loss", or without examples.
    """
    if not data.held_out or metric == "loss":
        return None
    model.eval()
    causal: Any = model.get_base_model()

    @torch.no_grad()
    def right(part: list[Example]) -> list[float]:
        batch = pack(part, data.prefix_tokens).to(machine.device)
        hits = likeliest(completion_states(model, batch), causal.lm_head) == batch.targets
        rows = torch.split(hits, [len(example.learned) for example in part])
        return [sum(float(row.all()) for row in rows), float(len(rows)), float(hits.sum()), float(len(hits))]

    found = machine.workers.map(right, machine.parts(data.held_out, data, recipe))
    sums = machine.ranks.sum_([], [sum(one[i] for one in found) for i in range(4)])
    return sums[0] / sums[1] if metric == "exact" else sums[2] / sums[3]


def train_step(
    model: "PeftModel",
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Example],
    data: Data,
    recipe: Recipe,
    lr: float,
    machine: Machine,
    stop_asked: bool = False,
) -> tuple[float, int, int, bool]:
    """One optimiser step on the mean loss per completion token of `rows`.

    Returns:
        the loss (nats), the tokens run through the model, the completion tokens among them, and whether any process
        was asked to stop.
    """
    model.train()
    parts = machine.passes(rows, data, recipe)
    n_completion = sum(len(example.learned) for example in rows)
    parameters: list[nn.Parameter] = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def one(part: Packed) -> tuple[float, tuple[Tensor, ...]]:
        mean = packed_loss(model, part) / n_completion
        return float(mean.detach()), torch.autograd.grad(mean, parameters)

    results = machine.workers.map(one, parts, in_order=recipe.dropout > 0)
    for number, parameter in enumerate(parameters):
        if results:
            parameter.grad = sum((grads[number] for _, grads in results[1:]), start=results[0][1][number])
        else:
            parameter.grad = torch.zeros_like(parameter)
    numbers = [sum(part_loss for part_loss, _ in results), sum(part.ids.shape[1] for part in parts), stop_asked]
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    loss, n_tokens, stops = machine.ranks.sum_(grads, numbers)
    torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, int(n_tokens), n_completion, stops > 0


class _Pace:
    """Tokens per second, over the last steps, and the time left."""

    def __init__(self, step: int, device: str) -> None:
        self._marks = [(time.monotonic(), step, 0)]
        self._device = device

    def mark(self, step: int, n_tokens: int) -> None:
        self._marks = [*self._marks[-20:], (time.monotonic(), step, self._marks[-1][2] + n_tokens)]

    def text(self, loss: float, step: int, n_steps: int) -> str:
        (begin, first, before), (end, last, after) = self._marks[0], self._marks[-1]
        seconds = max(end - begin, 1e-9)
        left_s = int((n_steps - step) * seconds / max(1, last - first))
        eta = f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
        pace = (after - before) / seconds
        return f"loss {loss:.3f}  {pace:.0f} tokens/s  ETA {eta}  {memory_text(self._device)}"


def run(
    model: "PeftModel",
    data: Data,
    recipe: Recipe,
    folder: Path,
    settings: str,
    machine: Machine,
    *,
    save_every_s: float = 60.0,
    note_every: int = 10,
    stop_at: int | None = None,
) -> State:
    """Trains to the end of the recipe, from the checkpoint in `folder` if there is one.

    With patience in the recipe the model holds the best adapter at the end, else the last.

    Args:
        settings: hash of all that decides the result; a checkpoint of another hash is refused.
        save_every_s: a checkpoint is written when this much time has passed since the last.
        note_every: steps between two entries of the curve (and lines, where stderr is no terminal).
        stop_at: give what stands after this many steps, for a run cut short on purpose.

    Raises:
        DoesNotFitError: memory ran out; the message says which knob to turn.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    parameters, first = trainable(model), machine.ranks.index == 0
    optimizer = torch.optim.AdamW(parameters.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    state = checkpoint.load(folder, settings, parameters, optimizer) or State(0, 0, 0, [])
    n_steps = recipe.steps_for(len(data.train))
    last = min(n_steps, stop_at or n_steps)
    if state.step and first:
        note(f"taken up at step {state.step} of {n_steps}")
    interrupted = _Interrupt()
    pace, saved_at = _Pace(state.step, machine.device), time.monotonic()
    todo = [] if state.stopped_early else steps(data.train, recipe.batch, last, recipe.seed, start=state.step)
    with interrupted, _shown(f"training {recipe.task}", last, first) as advance:
        advance(state.step)
        for rows in todo:
            lr = recipe.lr_at(state.step, n_steps)
            if recipe.dropout > 0 and (machine.ranks.n > 1 or machine.device != "cpu"):
                # no generator's state is kept for these: each step and process draws from a seed of its own
                torch.manual_seed((recipe.seed * 1_000_003 + state.step) * machine.ranks.n + machine.ranks.index)
            with memory_advice(recipe, machine.device):
                loss, n_tokens, n_completion, stop = train_step(
                    model, optimizer, rows, data, recipe, lr, machine, interrupted.asked
                )
            stop = stop or (interrupted.asked and machine.ranks.n == 1)
            state.step += 1
            state.tokens += n_tokens
            state.completion_tokens += n_completion
            pace.mark(state.step, n_tokens)
            text = pace.text(loss, state.step, last)
            advance(1, text=text)
            if state.step % note_every == 0 or state.step in (1, last):
                state.curve.append({"step": state.step, "tokens": state.tokens, "loss": loss, "lr": lr})
                _note_without_terminal(f"step {state.step}/{n_steps}  {text}", first)
            if recipe.eval_every and (state.step % recipe.eval_every == 0 or state.step == last):
                measured = held_out_loss(model, data, recipe, machine)
                if measured is not None:
                    state.measured(measured, parameters, recipe.patience)
                    _note_without_terminal(f"step {state.step}/{n_steps}  held-out loss {measured:.4f}", first)
            if first and (stop or time.monotonic() - saved_at >= save_every_s):
                checkpoint.save(folder, settings, state, parameters, optimizer)
                saved_at = time.monotonic()
            if stop:
                raise KeyboardInterrupt
            if state.stopped_early:
                break
        if first:
            checkpoint.save(folder, settings, state, parameters, optimizer)
    state.take_best(parameters)
    return state


@contextlib.contextmanager
def _shown(description: str, total: int, shown: bool) -> Iterator[Advance]:
    """A progress line of the one process that speaks."""
    if shown:
        with progress(description, total=total, unit="steps") as advance:
            yield advance
    else:
        yield lambda n=1, /, *, text=None, total=None: None


def _note_without_terminal(text: str, shown: bool) -> None:
    import sys

    if shown and not sys.stderr.isatty():
        note(text)


class _Interrupt:
    """While entered, Ctrl-C and SIGTERM only ask for the end: the step is finished and saved first."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __enter__(self) -> "_Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: signals stay as they are
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class memory_advice:
    """Turns running out of memory into advice: which knob of the recipe to turn, the cheapest first."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        self._recipe, self._device = recipe, device

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            recipe = self._recipe
            knobs = [
                f"lower --forward-tokens (now {recipe.forward_tokens}): a pass's memory is nearly proportional to it, "
                "the result the same but for rounding",
                f"lower --max-tokens (now {recipe.max_tokens}): longer rows are then left out",
            ]
            hint = "with another setting the run begins anew (--fresh)"
            if self._device == "cpu":
                knobs.insert(1, "run fewer passes at once: --threads 1; the result stays the same")
                hint = "--threads takes up the last checkpoint; the others begin anew (--fresh)"
            elif crowded := others_on_gpu(*torch.cuda.mem_get_info(), torch.cuda.memory_reserved()):
                knobs.insert(0, crowded)
            if recipe.weights == "f32":
                knobs.insert(-1, "--weights gguf keeps the frozen weights as the GGUF's blocks, bf16 halves them")
            elif recipe.weights == "bf16":
                knobs.insert(2, "--weights gguf (of a GGUF base) or nf4 takes about a third of bf16")
            raise DoesNotFitError(
                f"memory ran out in a training step ({memory_text(self._device)})",
                problems=knobs,
                hint=hint,
            ) from error
