"""Teaches a router one more adapter from some twenty prompts, at once and with numpy alone.

    model = with_examples(model, "translate", ["Translate to French: I am tired.", ...])

The new adapter gets weights of its own against everything else: a logistic regression of its examples against the
prompts that the router's file carries, of every task and of none. No other weight changes. Words that many prompts
have count for little (inverse document frequency), and words for more than structure: twenty examples must not claim
all that is built as they are. Some of the file's prompts may be of the new kind themselves ("Translate …" was "none of
these" until now), so none of them moves the threshold: it lies a third of the way from the mean of the others to the
mean of the examples. Measured with translation, sentiment and SQL (a part of `code`'s own): docs/router.md.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files.read import is_text, json_rows, lines_of, read_text
from .features import Features, read_prompt
from .file import ADDED_SLOTS, Background, RouterModel
from .hashing import N_SLOTS
from .words import NAMES

MIN_EXAMPLES: Final = 5
MAX_EXAMPLES: Final = 2000
_STEPS: Final = 300
_PENALTY: Final = 0.004
# Scale of the named and of the hashed features in the fit: the larger, the less the penalty holds them back
_NAMED_SCALE: Final = 0.3
_HASHED_SCALE: Final = 3.0
# Prompts with a word at which its weight in the fit is as it is
_USUAL: Final = 10
# Where even odds lie between the background's mean (0) and the examples' (1)
_MIDDLE: Final = 0.33
# Log-odds at the examples' mean
_SURE: Final = 6.0
# The new adapter's prompts are taken to be this share of all
_PRIOR: Final = 0.25
# Examples kept in the file for adapters added later
_KEPT: Final = 60

Floats = NDArray[np.float32]


def read_examples(path: Path) -> list[str]:
    """Prompts from a file: JSON Lines of strings or of objects with "prompt", else one prompt a line.

    Raises:
        InputError: the file is not there, not UTF-8, or a line is no prompt.
    """
    if path.suffix != ".jsonl":
        return [line for line in lines_of(read_text(path)) if line.strip()]
    found = []
    for number, row in json_rows(path):
        prompt = row.get("prompt") if isinstance(row, dict) else row
        if not is_text(prompt) or not prompt.strip():
            raise InputError(f'line {number} is neither a text nor an object with a "prompt"', where=path)
        found.append(prompt)
    return found


def with_examples(model: RouterModel, name: str, examples: Sequence[str]) -> RouterModel:
    """The model with one more adapter, or with a new training of an added one.

    Raises:
        InputError: fewer than `MIN_EXAMPLES` different prompts, more than `MAX_EXAMPLES`, or `name` is a task that was
            trained together with others.
    """
    texts = list(dict.fromkeys(text.strip() for text in examples if text.strip()))
    if not MIN_EXAMPLES <= len(texts) <= MAX_EXAMPLES:
        raise InputError(
            f"{len(texts)} different examples for {name!r}; {MIN_EXAMPLES} to {MAX_EXAMPLES} are needed, 20 are good"
        )
    if name in model.tasks:
        raise InputError(f"{name!r} is one of the router's own tasks", hint="slm-edge router train trains those")
    model = without(model, name)
    background = [row for row in model.prompts().prompts if row[0] not in texts]
    positives, negatives = _read(texts), _read([text for text, _ in background])
    columns = np.unique(np.concatenate([features.slots for features in positives]))
    mine, others = _dense(positives, columns), _dense(negatives, columns)
    scale = _scale(mine, others)
    weights = _fit(mine * scale, others * scale)
    weights *= scale
    hashed = weights[len(NAMES) :]
    strongest = np.sort(np.argsort(-np.abs(hashed), kind="stable")[:ADDED_SLOTS])
    slots, values = np.zeros(ADDED_SLOTS, dtype=np.int32), np.zeros(ADDED_SLOTS, dtype=np.float32)
    slots[: len(strongest)], values[: len(strongest)] = columns[strongest], hashed[strongest]
    dropped = np.ones(len(hashed), dtype=bool)
    dropped[strongest] = False
    weights[len(NAMES) :][dropped] = 0
    middle, sharper = _between(mine @ weights, others @ weights)
    weights *= np.float32(sharper)
    values *= np.float32(sharper)
    added = dataclasses.replace(
        model,
        thresholds={**model.thresholds, name: 0.5},
        added=(*model.added, name),
        added_bias=np.append(model.added_bias, np.float32(-middle * sharper)),
        added_named=np.concatenate([model.added_named, weights[None, : len(NAMES)]]),
        added_slots=np.concatenate([model.added_slots, slots[None]]),
        added_values=np.concatenate([model.added_values, values[None]]),
    )
    return added.with_prompts(Background((*background, *((text, name) for text in texts[:_KEPT]))))


def without(model: RouterModel, name: str) -> RouterModel:
    """The model without an added adapter; the same model if there is none of that name."""
    if name not in model.added:
        return model
    rest = np.array([i for i, added in enumerate(model.added) if added != name], dtype=np.int64)
    kept = tuple(row for row in model.prompts().prompts if row[1] != name)
    smaller = dataclasses.replace(
        model,
        thresholds={key: value for key, value in model.thresholds.items() if key != name},
        added=tuple(model.added[i] for i in rest),
        added_bias=model.added_bias[rest],
        added_named=model.added_named[rest],
        added_slots=model.added_slots[rest],
        added_values=model.added_values[rest],
    )
    return smaller.with_prompts(Background(kept))


def _read(texts: Sequence[str]) -> list[Features]:
    return [read_prompt(text) for text in texts]


def _dense(read: Sequence[Features], columns: NDArray[np.int32]) -> Floats:
    """[n, len(NAMES) + n_columns]: named features, and the hashed ones that the examples have."""
    table = np.zeros((len(read), len(NAMES) + len(columns)), dtype=np.float32)
    place = np.full(N_SLOTS, -1, dtype=np.int64)
    place[columns] = np.arange(len(columns)) + len(NAMES)
    for row, features in zip(table, read, strict=True):
        row[: len(NAMES)] = features.named
        at = place[features.slots]
        row[at[at >= 0]] = features.values[at >= 0]
    return table


def _fit(mine: Floats, others: Floats) -> Floats:
    """Weights, without the bias, of a logistic regression with an L2 penalty.

    By Nesterov's accelerated gradient from zero: no chance in it.
    """
    table = np.concatenate([mine, others])
    target = np.concatenate([np.ones(len(mine)), np.zeros(len(others))]).astype(np.float32)
    share = np.concatenate(
        [np.full(len(mine), _PRIOR / len(mine)), np.full(len(others), (1 - _PRIOR) / max(len(others), 1))]
    ).astype(np.float32)
    weights = np.zeros(table.shape[1], dtype=np.float32)
    ahead, bias, bias_ahead = weights, 0.0, 0.0
    # Half the largest squared row bounds the curvature of the loss (its second derivative is at most 1/4).
    step = 1 / (float((table**2).sum(axis=1).max() + 1) / 4 + _PENALTY)
    for number in range(_STEPS):
        off = share * (1 / (1 + np.exp(-(table @ ahead + bias_ahead))) - target)
        new, new_bias = ahead - step * (off @ table + _PENALTY * ahead), bias_ahead - step * float(off.sum())
        momentum = number / (number + 3)
        ahead, bias_ahead = new + momentum * (new - weights), new_bias + momentum * (new_bias - bias)
        weights, bias = new, new_bias
    return weights


def _scale(mine: Floats, others: Floats) -> Floats:
    """What each column is multiplied by in the fit, [len(NAMES) + n_columns]."""
    n_with = (mine[:, len(NAMES) :] != 0).sum(axis=0) + (others[:, len(NAMES) :] != 0).sum(axis=0)
    n_all = len(mine) + len(others) + 1
    rare = np.log(n_all / (n_with + 1)) / max(np.log(n_all / (_USUAL + 1)), 1.0)
    return np.concatenate([np.full(len(NAMES), _NAMED_SCALE), _HASHED_SCALE * rare]).astype(np.float32)


def _between(mine: Floats, others: Floats) -> tuple[float, float]:
    """The score at which odds are even, and what scores are multiplied by for `_SURE` at the examples' mean."""
    inside = float(mine.mean())
    outside = float(others.mean()) if len(others) else 0.0
    middle = outside + _MIDDLE * (inside - outside)
    return middle, _SURE / max(inside - middle, 1e-3)
