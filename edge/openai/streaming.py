"""Answers in the making: read together until they are whole or whoever asked is gone, and sent as events meanwhile.

The events of every endpoint come the same way; each says only how its own look (`Shape`).
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol, Self

import msgspec

from ..answer.stream import Answer
from ..errors import SlmEdgeError
from ..scheduler.ticket import Piece, Ticket
from .direct import Direct
from .faults import Fault, LateError, fault_of
from .fields import ChatRequest, CompletionRequest
from .reply import SILENCE_S, Call, EventStream, Gone, Receive, event_bytes
from .service import Asked, Observer, Service, numbers_of, usage_of

# So long the headers of a stream wait for the time that the request spent in the queue.
_HEAD_S: Final = 0.5
# Stands for a piece's text
MARK: Final = "\N{REPLACEMENT CHARACTER}text\N{REPLACEMENT CHARACTER}"
# A name, or None, and the document
Event = tuple[str | None, dict[str, Any]]
# Of which ticket, and what
Item = tuple[int, Piece | Answer | BaseException]


class Reading:
    """Reads tickets; leaving the block cancels those that are not whole.

    async with Reading(tickets, call.receive, observer) as reading:
        while (item := await reading.next()) is not None: ...

    Attributes:
        gone: whoever asked has hung up.
        direct: what it sends of the only ticket does not come here.
        n_seen: pieces that came or were sent already.
    """

    def __init__(self, tickets: Sequence[Ticket], receive: Receive, observer: Observer) -> None:
        self._tickets = tickets
        self._observer = observer
        self._receive = receive
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._left = len(tickets)
        self.gone = False
        self.direct: Direct | None = None
        self.n_seen = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._pump(i, ticket)) for i, ticket in enumerate(self._tickets)]
        self._tasks.append(asyncio.create_task(self._watch()))
        if (timeout_s := self._tickets[0].timeout_s) is not None:
            self._tasks.append(asyncio.create_task(self._end_after(timeout_s)))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.direct is not None:
            self.direct.close()
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

    @property
    def is_level(self) -> bool:
        """Whether all that came was asked for with `next`."""
        return self._items.empty()

    async def answers(self) -> list[Answer]:
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

    async def _pump(self, i: int, ticket: Ticket) -> None:
        try:
            async for piece in ticket.read_async():
                self.n_seen += 1
                if self.direct is not None and not self.direct.takes(self.n_seen - 1):
                    continue
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

    async def _end_after(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)
        for ticket in self._tickets:
            ticket.cancel(LateError(timeout_s))

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


class Shape(Protocol):
    """How the events of an endpoint look."""

    ends_with_done: bool

    def opening(self) -> list[Event]:
        """Before anything was computed."""

    async def piece(self, i: int, piece: Piece) -> list[Event]:
        """A step of the i-th answer."""

    def frame(self) -> Event | None:
        """An event of the first answer that has `MARK` in place of a piece's text; None: pieces are more than text."""

    def ended(self, i: int, answer: Answer) -> list[Event]:
        """The i-th answer is whole."""

    def last(self, answers: Sequence[Answer]) -> list[Event]:
        """All are whole."""

    def failed(self, fault: Fault) -> list[Event]:
        """It broke off."""


class Choices:
    """One answer with all of its choices, as chat and completions send it: half of a `Shape`, the choice is theirs."""

    ends_with_done = True

    def __init__(
        self, service: Service, request: ChatRequest | CompletionRequest, asked: Asked, id_begin: str, kind: str
    ) -> None:
        self._service = service
        self._asked = asked
        self._n = request.n or 1
        options = request.stream_options
        self._with_usage = bool(options is not None and options.include_usage)
        self._head = {
            "id": f"{id_begin}-{secrets.token_hex(12)}",
            "object": kind,
            "created": now_s(),
            "model": asked.model,
            "system_fingerprint": asked.fingerprint,
        }

    async def whole(self, call: Call) -> None:
        """Sends one JSON document, once all is there."""
        async with Reading(self._asked.tickets, call.receive, self._service.observer) as reading:
            answers = await reading.answers()
        choices = [await self.choice(i, answer) for i, answer in enumerate(answers)]
        call.headers["x-slm-queue-ms"] = self._asked.queue_ms()
        call.facts |= numbers_of(answers)
        more = {"usage": usage_of(answers, self._n), "slm_edge": self._asked.facts(answers[0])}
        await call.answer({**self._head, "choices": choices, **more})

    async def choice(self, i: int, answer: Answer) -> dict[str, Any]:
        """The i-th choice of a document."""
        raise NotImplementedError

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """An event's document, which tells of one choice."""
        return {**self._head, "choices": [choice], **({"usage": None} if self._with_usage else {})}

    def last(self, answers: Sequence[Answer]) -> list[Event]:
        """The numbers, where they were asked for: some clients look into `choices` of every event."""
        if not self._with_usage:
            return []
        return [(None, {**self._head, "choices": [], "usage": usage_of(answers, self._n)})]

    def failed(self, fault: Fault) -> list[Event]:
        """The error, as clients raise it."""
        return [(None, fault.as_dict())]


async def stream(service: Service, call: Call, asked: Asked, shape: Shape) -> None:
    """Streams answers to their end.

    Raises:
        Gone: whoever asked has hung up.
        SlmEdgeError: an answer failed before anything was sent.
    """
    async with Reading(asked.tickets, call.receive, service.observer) as reading:
        item = await reading.next(_HEAD_S)
        # What fails before anything was said is told by a status.
        if item is not None and isinstance(item[1], BaseException):
            raise item[1]
        call.headers["x-slm-queue-ms"] = asked.queue_ms()
        events = EventStream(call)
        await events.begin()
        answers: dict[int, Answer] = {}
        try:
            await _send(events, shape.opening())
            direct = reading.direct = _direct(service, call, asked, shape)
            while True:
                has_written = direct is not None and direct.stop()
                if item is not None:
                    await _send(events, await _events(shape, *item, answers))
                elif not has_written:
                    await events.comment("waiting")
                if direct is not None and reading.is_level:
                    direct.resume(reading.n_seen)
                try:
                    item = await reading.next()
                except StopAsyncIteration:
                    break
        except SlmEdgeError as error:
            await _send(events, shape.failed(fault_of(error)))
            await events.end(done=False)
            return
        whole = [answers[i] for i in range(len(answers))]
        call.facts |= numbers_of(whole)
        await _send(events, shape.last(whole))
        await events.end(done=shape.ends_with_done)


def _direct(service: Service, call: Call, asked: Asked, shape: Shape) -> Direct | None:
    """Who writes pieces of text past the event loop, where that can be."""
    frame = shape.frame()
    if call.wire is None or frame is None or len(asked.tickets) != 1:
        return None
    begin, mark, end = event_bytes(frame[1], frame[0]).partition(msgspec.json.encode(MARK))
    return Direct(call.wire, asked.tickets[0], (begin, end), service.observer) if mark else None


async def _events(
    shape: Shape, i: int, item: Piece | Answer | BaseException, answers: dict[int, Answer]
) -> list[Event]:
    if isinstance(item, BaseException):
        raise item
    if isinstance(item, Answer):
        answers[i] = item
        return shape.ended(i, item)
    return await shape.piece(i, item)


async def _send(events: EventStream, rows: list[Event]) -> None:
    for name, data in rows:
        await events.event(data, name)
