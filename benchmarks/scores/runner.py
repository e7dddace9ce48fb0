"""Measures one cell: asks the items that have no answer yet, many at a time, scores each answer and writes it at once.

Scoring runs beside generation in one thread, because a program under test may take seconds. The process may be
killed at any moment: what has been written is kept, the rest is asked again by the next run.
"""

import concurrent.futures
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ...edge.console import Advance, note, progress
from ..tasks.benchmark import Item
from .answers import Record, held
from .cells import Cell

# Where there is no terminal to draw on, a line this often
_NOTE_EVERY_S = 60.0


class Generated(Protocol):
    """What a generator must tell of an answer: `edge.answer.stream.Answer` does.

    `by` and `thinking`, where it has them, are kept too; only `text` is scored, which is empty where the answer was cut
    while the model was still thinking.
    """

    @property
    def text(self) -> str: ...
    @property
    def n_prompt_tokens(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def stop_reason(self) -> str: ...


# cell, items, what to call with the index and answer of each item as it is done
Generate = Callable[[Cell, list[Item], Callable[[int, Any], None]], object]


class _Tally:
    """Running score and speed of one cell, for the person who waits."""

    def __init__(self, cell: Cell, advance: Advance, before: list[Record], n_wanted: int) -> None:
        self._cell, self._advance, self._n_wanted = cell, advance, n_wanted
        self._n, self._tokens = len(before), 0
        # pass@k for k > 1 is not a mean of answers; the report has it
        self._metrics = [metric for metric in cell.task.metrics if metric.k in (None, 1)]
        self._sums = {metric.name: sum(record.scores[metric.source] for record in before) for metric in self._metrics}
        self._begun = self._noted = time.monotonic()
        self._n_before = len(before)
        if before:
            advance(len(before), text=self._text())

    def _text(self) -> str:
        shown = [
            f"{metric.title} {100 * self._sums[metric.name] / self._n:.1f} %"
            if metric.binary
            else f"{metric.title} {self._sums[metric.name] / self._n:.3f}"
            for metric in self._metrics
        ]
        speed = self._tokens / max(time.monotonic() - self._begun, 1e-9)
        return f"{', '.join(shown)}, {speed:.0f} tokens/s"

    def add(self, record: Record) -> None:
        self._n += 1
        self._tokens += record.n_tokens
        for metric in self._metrics:
            self._sums[metric.name] += record.scores[metric.source]
        self._advance(1, text=self._text())
        now = time.monotonic()
        if now - self._noted >= _NOTE_EVERY_S and not sys.stderr.isatty():
            left_s = (self._n_wanted - self._n) * (now - self._begun) / max(self._n - self._n_before, 1)
            note(f"{self._cell.label}: {self._n} of {self._n_wanted}, {self._text()}, {left_s / 60:.1f} min left")
            self._noted = now


def with_all_scores(cell: Cell, item: Item, record: Record) -> Record:
    """The record with scores that its task did not have yet when it was written, taken from the answer's text."""
    if cell.task.runs_code or all(metric.source in record.scores for metric in cell.task.metrics):
        return record
    return dataclasses.replace(record, scores=cell.task.score(item, record.text) | record.scores)


def rescore_cell(cell: Cell, folder: Path) -> int:
    """Scores the answers of `cell` that are there by the task's rules of today; the number whose scores changed."""
    items = {item.id: item for item in cell.items}
    with held(folder, cell.identity, cell.label) as answers:
        before = list(answers.records.values())
        after = []
        with progress(f"scoring {cell.label}", total=len(before), unit="answers") as advance:
            for record in before:
                # A run of fewer samples doesn't know the others' items
                item = items.get(record.id)
                scores = record.scores if item is None else cell.task.score(item, record.text)
                after.append(dataclasses.replace(record, scores=scores))
                advance(1)
        if after != before:
            answers.replace(after)
        return sum(new != old for new, old in zip(after, before, strict=True))


def run_cell(cell: Cell, folder: Path, generate: Generate, joules: Callable[[], Mapping[str, float]] = dict) -> int:
    """Measures what is missing of `cell`; the number of items that were asked now.

    Args:
        folder: where answer files lie; made if missing. A second process on the same cell waits for the first.
        generate: makes the answers; it may give them in any order.
        joules: totals of energy by sensor, from any beginning on.
    """
    with held(folder, cell.identity, cell.label, write=True) as answers:
        wanted = cell.wanted
        missing = [item for item in wanted if item.id not in answers.records]
        if not missing:
            return 0
        before = [
            with_all_scores(cell, item, answers.records[item.id]) for item in wanted if item.id in answers.records
        ]
        begun, begun_j = time.monotonic(), joules()
        with (
            progress(cell.label, total=len(wanted), unit="answers") as advance,
            concurrent.futures.ThreadPoolExecutor(1, "score") as scorer,
        ):
            tally = _Tally(cell, advance, before, len(wanted))
            pending: list[concurrent.futures.Future[None]] = []

            def keep(item: Item, answer: Generated, at_s: float, energy_j: Mapping[str, float]) -> None:
                record = Record(
                    id=item.id,
                    text=answer.text,
                    scores=cell.task.score(item, answer.text),
                    n_prompt_tokens=answer.n_prompt_tokens,
                    n_tokens=answer.n_tokens,
                    stop_reason=answer.stop_reason,
                    run=answers.run,
                    at_s=round(at_s, 6),
                    by=getattr(answer, "by", None),
                    energy_j={name: round(value, 3) for name, value in energy_j.items()} or None,
                    thinking=getattr(answer, "thinking", None) or None,
                )
                answers.add(record)
                tally.add(record)

            def on_done(index: int, answer: Generated) -> None:
                spent = {name: value - begun_j.get(name, 0.0) for name, value in joules().items()}
                pending.append(scorer.submit(keep, missing[index], answer, time.monotonic() - begun, spent))

            try:
                generate(cell, missing, on_done)
            except BaseException:
                scorer.shutdown(cancel_futures=True)
                raise
            for future in pending:
                future.result()
        return len(missing)
