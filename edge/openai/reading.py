"""Answers in the making, read together until they are whole or whoever asked is gone."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from .reply import SILENCE_S, Gone, Receive

if TYPE_CHECKING:
    from ..answer.stream import Answer
    from ..scheduler.ticket import Piece, Ticket
    from .service import Observer

Item = tuple[int, "Piece | Answer | BaseException"]


class Reading:
    """Reads tickets; leaving the block cancels those that are not whole.

    async with Reading(tickets, call.receive, observer) as reading:
        while (item := await reading.next()) is not None: ...

    Attributes:
        gone: whoever asked has hung up.
    """

    def __init__(self, tickets: Sequence["Ticket"], receive: Receive, observer: "Observer") -> None:
        self._tickets = tickets
        self._observer = observer
        self._receive = receive
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._left = len(tickets)
        self.gone = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._pump(i, ticket)) for i, ticket in enumerate(self._tickets)]
        self._tasks.append(asyncio.create_task(self._watch()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for ticket in self._tickets:
            ticket.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self, silence_s: float = SILENCE_S) -> Item | None:
        """The next piece of any ticket by its place, or its answer, or what it failed on; None: nothing for so long.

        Raises:
            Gone: whoever asked has hung up.
            StopAsyncIteration: all are whole.
        """
        if not self._left:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(silence_s):
                i, item = await self._items.get()
        except TimeoutError:
            return None
        if self.gone:
            raise Gone
        if not _is_piece(item):
            self._left -= 1
        return i, item

    async def answers(self) -> "list[Answer]":
        """All of them, whole.

        Raises:
            Gone: whoever asked has hung up.
            SlmEdgeError: what the first to fail failed on.
        """
        found: dict[int, Answer] = {}
        with contextlib.suppress(StopAsyncIteration):
            while True:
                item = await self.next()
                if item is None or _is_piece(item[1]):
                    continue
                if isinstance(item[1], BaseException):
                    raise item[1]
                found[item[0]] = item[1]  # type: ignore[assignment]
        return [found[i] for i in range(len(self._tickets))]

    async def _pump(self, i: int, ticket: "Ticket") -> None:
        try:
            async for piece in ticket.read_async():
                self._observer.piece(ticket)
                self._items.put_nowait((i, piece))
            answer = ticket.result(0)
            self._observer.ended(ticket, answer)
            self._items.put_nowait((i, answer))
        except Exception as error:  # noqa: BLE001 - handed on to whoever reads
            self._observer.ended(ticket, error)
            self._items.put_nowait((i, error))
        except asyncio.CancelledError as error:
            self._observer.ended(ticket, error)
            raise

    async def _watch(self) -> None:
        """Nothing comes in any more once the body is read, but that the connection ends."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        for ticket in self._tickets:
            ticket.cancel()
        # Wakes whoever waits for the next piece.
        self._items.put_nowait((0, Gone()))


def _is_piece(item: object) -> bool:
    return hasattr(item, "token_id")


def now_s() -> int:
    """Seconds since 1970, as `created` has them."""
    return int(time.time())
