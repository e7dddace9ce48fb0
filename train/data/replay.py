"""Rows against forgetting: general prompts with the answers that should stay as they are, mixed into a task's own.

A row is `messages` with the assistant's turn last, or `prompt` and `completion`, or Alpaca's instruction, input and
output. The base's own answers, made with `slm-edge run`, are the mildest choice: they ask for no change at all.
"""

import random
from collections.abc import Sequence

from ...edge.datasets.prompts import user_message
from ...edge.errors import InputError
from .examples import Pair, Row, asked_of, text_of, turns_of


def replay_pair(row: Row) -> Pair:
    """Prompt and completion of a general row.

    Raises:
        ValueError: it has none of the forms above, or a cell that is no text.
    """
    if row.get("messages") is not None:
        turns = turns_of(row)
        if len(turns) > 1 and turns[-1]["role"] == "assistant":
            return Pair(turns[:-1], turns[-1]["content"].strip())
    if {"prompt", "completion"} <= row.keys():
        return Pair(user_message(text_of(row, "prompt").strip()), text_of(row, "completion").strip())
    if {"instruction", "output"} <= row.keys():
        return Pair(user_message(asked_of(row)), text_of(row, "output").strip())
    raise ValueError(f"it has neither messages, nor prompt and completion, nor instruction: {list(row)}")


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
