"""Trains the router's second stage: a linear head on the base's hidden states of some hundred of the router's prompts.

    with StateReader(pack.base_path(), threads=1) as reader:
        stage = train_second_stage(second_stage_prompts(rows), reader)

Logistic regression on standardised states; the scales are folded into the weights. The same prompts and the same base
on the same processor give the same file.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ..edge.hidden_state import State, StateReader
from ..edge.second_stage import BELOW, SecondStage
from .router_prompts import TASKS, Prompt

# Prompts of each label; a hundred more of each take minutes and gained nothing that 300 prompts show.
N_PROMPTS: Final = {None: 160, "code": 90, "math": 80, "summarize": 70}
STRENGTH: Final = 0.01


def second_stage_prompts(rows: Sequence[Prompt], seed: int = 1) -> list[Prompt]:
    """Some of the router's prompts, different ones: sources weigh by the root of their size."""
    draw = random.Random(seed)
    sources: dict[tuple[str | None, str], list[Prompt]] = {}
    for row in rows:
        name = row.source.split(",")[0].rstrip("0123456789 ")
        sources.setdefault((row.label, name), []).append(row)
    found = []
    for label, n in N_PROMPTS.items():
        lots = [lot for (of, _), lot in sources.items() if of == label]
        weights = [len(lot) ** 0.5 for lot in lots]
        n_there = len({row.text for lot in lots for row in lot})
        seen: set[str] = set()
        while len(seen) < min(n, n_there):
            row = draw.choice(draw.choices(lots, weights)[0])
            if row.text not in seen:
                seen.add(row.text)
                found.append(row)
    return found


def train_second_stage(
    prompts: Sequence[Prompt], reader: StateReader, *, on_prompt: Callable[[], object] = lambda: None
) -> SecondStage:
    """Reads the states of the prompts and fits the head.

    Args:
        on_prompt: told after each prompt that was read.
    """
    states = []
    for prompt in prompts:
        states.append(reader.read(prompt.text))
        on_prompt()
    return fit_second_stage(states, [prompt.label for prompt in prompts], reader.base.fingerprint)


def fit_second_stage(states: Sequence[State], labels: Sequence[str | None], fingerprint: str) -> SecondStage:
    """The head for states [n, n_embd] and their labels; every label must be there."""
    from sklearn.linear_model import LogisticRegression

    table = np.stack(states).astype(np.float64)
    mean, spread = table.mean(axis=0), table.std(axis=0) + 1e-6
    names = (None, *TASKS)
    model = LogisticRegression(C=STRENGTH, max_iter=1000)
    model.fit((table - mean) / spread, [names.index(label) for label in labels])
    weights = model.coef_ / spread
    return SecondStage(
        tasks=TASKS,
        fingerprint=fingerprint,
        weights=weights.astype(np.float32),
        bias=(model.intercept_ - weights @ mean).astype(np.float32),
        below=BELOW,
        about={"n_prompts": len(labels)},
    )
