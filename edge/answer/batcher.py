"""Several requests answered together: those of one adapter share a batch, adapters take turns.

    one = session.submit("2 + 2 = ?", adapter="math")
    two = session.submit("3 + 3 = ?", adapter="math")
    one.result().text, two.result().text

Each step computes one token for every answer in the making; a finished one's place is taken by the next request.
Both engines apply adapters to all sequences of a batch, so it has one choice of them. Whose turn it
is follows arrival: the oldest request's adapter goes first with all that wait for it, and what comes for it later joins
only while nobody waits for another. How many are computed at once changes results in their last bits, so where two
tokens are nearly tied an answer can differ from `ask`'s.

`scheduler.Engine` does the same for many callers, on a thread and in rows that are planned before it starts. This
stands beside it for one thread that has a session already: its context is made for the requests at hand, freed behind
them, and is the wider the more of them there are, as benchmarks want it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from ..errors import DoesNotFitError, EngineError, InputError, SlmEdgeError
from ..llama.vocab import Vocab
from .engine import RowsT
from .growing import Growing
from .settings import Choice
from .stream import Answer, Owner, Request

# llama.cpp rounds every sequence's part of a context up to this.
_ROUND_TOKENS = 256


class Pending:
    """A submitted request. Its answer is made by `result`, of this or of any other request."""

    def __init__(
        self,
        batcher: "Batcher[Any]",
        request: Request,
        choice: Choice,
        on_text: Callable[[str], object] | None,
        on_thinking: Callable[[str], object] | None = None,
    ) -> None:
        self.request = request
        self.choice = choice
        self.on_text = on_text
        self.on_thinking = on_thinking
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self._batcher = batcher

    @property
    def done(self) -> bool:
        """Whether it is answered, or failed."""
        return self.answer is not None or self.error is not None

    def result(self) -> Answer:
        """The answer, made now together with what else waits.

        Raises:
            SlmEdgeError: what this request failed on.
        """
        while not self.done:
            self._batcher.advance()
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def cancel(self) -> None:
        """Cancels it, whether it waits or is being made."""
        self._batcher.cancel(self)


@dataclass
class _Slot:
    """One answer in the making, in one sequence of the context."""

    pending: Pending
    sequence: int
    growing: Growing


class Batcher(Generic[RowsT]):
    """Makes answers in rows of its own, sized by what waits and kept for what comes.

    Args:
        new_rows: makes so many sequences of so many tokens each; DoesNotFitError: there is no memory.
        n_parallel: answers computed at once at most; memory grows with it by one KV cache each.
        owner: of the session; None: the thread that makes this.

    Attributes:
        rows: what there is at the moment.
    """

    def __init__(
        self, new_rows: Callable[[int, int], RowsT], vocab: Vocab, *, n_parallel: int, owner: Owner | None = None
    ) -> None:
        if n_parallel < 1:
            raise InputError(f"n_parallel is {n_parallel}; it must be at least 1")
        self.n_parallel = n_parallel
        self._new_rows = new_rows
        self._vocab = vocab
        self._owner = owner or Owner()
        self.rows: RowsT | None = None
        self._size = (0, 0)
        self._waiting: list[Pending] = []
        self._turn: list[Pending] = []
        self._free: list[int] = []
        self._active: dict[int, _Slot] = {}

    @property
    def busy(self) -> bool:
        """Whether answers are being made."""
        return bool(self._active)

    def submit(
        self,
        request: Request,
        choice: Choice,
        on_text: Callable[[str], object] | None = None,
        on_thinking: Callable[[str], object] | None = None,
    ) -> Pending:
        """Hands a request in; nothing is computed yet.

        Args:
            on_text, on_thinking: told of each piece of the answer, and of what the model thinks before it.

        Raises:
            EngineError: in another thread than the session's, or once that is closed; so do the other methods.
        """
        self._owner.check()
        pending = Pending(self, request, choice, on_text, on_thinking)
        self._waiting.append(pending)
        return pending

    def run(self) -> None:
        """Answers everything that waits."""
        while self.advance():
            pass

    def advance(self) -> bool:
        """Begins what there is room for and computes one token for each answer in the making.

        Returns:
            Whether anything is left to do.

        Raises:
            SlmEdgeError: computing failed; the answers in the making are lost, and tell so.
        """
        self._owner.check()
        try:
            self._take_in()
            while self._free and self._turn:
                self._begin(self._turn.pop(0))
            self._step()
        except BaseException as error:
            self._fail(error)
            raise
        if not self._active and not self._turn and self.rows is not None:
            self.rows.flush()
        return bool(self._active or self._turn or self._waiting)

    def cancel(self, pending: Pending) -> None:
        """Takes a request out, with the answer that is being made of it."""
        if pending.done:
            return
        self._owner.check()
        pending.error = EngineError("the request was given up")
        for queue in (self._waiting, self._turn):
            if pending in queue:
                queue.remove(pending)
        for slot in [slot for slot in self._active.values() if slot.pending is pending]:
            self._release(slot)

    def close(self) -> None:
        """Frees the context; what is not answered fails. Calling it twice does nothing."""
        if self._owner.is_over:
            return
        self._owner.check()
        for pending in [*self._waiting, *self._turn, *(slot.pending for slot in self._active.values())]:
            self.cancel(pending)
        if self.rows is not None:
            self.rows.close()
        self.rows, self._size, self._free = None, (0, 0), []

    def _take_in(self) -> None:
        """Chooses whose turn it is, and adds late requests if nobody else waits."""
        if not self._waiting:
            return
        if not self._active and not self._turn:
            choice = self._waiting[0].choice
            self._turn = [pending for pending in self._waiting if pending.choice == choice]
            self._waiting = [pending for pending in self._waiting if pending.choice != choice]
            try:
                self._fit(self._turn)
            except SlmEdgeError as error:
                for pending in self._turn:
                    pending.error = error
                self._turn = []
            return
        running = self._turn[0] if self._turn else next(iter(self._active.values())).pending
        if any(pending.choice != running.choice for pending in self._waiting):
            return
        fitting = [pending for pending in self._waiting if _room(pending) <= self._size[1]]
        self._turn += fitting
        self._waiting = [pending for pending in self._waiting if pending not in fitting]

    def _fit(self, turn: Sequence[Pending]) -> None:
        """Makes sure that the context, idle now, has room for these."""
        n_sequences = min(self.n_parallel, len(turn))
        n_tokens = max(_room(pending) for pending in turn)
        if self.rows is not None and self._size[0] >= n_sequences and self._size[1] >= n_tokens:
            return
        n_sequences, n_tokens = max(n_sequences, self._size[0]), max(n_tokens, self._size[1])
        if self.rows is not None:
            self.rows.close()
            self.rows, self._size, self._free = None, (0, 0), []
        while True:
            try:
                self.rows = self._new_rows(n_sequences, n_tokens)
                break
            except DoesNotFitError:
                if n_sequences == 1:
                    raise
                # Fewer at once, and the others after them.
                n_sequences = -(-n_sequences // 2)
        self._size = (n_sequences, n_tokens)
        self._free = list(range(n_sequences))

    def _begin(self, pending: Pending) -> None:
        request = pending.request
        started_s = time.perf_counter()
        try:
            sections = request.sections()
            sampler = request.sampler(self._vocab)
        except SlmEdgeError as error:
            pending.error = error
            return
        growing = Growing(request, sampler, started_s)
        slot = _Slot(pending, self._free.pop(0), growing)
        self._active[slot.sequence] = slot
        assert self.rows is not None
        before_s = time.perf_counter()
        try:
            growing.n_kept_tokens = self.rows.prefill(slot.sequence, request.prompt, sections)
        except SlmEdgeError as error:
            self._end(slot, error)
            return
        growing.prefill_s = time.perf_counter() - before_s
        self._choose(slot, -1)

    def _step(self) -> None:
        if not self._active:
            return
        rows = [self._active[sequence] for sequence in sorted(self._active)]
        assert self.rows is not None
        self.rows.step([slot.growing.ids[-1] for slot in rows], [slot.sequence for slot in rows])
        for row, slot in enumerate(rows):
            self._choose(slot, row)

    def _choose(self, slot: _Slot, row: int) -> None:
        """Takes the next token of a slot from the row-th logits; ends it where it is whole."""
        assert self.rows is not None
        pending, growing = slot.pending, slot.growing
        try:
            token_id = self.rows.sample(growing.sampler, row)
        except SlmEdgeError as error:
            self._end(slot, error)
            return
        text = growing.take(token_id, self._vocab)
        if growing.thought and pending.on_thinking is not None:
            pending.on_thinking(growing.thought)
        if text and pending.on_text is not None:
            pending.on_text(text)
        if growing.reason is not None:
            answer, rest = growing.finish(pending.choice.name)
            if growing.thought and pending.on_thinking is not None:
                pending.on_thinking(growing.thought)
            if rest and pending.on_text is not None:
                pending.on_text(rest)
            pending.answer = answer
            self._release(slot)

    def _end(self, slot: _Slot, error: SlmEdgeError) -> None:
        """Ends one answer with its error; its neighbours go on."""
        slot.pending.error = error
        self._release(slot)

    def _release(self, slot: _Slot) -> None:
        if self._active.pop(slot.sequence, None) is None:
            return
        slot.growing.sampler.close()
        if self.rows is not None:
            self.rows.release(slot.sequence)
        self._free.append(slot.sequence)
        self._free.sort()

    def _fail(self, error: BaseException) -> None:
        """Drops the answers in the making after a failure in the middle of a step."""
        for slot in list(self._active.values()):
            slot.pending.error = slot.pending.error or error
            self._release(slot)


def _room(pending: Pending) -> int:
    """Tokens that a request may come to, rounded as llama.cpp does."""
    request = pending.request
    n_tokens = min(len(request.prompt) + request.max_tokens, request.room_tokens)
    return -(-n_tokens // _ROUND_TOKENS) * _ROUND_TOKENS
