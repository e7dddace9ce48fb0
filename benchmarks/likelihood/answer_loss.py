"""Nats per token of a task's reference answers under one adapter, and the KL from another pack's answer distributions.

    found = measure(Side(pack, "summarize"), items, Side(reference_pack, "summarize"))

The prompt goes through the chat template, the answer is scored token by token up to the end of the turn, both through
the runtime that answers users.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...edge.engines import open_session
from ...edge.errors import InputError
from ...edge.llama.context import Context
from ...edge.pack.pack import Pack
from ...edge.session.session import Session
from ..stats import Interval, mean
from ..tasks.benchmark import Item
from .log_probs import LogProbs, log_probs_after
from .perplexity import score_chunk

# Longer prompts with their answers are left out: logits of a whole vocabulary are kept for every token of an answer.
MOST_TOKENS = 768


@dataclass(frozen=True)
class Side:
    """A pack and one of its adapters; None: the base alone."""

    pack: Pack
    adapter: str | None


class _Opened:
    def __init__(self, session: Session, adapter: str | None, context: Context) -> None:
        self.session, self.choice, self.context = session, session.choice_of(adapter), context

    def ids_of(self, item: Item) -> tuple[list[int], int]:
        """Token ids of prompt and answer, and how many are the prompt's."""
        prompt, _ = self.session.rendered(item.messages, None, self.choice)
        vocab = self.session.model.vocab
        return [*prompt, *vocab.encode(str(item.truth["answer"]).strip(), special=False), vocab.eos_id], len(prompt)

    def take_up(self, ids: Sequence[int]) -> LogProbs:
        """What scores, with the adapter on it."""
        self.context.set_adapters(self.session.sections(self.choice, ids)[-1].adapters)
        return functools.partial(log_probs_after, self.context)


@contextlib.contextmanager
def _opened(side: Side | None, threads: int | None) -> Iterator[_Opened | None]:
    if side is None:
        yield None
        return
    with (
        open_session(side.pack, threads=threads) as session,
        Context(
            session.model,
            n_ctx_tokens=MOST_TOKENS,
            n_batch_tokens=MOST_TOKENS,
            n_outputs_max=MOST_TOKENS,
            threads=session.context.threads,
        ) as context,
    ):
        yield _Opened(session, side.adapter, context)


def measure(
    ours: Side,
    items: Sequence[Item],
    reference: Side | None = None,
    *,
    threads: int | None = None,
    on_item: Callable[[int], object] = lambda n_items: None,
) -> dict[str, dict[str, float]]:
    """Scores the reference answer (`truth["answer"]`) of each item; items of more than MOST_TOKENS are left out.

    Returns:
        Item id -> nll (nats per token of the answer), n_tokens of the answer, and with `reference` kl
        (reference || ours, nats per token) and same_top (share of tokens at which both have the same likeliest one).

    Raises:
        InputError: an item has no reference answer, or the two packs cut a prompt into other tokens.
    """
    if any("answer" not in item.truth for item in items):
        raise InputError("the task's items have no reference answer to score", hint="dolly has")
    found: dict[str, dict[str, float]] = {}
    with _opened(ours, threads) as mine, _opened(reference, threads) as other:
        assert mine is not None
        for item in items:
            ids, n_prompt = mine.ids_of(item)
            if other is not None and other.ids_of(item)[0] != ids:
                raise InputError("the two packs cut a prompt into other tokens", hint="compare packs of one base model")
            if len(ids) <= MOST_TOKENS:
                theirs = other.take_up(ids) if other is not None else None
                chunk = score_chunk(mine.take_up(ids), ids, theirs, n_prompt - 1)
                found[item.id] = {**chunk.scores(), "n_tokens": float(chunk.n_scored)}
            on_item(1)
    return found


def summary(found: dict[str, dict[str, float]]) -> dict[str, Interval]:
    """The mean of each measure over items, with its 95 % interval."""
    names = [name for name in ("nll", "kl", "same_top") if all(name in row for row in found.values())]
    return {name: mean([row[name] for row in found.values()]) for name in names}
