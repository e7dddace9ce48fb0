"""From what tasks make of rows to token ids; duplicates and long rows are left out and counted."""

import hashlib
from collections.abc import Iterable, Sequence

from ...edge.errors import InputError, UnsupportedError
from ..model.alora import last_place
from ..model.bases import Base
from .examples import Counts, Example, Pair
from .turns import Learned, Turns


def tokenize(
    base: Base, pairs: Iterable[Pair], max_tokens: int, counts: Counts, invocation: Sequence[int] = ()
) -> list[Example]:
    """Token ids of every pair; exact duplicates and rows of more than `max_tokens` are dropped and counted.

    Args:
        invocation: tokens from which on an aLoRA acts; rows without them in the prompt, or with them in the answer, are
            dropped too.

    Raises:
        UnsupportedError: the template ends an answer with no token that stops generation.
    """
    turns = Turns(base)
    seen: set[tuple[int, ...]] = set()
    examples: list[Example] = []
    for pair in pairs:
        try:
            rows, n_long = turns.rows(pair, max_tokens, apart=bool(invocation))
        except (InputError, UnsupportedError):
            counts.dropped["refused by the chat template"] += 1
            continue
        if n_long:
            counts.dropped["too long" if not rows else "answers of a conversation, too long"] += n_long if rows else 1
        of = hashlib.sha256(repr(rows[-1].ids).encode()).hexdigest() if len(rows) > 1 else ""
        for row in rows:
            example = _example(row, of, invocation)
            if row.ids in seen:
                counts.dropped["duplicate"] += 1
            elif example is None:
                counts.dropped["no invocation in the prompt, or one in the answer"] += 1
            else:
                examples.append(example)
            seen.add(row.ids)
    counts.kept += len(examples)
    return examples


def _example(row: Learned, of: str, invocation: Sequence[int]) -> Example | None:
    """A row to train on; None where an aLoRA would not act on its answer."""
    n_prompt = row.spans[0][0]
    start = 0
    if invocation:
        place = last_place(row.ids, invocation)
        if place is None or place >= n_prompt:
            return None
        start = place
    gaps = tuple((end, begin) for (_, end), (begin, _) in zip(row.spans, row.spans[1:], strict=False))
    return Example(row.ids, n_prompt, start, gaps, of)
