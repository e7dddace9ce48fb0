"""What goes back: one JSON document, or server-sent events as OpenAI's clients expect them."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

# Proxies cut a connection on which nothing flows for 30 to 60 s.
SILENCE_S: Final = 10.0
# Whoever reads nothing for so long is taken for gone.
SLOW_S: Final = 30.0
_STREAM: Final = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    # nginx would gather the events.
    ("x-accel-buffering", "no"),
)


@dataclass
class Call:
    """One request, as endpoints see it.

    Attributes:
        body: whole.
        key: name of the key that asks; "" where there are none.
        may_ask: tells whether it may ask the model with an id.
        headers: of the answer, whatever it becomes; `send` adds them when it begins.
        facts: what the log and the metrics say of it.
    """

    body: bytes
    key: str
    may_ask: Callable[[str], bool]
    receive: Receive
    send: Send
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    async def answer(self, data: Any, status: int = 200) -> None:
        """Sends one JSON document."""
        await answer_json(self.send, status, data)


class Gone(Exception):
    """Whoever asked is gone, or reads no more; there is nobody to answer."""


class EventStream:
    """Server-sent events; each is sent as soon as it is there."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.begun = False

    async def begin(self) -> None:
        """Sends the headers."""
        self.begun = True
        await self._call.send(_start(200, list(_STREAM)))

    async def event(self, data: Any, name: str | None = None) -> None:
        """Sends one event with a JSON document; Gone where nobody reads."""
        head = f"event: {name}\n" if name else ""
        await self._write(head.encode() + b"data: " + msgspec.json.encode(data) + b"\n\n")

    async def comment(self, text: str) -> None:
        """Sends a line that clients skip."""
        await self._write(f": {text}\n\n".encode())

    async def end(self, done: bool = True) -> None:
        """Ends the stream; `done` sends "[DONE]" before."""
        await self._write(b"data: [DONE]\n\n" if done else b"", more=False)

    async def _write(self, body: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(SLOW_S):
                await self._call.send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise Gone from None


async def answer_json(send: Send, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
    """Sends one JSON document."""
    await answer_bytes(send, msgspec.json.encode(data), "application/json", status, headers)


async def answer_bytes(
    send: Send, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    """Sends what is there whole; `kind` is its content type."""
    pairs = [("content-type", kind), ("content-length", str(len(body))), *(headers or {}).items()]
    await send(_start(status, pairs))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, pairs: list[tuple[str, str]]) -> Event:
    headers = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs]
    return {"type": "http.response.start", "status": status, "headers": headers}
