"""One request handed to an engine: its text as it comes, its answer at the end, from any thread or event loop.

    ticket = engine.submit("How many legs have 3 cats?", "math")
    for text in ticket: ...             # or: async for text in ticket
    ticket.result().stop_reason         # or: (await ticket).stop_reason

Every piece is kept until the ticket is gone, so a slow reader loses nothing and holds nobody up; an answer is never
longer than the context.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..answer.stream import Answer
from ..errors import EngineError

if TYPE_CHECKING:
    from ..router.router import Decision

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


@dataclass(frozen=True)
class Piece:
    """What one step added to an answer.

    Attributes:
        text: what is final by it; may be "", where a letter or a stop text could go on.
        token_id: None at the end of an answer, for text that was held back until then.
        logprob: of the token, by the model's output before temperature; None unless asked for.
        top: the likeliest tokens with theirs, as many as were asked for.
        thinking: what it added to the model's thoughts, which are no part of the text.
    """

    text: str
    token_id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    thinking: str = ""


class Ticket:
    """A request and its answer. Made by `Engine.submit`.

    Reading it (`for`, `async for`) gives pieces of text as they are final; leaving the loop early cancels the request,
    as does an awaiting task that is cancelled. Several readers each see all of it.

    Attributes:
        id: unique in its engine.
        key: whose it is.
        adapter: the name of what answers, resolved when it was submitted; None for the base alone.
        digest: sha256 of the adapter's file, of a mix the sha256 over its parts; None for the base alone.
        scale: of one adapter; None for the base alone, and for a mix, whose name has them.
        decision: the router's, where it chose.
        n_prompt_tokens: of the rendered prompt.
        timeout_s: how long who reads it waits for its end; None: as long as it takes.
        given_up: it was cancelled before it was done.
        tap: called on the engine's thread in place of waking readers, with new pieces there; whether it took them all.
            None: readers are woken. It must neither raise nor wait.
    """

    def __init__(
        self,
        number: int,
        key: str,
        adapter: str | None,
        digest: str | None,
        decision: "Decision | None",
        n_prompt_tokens: int,
        cancel: "Callable[[Ticket], object]",
    ) -> None:
        self.id = f"{number:08x}"
        self.key = key
        self.adapter = adapter
        self.digest = digest
        self.decision = decision
        self.n_prompt_tokens = n_prompt_tokens
        self.scale: float | None = None
        self.timeout_s: float | None = None
        self.given_up = False
        self._given_up_for: BaseException | None = None
        self.tap: Callable[[], bool] | None = None
        self._cancel = cancel
        self._submitted_s = time.perf_counter()
        self._begun_s: float | None = None
        self._pieces: list[Piece] = []
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        lock = threading.Lock()
        # Who waits for the end alone sleeps until then: waking takes a CPU from what computes the next token.
        self._changed, self._over = threading.Condition(lock), threading.Condition(lock)
        self._n_blocked = 0
        self._waiters: list[_Waiter] = []
        self._end_waiters: list[_Waiter] = []

    def __repr__(self) -> str:
        state = "done" if self.done else "waiting" if self._begun_s is None else "answering"
        return f"<Ticket {self.id} {self.adapter or 'base'} {state}>"

    @property
    def done(self) -> bool:
        """Whether it is answered, failed or cancelled."""
        return self._answer is not None or self._error is not None

    @property
    def answer(self) -> Answer | None:
        """The whole answer; None until it is there, or where the request failed."""
        return self._answer

    @property
    def queue_s(self) -> float:
        """Seconds from handing in until its computation began, or until now."""
        return (self._begun_s or time.perf_counter()) - self._submitted_s

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What there is of the answer so far."""
        return tuple(self._pieces)

    @property
    def n_pieces(self) -> int:
        """How many there are so far."""
        return len(self._pieces)

    def pieces_from(self, i: int) -> list[Piece]:
        """What there is from the i-th piece on."""
        return self._pieces[i:]

    def cancel(self, error: BaseException | None = None) -> None:
        """Gives the request up; what is computed for it stops soon. From any thread; does nothing once it is done.

        Args:
            error: what it fails on then, in place of an EngineError.
        """
        if not self.done:
            self.given_up, self._given_up_for = True, self._given_up_for or error
            self._cancel(self)

    def result(self, timeout_s: float | None = None) -> Answer:
        """Waits for the whole answer.

        Raises:
            TimeoutError: it is not there in time; the request goes on.
            SlmEdgeError: what the request failed on; EngineError where it was cancelled.
        """
        with self._over:
            if not self._over.wait_for(lambda: self.done, timeout_s):
                raise TimeoutError(f"the answer was not there after {timeout_s:g} s")
        return self._outcome()

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._result().__await__()

    async def _result(self) -> Answer:
        try:
            while not self.done:
                await self._more(-1)
        finally:
            self.cancel()
        return self._outcome()

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self.read() if piece.text)

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.read_async()) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece.text

    def read(self) -> Generator[Piece, None, None]:
        """The answer piece by piece, tokens with their numbers; raises at its end what the request failed on."""
        at = 0
        try:
            while True:
                with self._changed:
                    self._n_blocked += 1
                    self._changed.wait_for(lambda at=at: self.done or len(self._pieces) > at)  # type: ignore[misc]
                    self._n_blocked -= 1
                    ended, fresh = self.done, self._pieces[at:]
                yield from fresh
                at += len(fresh)
                if ended:
                    break
        finally:
            self.cancel()
        self._outcome()

    async def read_async(self) -> AsyncGenerator[Piece, None]:
        """As `read`, in an event loop."""
        at = 0
        try:
            while True:
                ended, fresh = await self._more(at)
                for piece in fresh:
                    yield piece
                at += len(fresh)
                if ended:
                    break
        finally:
            self.cancel()
        self._outcome()

    async def _more(self, at: int) -> tuple[bool, list[Piece]]:
        """What there is after the first `at` pieces, waited for; -1: nothing before the end."""
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self.done or len(self._pieces) > at >= 0:
                    return self.done, self._pieces[max(at, 0) :]
                future: asyncio.Future[None] = loop.create_future()
                (self._waiters if at >= 0 else self._end_waiters).append((loop, future))
            await future

    def _outcome(self) -> Answer:
        if self._error is not None:
            raise self._error
        if self._answer is None:
            raise EngineError("the answer is not finished")
        return self._answer

    # What the engine's thread says

    def begun(self) -> None:
        """Its computation begins."""
        self._begun_s = time.perf_counter()

    def add(self, piece: Piece) -> None:
        """One more piece; readers are woken by `wake`."""
        self._pieces.append(piece)

    def end(self, answer: Answer | None, error: BaseException | None = None) -> None:
        """It is answered, or failed; what comes later changes nothing."""
        if not self.done:
            self._answer, self._error = answer, error and (self._given_up_for or error)


def wake(tickets: Iterable[Ticket]) -> None:
    """Tells the readers of these that there is something new: each event loop is called once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket in tickets:
        tap = ticket.tap
        if tap is not None and not ticket.done and tap():
            continue
        with ticket._changed:
            if ticket._n_blocked:
                ticket._changed.notify_all()
            waiters, ticket._waiters = ticket._waiters, []
            if ticket.done:
                ticket._over.notify_all()
                waiters, ticket._end_waiters = waiters + ticket._end_waiters, []
        for loop, future in waiters:
            by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        # A loop that was closed has nobody waiting.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_set, futures)


def _set(futures: list["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
