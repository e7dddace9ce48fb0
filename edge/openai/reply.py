"""What goes back: one JSON document, or server-sent events as OpenAI's clients expect them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from ..scheduler.engine import Engine
    from ..scheduler.ticket import Piece
    from .direct import Wire

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
        wire: its connection, where threads may write events to it; None where they may not.
    """

    body: bytes
    key: str
    may_ask: Callable[[str], bool]
    receive: Receive
    send: Send
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    wire: "Wire | None" = None

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
        await self._write(event_bytes(data, name))

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


def event_bytes(data: Any, name: str | None = None) -> bytes:
    """One server-sent event with a JSON document."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + msgspec.json.encode(data) + b"\n\n"


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


# Tokens with their log-probabilities, as OpenAI has them


@dataclass(frozen=True)
class Spoken:
    """The bytes of tokens, by id."""

    by_id: Mapping[int, bytes]

    @classmethod
    def of(cls, engine: "Engine", pieces: "Sequence[Piece]") -> "Spoken":
        """Of all tokens that these pieces name."""
        ids = {piece.token_id for piece in pieces if piece.token_id is not None}
        ids |= {token_id for piece in pieces for token_id, _ in piece.top}
        known = sorted(ids)
        return cls(dict(zip(known, engine.token_bytes(known), strict=True)))

    def text(self, token_id: int) -> str:
        """The text of one; half a letter is U+FFFD."""
        return self.by_id[token_id].decode("utf-8", "replace")


def entries(pieces: "Sequence[Piece]", spoken: Spoken) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat answer."""
    made = []
    for piece in pieces:
        if piece.token_id is None or piece.logprob is None:
            continue
        entry = _entry(piece.token_id, piece.logprob, spoken)
        made.append({**entry, "top_logprobs": [_entry(one, logprob, spoken) for one, logprob in piece.top]})
    return made


def _entry(token_id: int, logprob: float, spoken: Spoken) -> dict[str, Any]:
    return {
        "token": spoken.text(token_id),
        "logprob": max(logprob, -9999.0),
        "bytes": list(spoken.by_id[token_id]),
    }


def legacy(pieces: "Sequence[Piece]", spoken: Spoken) -> dict[str, Any]:
    """`logprobs` of a completion, as /v1/completions has them: four lists, one entry for each token."""
    tokens, values, tops, places, place = [], [], [], [], 0
    for piece in pieces:
        if piece.token_id is None or piece.logprob is None:
            continue
        text = spoken.text(piece.token_id)
        tokens.append(text)
        values.append(max(piece.logprob, -9999.0))
        tops.append({spoken.text(one): max(logprob, -9999.0) for one, logprob in piece.top})
        places.append(place)
        place += len(text)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": places}
