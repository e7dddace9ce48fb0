"""Makes the answers of a cell as the device does: the pack's session, each adapter's own card, many at once.

session_generator(session, 16)      # a `runner.Generate`
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...edge.answer.base import SessionBase
from ...edge.answer.stream import Request
from ...edge.answer.thinking import thinking_of
from ...edge.errors import DoesNotFitError
from ...edge.llama.sampling import Sampling
from ..tasks.benchmark import Item, sample_seed
from .answers import Record
from .cells import Cell, Column
from .choices import score_endings
from .runner import Generate

if TYPE_CHECKING:
    from ...edge.answer.settings import Choice

AnySession = SessionBase[Any]
# Answers per place in the batch between two points where all are done
BLOCK_ROUNDS = 8
# task, adapter -> answers that are there already, by item id
Known = Callable[[str, str | None], Mapping[str, Record]]
OnDone = Callable[[int, Any], None]


@dataclass(frozen=True)
class Routed:
    """An answer with the adapter that the router chose for the prompt, "none" for the base."""

    answer: Any
    by: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.answer, name)


def session_generator(session: AnySession, n_parallel: int, known: Known | None = None) -> Generate:
    """Answers of a session, on either engine.

    Args:
        n_parallel: answers computed at once. It can change an answer's last bits, see `edge/answer/batcher.py`.
        known: answers of single adapters, which the router's column takes over where it chooses the same.
    """

    def generate(cell: Cell, items: list[Item], on_done: OnDone) -> None:
        # Every sequence attends over the longest one's room, so prompts of like length go together; but only within a
        # block, so that a run which stops early leaves whole blocks of the random order to count.
        block = BLOCK_ROUNDS * n_parallel
        for start in range(0, len(items), block):
            indices = list(range(start, min(start + block, len(items))))
            if cell.column.is_auto:
                _answer_routed(session, cell, items, indices, n_parallel, known, on_done)
            else:
                _answer(session, cell, items, indices, n_parallel, on_done)

    return generate


def _answer_routed(
    session: AnySession,
    cell: Cell,
    items: Sequence[Item],
    indices: Sequence[int],
    n_parallel: int,
    known: Known | None,
    on_done: OnDone,
) -> None:
    by_name: dict[str | None, list[int]] = {}
    for i in indices:
        by_name.setdefault(_routed(session, items[i]), []).append(i)
    for name, chosen in by_name.items():
        there = known(cell.task.name, name) if known is not None else {}

        def tell(i: int, answer: Any, name: str | None = name) -> None:
            on_done(i, Routed(answer, name or "none"))

        for i in chosen:
            if items[i].id in there:
                tell(i, there[items[i].id])
        column = Column(name, session.adapters[name] if name is not None else None)
        missing = [i for i in chosen if items[i].id not in there]
        _answer(session, dataclasses.replace(cell, column=column), items, missing, n_parallel, tell)


def _routed(session: AnySession, item: Item) -> str | None:
    """The adapter that the router chooses for what is asked: the last turn, or the bare text."""
    prompt = item.raw if item.raw is not None else item.messages[-1]["content"]
    name: str | None = session.choose(prompt).adapter
    return name


def _answer(
    session: AnySession,
    cell: Cell,
    items: Sequence[Item],
    indices: Sequence[int],
    n_parallel: int,
    on_done: OnDone,
) -> None:
    if not indices:
        return
    if cell.task.way == "choices":
        asked, tell = [items[i] for i in indices], functools.partial(_of, indices, on_done)
        score_endings(session, cell.adapter_name, asked, tell)
        return
    order = sorted(indices, key=lambda i: _length(items[i]))
    choice = session.choice_of(cell.adapter_name)
    batcher = session.new_batcher(n_parallel)
    try:
        waiting = {i: batcher.submit(_request(session, cell, items[i], choice), choice) for i in order}
        while waiting:
            batcher.advance()
            for i in [i for i, pending in waiting.items() if pending.done]:
                on_done(i, waiting.pop(i).result())
    finally:
        batcher.close()


def _of(indices: Sequence[int], on_done: OnDone, at: int, answer: Any) -> None:
    """Reports an answer by its place among the cell's items."""
    on_done(indices[at], answer)


def _length(item: Item) -> int:
    return len(item.raw) if item.raw is not None else sum(len(turn["content"]) for turn in item.messages)


def _sampling(cell: Cell, item: Item) -> Sampling:
    if cell.decoding.greedy:
        return Sampling()
    return Sampling(
        temperature=cell.decoding.temperature,
        top_k=0,
        top_p=cell.decoding.top_p,
        min_p=0.0,
        seed=sample_seed(cell.seed, item.id),
    )


def _request(session: AnySession, cell: Cell, item: Item, choice: "Choice") -> Request:
    if item.raw is None:
        ids, n_shared_tokens = session.rendered(item.messages, None, choice, cell.template_args)
        thinking = thinking_of(session.template, choice.card, session.vocab, ids)
    else:
        thinking = None
        ids, n_shared_tokens = session.vocab.encode(item.raw, special=False, add_bos=True), 0
    room = session.longest_tokens
    if len(ids) >= room:
        raise DoesNotFitError(f"{cell.label}: the prompt of {item.id} has {len(ids)} tokens; the base holds {room}")
    return Request(
        prompt=ids,
        adapter=choice.name,
        sections=lambda: session.sections(choice, ids, n_shared_tokens),
        sampling=_sampling(cell, item),
        stop=choice.card.stop if cell.stop is None else cell.stop,
        max_tokens=cell.max_tokens,
        room_tokens=room,
        thinking=thinking,
    )
