"""The training loop: steps, checkpoints, held-out loss, progress. What it trains on is made elsewhere."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..edge.console import human_bytes, note, progress
from ..edge.errors import DoesNotFitError
from . import checkpoint
from .batches import Packed, pack, split_by_tokens, steps
from .checkpoint import State
from .examples import Example
from .lora import trainable
from .loss import completion_loss
from .recipe import Recipe
from .workers import Workers

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Data:
    """What a run trains on: examples of training and held out, and the length of the prefix that all share."""

    train: list[Example]
    held_out: list[Example]
    prefix_tokens: int


def memory_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def packed_loss(model: "PeftModel", batch: Packed) -> Tensor:
    """Summed cross-entropy (nats) of the completion tokens of one pass."""
    causal: Any = model.get_base_model()
    out = causal.model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        use_cache=False,
        layout=batch.layout,
        row_mask=batch.row_mask,
    )
    return completion_loss(out.last_hidden_state[0, batch.at], causal.lm_head.weight, batch.targets)


def held_out_loss(model: "PeftModel", data: Data, recipe: Recipe, workers: Workers) -> float | None:
    """Mean cross-entropy (nats) per completion token of the held-out examples; None where there are none."""
    if not data.held_out:
        return None
    model.eval()
    parts = _passes(data.held_out, data, recipe)

    @torch.no_grad()
    def one(part: Packed) -> float:
        return float(packed_loss(model, part))

    return sum(workers.map(one, parts)) / sum(len(part.targets) for part in parts)


def _passes(rows: Sequence[Example], data: Data, recipe: Recipe) -> list[Packed]:
    split = split_by_tokens(rows, data.prefix_tokens, recipe.forward_tokens)
    return [pack(part, data.prefix_tokens) for part in split]


def train_step(
    model: "PeftModel",
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Example],
    data: Data,
    recipe: Recipe,
    lr: float,
    workers: Workers,
) -> tuple[float, int, int]:
    """One optimiser step on the mean loss per completion token of `rows`.

    Returns:
        the loss (nats), the tokens run through the model, the completion tokens among them.
    """
    model.train()
    parts = _passes(rows, data, recipe)
    n_completion = sum(len(part.targets) for part in parts)
    parameters: list[nn.Parameter] = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def one(part: Packed) -> tuple[float, tuple[Tensor, ...]]:
        mean = packed_loss(model, part) / n_completion
        return float(mean.detach()), torch.autograd.grad(mean, parameters)

    results = workers.map(one, parts, in_order=recipe.dropout > 0)
    for number, parameter in enumerate(parameters):
        parameter.grad = sum((grads[number] for _, grads in results[1:]), start=results[0][1][number])
    loss = sum(part_loss for part_loss, _ in results)
    torch.nn.utils.clip_grad_norm_(parameters, recipe.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, sum(part.ids.shape[1] for part in parts), n_completion


class _Pace:
    """Tokens per second, over the last steps, and the time left."""

    def __init__(self, step: int) -> None:
        self._marks = [(time.monotonic(), step, 0)]

    def mark(self, step: int, n_tokens: int) -> None:
        self._marks = [*self._marks[-20:], (time.monotonic(), step, self._marks[-1][2] + n_tokens)]

    def text(self, loss: float, step: int, n_steps: int) -> str:
        (begin, first, before), (end, last, after) = self._marks[0], self._marks[-1]
        seconds = max(end - begin, 1e-9)
        left_s = int((n_steps - step) * seconds / max(1, last - first))
        eta = f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
        pace = (after - before) / seconds
        return f"loss {loss:.3f}  {pace:.0f} tokens/s  ETA {eta}  memory {human_bytes(memory_bytes())}"


def run(
    model: "PeftModel",
    data: Data,
    recipe: Recipe,
    folder: Path,
    settings: str,
    workers: Workers,
    *,
    save_every_s: float = 60.0,
    note_every: int = 10,
    stop_at: int | None = None,
) -> State:
    """Trains to the end of the recipe, from the checkpoint in `folder` where there is one.

    Args:
        settings: hash of all that decides the result; a checkpoint of another hash is refused.
        save_every_s: a checkpoint is written when this much time has passed since the last.
        note_every: steps between two entries of the curve (and lines, where stderr is no terminal).
        stop_at: give what stands after this many steps, for a run cut short on purpose.

    Raises:
        DoesNotFitError: memory ran out; the message says which knob to turn.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    state = checkpoint.load(folder, settings, parameters, optimizer) or State(0, 0, 0, [])
    n_steps = recipe.steps_for(len(data.train))
    last = min(n_steps, stop_at or n_steps)
    if state.step:
        note(f"taken up at step {state.step} of {n_steps}")
    interrupted = _Interrupt()
    pace, saved_at = _Pace(state.step), time.monotonic()
    with interrupted, progress(f"training {recipe.task}", total=last, unit="steps") as advance:
        advance(state.step)
        for rows in steps(data.train, recipe.batch, last, recipe.seed, start=state.step):
            lr = recipe.lr_at(state.step, n_steps)
            with _memory_advice(recipe):
                loss, n_tokens, n_completion = train_step(model, optimizer, rows, data, recipe, lr, workers)
            state.step += 1
            state.tokens += n_tokens
            state.completion_tokens += n_completion
            pace.mark(state.step, n_tokens)
            text = pace.text(loss, state.step, last)
            advance(1, text=text)
            if state.step % note_every == 0 or state.step in (1, last):
                state.curve.append({"step": state.step, "tokens": state.tokens, "loss": loss, "lr": lr})
                _note_without_terminal(f"step {state.step}/{n_steps}  {text}")
            if interrupted.asked or time.monotonic() - saved_at >= save_every_s:
                checkpoint.save(folder, settings, state, parameters, optimizer)
                saved_at = time.monotonic()
            if interrupted.asked:
                raise KeyboardInterrupt
        checkpoint.save(folder, settings, state, parameters, optimizer)
    return state


def _note_without_terminal(text: str) -> None:
    import sys

    if not sys.stderr.isatty():
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


class _memory_advice:
    """Turns running out of memory into advice."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            raise DoesNotFitError(
                f"memory ran out in a training step ({human_bytes(memory_bytes())} resident)",
                hint=f"lower --forward-tokens (now {self._recipe.forward_tokens}: memory is nearly proportional to it; "
                f"the result stays the same), then --max-tokens (now {self._recipe.max_tokens})",
            ) from error
