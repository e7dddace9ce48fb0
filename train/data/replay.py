"""Rows against forgetting: general prompts with the answers that should stay as they are, mixed into a task's own.

A row is `messages` with the assistant's turn last, or `prompt` and `completion`, or Alpaca's instruction, input and
output. The base's own answers, made with `slm-edge run`, are the mildest choice: they ask for no change at all.
"""

import random
from collections.abc import Sequence

from ...edge.datasets.prompts import user_message
from ...edge.errors import InputError
from .examples import Pair, Row


def replay_pair(row: Row) -> Pair:
    """Prompt and completion of a general row.

    Raises:
        InputError: it has none of the forms above.
    """
    turns = row.get("messages")
    if isinstance(turns, list) and len(turns) > 1 and turns[-1].get("role") == "assistant":
        return Pair(turns[:-1], str(turns[-1]["content"]).strip())
    if {"prompt", "completion"} <= row.keys():
        return Pair(user_message(row["prompt"].strip()), row["completion"].strip())
    if {"instruction", "output"} <= row.keys():
        asked = "\n".join(part.strip() for part in (row["instruction"], row.get("input") or "") if part.strip())
        return Pair(user_message(asked), row["output"].strip())
    raise InputError(f"a replay row has neither messages, nor prompt and completion, nor instruction: {list(row)}")


def drawn(rows: Sequence[Row], share: float, n_own: int, seed: int) -> list[Pair]:
    """So many rows that `share` of all training rows are these, drawn without repetition.

    Raises:
        InputError: there are too few rows for that.
    """
    n = round(n_own * share / (1 - share))
    if n > len(rows):
        raise InputError(
            f"replay = {share} of {n_own} own rows asks for {n} rows; replay_data has {len(rows)}",
            hint="give more rows, or a smaller share",
        )
    return [replay_pair(row) for row in random.Random(f"replay/{seed}").sample(list(rows), n)]
