"""An answer as events while it is made: the same for every endpoint, which says only how its events look."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

from ..answer.stream import Answer
from ..errors import SlmEdgeError
from ..scheduler.ticket import Piece
from .faults import Fault, fault_of
from .reading import Reading
from .reply import Call, EventStream
from .service import Asked, Service, numbers_of

# So long the headers of a stream wait for the time that the request spent in the queue.
_HEAD_S: Final = 0.5
# A name, or None, and the document
Event = tuple[str | None, dict[str, Any]]


class Shape(Protocol):
    """How the events of an endpoint look."""

    ends_with_done: bool

    def opening(self) -> list[Event]:
        """Before anything was computed."""

    async def piece(self, i: int, piece: Piece) -> list[Event]:
        """A step of the i-th answer."""

    def ended(self, i: int, answer: Answer) -> list[Event]:
        """The i-th answer is whole."""

    def last(self, answers: Sequence[Answer]) -> list[Event]:
        """All are whole."""

    def failed(self, fault: Fault) -> list[Event]:
        """It broke off."""


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
            while True:
                if item is None:
                    await events.comment("waiting")
                else:
                    await _send(events, await _events(shape, *item, answers))
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
