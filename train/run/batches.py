"""Which rows a step trains on, and how they are laid out for the model."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data.examples import Example
from ..model.attention import Layout, Padding


@dataclass(frozen=True)
class Packed:
    """Rows of one forward pass.

    Attributes:
        ids: (1, n) token ids: the shared prefix, then each row without it.
        positions: (1, n) of each token in its own row.
        layout: where the rows lie.
        row_mask: see `Layout.mask`.
        at: (m,) places in `ids` whose next token is a completion token.
        targets: (m,) those next tokens.
        active: (n, 1), 1 if an aLoRA acts; None: it acts everywhere.
        padding: how a GPU lays the rows side by side for attention; None: row by row.
    """

    ids: Tensor
    positions: Tensor
    layout: Layout
    row_mask: Tensor
    at: Tensor
    targets: Tensor
    active: Tensor | None = None
    padding: Padding | None = None

    def to(self, device: str) -> "Packed":
        """The same on another device."""
        if device == "cpu":
            return self
        moved: Any = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, padding=self.layout.padding().to(device))


def pack(examples: Sequence[Example], prefix_tokens: int) -> Packed:
    """Lays rows one after another behind their common prefix of `prefix_tokens` tokens."""
    ids: list[int] = list(examples[0].ids[:prefix_tokens])
    at: list[int] = []
    targets: list[int] = []
    active = [0.0] * prefix_tokens
    lengths = []
    for example in examples:
        start = len(ids) - prefix_tokens
        row = example.ids[prefix_tokens:]
        ids.extend(row)
        lengths.append(len(row))
        learned = example.learned
        at.extend(start + place - 1 for place in learned)
        targets.extend(example.ids[place] for place in learned)
        n_idle = max(0, example.n_before - prefix_tokens)
        active += [0.0] * n_idle + [1.0] * (len(row) - n_idle)
    layout = Layout(prefix_tokens, tuple(lengths))
    return Packed(
        torch.tensor([ids]),
        layout.positions(),
        layout,
        layout.mask(),
        torch.tensor(at),
        torch.tensor(targets),
        torch.tensor(active)[:, None] if any(example.n_before for example in examples) else None,
    )


def split_by_tokens(
    examples: Sequence[Example], prefix_tokens: int, max_tokens: int, multiple: int = 2
) -> list[list[Example]]:
    """Splits a step's rows into forward passes of about `max_tokens` tokens at most, all of about the same length.

    Their number is a multiple of `multiple` where there are rows enough, so that cores or processes share them evenly.
    """
    lengths = [len(example.ids) - prefix_tokens for example in examples]
    n_parts = math.ceil(sum(lengths) / max(1, max_tokens - prefix_tokens))
    n_parts = min(len(examples), math.ceil(n_parts / multiple) * multiple)
    parts: list[list[Example]] = [[] for _ in range(n_parts)]
    filled = [0] * n_parts
    for at in sorted(range(len(examples)), key=lambda at: (-lengths[at], examples[at].ids)):
        least = filled.index(min(filled))
        parts[least].append(examples[at])
        filled[least] += lengths[at]
    return parts


def steps(examples: Sequence[Example], batch: int, n_steps: int, seed: int, start: int = 0) -> Iterator[list[Example]]:
    """The rows of step `start` .. `n_steps`-1. Each epoch is its own shuffle of `seed`: any step can be begun at.

    A step at an epoch's end takes its missing rows from the next epoch.
    """
    orders: dict[int, list[int]] = {}
    for step in range(start, n_steps):
        rows = []
        for place in range(step * batch, (step + 1) * batch):
            epoch, index = divmod(place, len(examples))
            if epoch not in orders:
                order = list(range(len(examples)))
                random.Random(f"{seed}/{epoch}").shuffle(order)
                orders = {key: value for key, value in orders.items() if key >= epoch - 1} | {epoch: order}
            rows.append(examples[orders[epoch][index]])
        yield rows
