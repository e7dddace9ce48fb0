"""Rows against forgetting: general prompts with the answers that should stay as they are, mixed into a task's own.

Rows have any of the forms of `conversations.py`, with the assistant's turn last. The base's own answers, made with
`slm-edge run`, are the mildest choice: they ask for no change at all.
"""

import random
from collections.abc import Sequence

from ...edge.errors import InputError
from .conversations import conversation_of, form_of
from .examples import Pair, Row


def replay_pair(row: Row) -> Pair:
    """Prompt and completion of a general row.

    Raises:
        ValueError: it has none of the forms above, or a cell that is no text.
    """
    form = form_of(row)
    if form is None:
        raise ValueError(f"it has no form that is known: {', '.join(row)}")
    turns = conversation_of(row, form)["messages"]
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise ValueError("its last turn is not the assistant's")
    return Pair(turns[:-1], turns[-1]["content"].strip())


def drawn(rows: Sequence[Row], share: float, n_own: int, seed: int) -> list[Pair]:
    """So many rows that `share` of all training rows are these, drawn without repetition.

    Raises:
        InputError: there are too few rows for that, or a drawn one cannot be used.
    """
    n = round(n_own * share / (1 - share))
    if n > len(rows):
        raise InputError(
            f"replay = {share} of {n_own} own rows asks for {n} rows; replay_data has {len(rows)}",
            hint="give more rows, or a smaller share",
        )
    pairs = []
    for at in random.Random(f"replay/{seed}").sample(range(len(rows)), n):
        try:
            pairs.append(replay_pair(rows[at]))
        except ValueError as error:
            raise InputError(f"row {at + 1} of replay_data: {error}") from None
    return pairs
