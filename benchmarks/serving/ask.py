"""One HTTP request on a connection of its own, with the time at which each event came; light, so that load is cheap.

reply = await ask(port, "/v1/chat/completions", {"model": "math", …, "stream": True})
reply.text, reply.first_s, reply.seconds
"""

import asyncio
import bisect
import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...edge.errors import EngineError

CHAT: Final = "/v1/chat/completions"
_MOST_LINE_BYTES: Final = 1 << 22


@dataclass
class Reply:
    """What came back.

    Attributes:
        status: 0 where the connection was lost or left before an answer.
        parts: pieces of the body as they came, each with its seconds since the request was begun.
        seconds: from the begin to the end.
        is_whole: the body came to its end.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    is_whole: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(part for _, part in self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The error's code; None where there is none."""
        try:
            return str(self.json["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return None

    def events(self) -> list[tuple[float, Any]]:
        """Server-sent events as (seconds, document); the last is "[DONE]"."""
        found, rest = [], b""
        for at_s, part in self.parts:
            *rows, rest = (rest + part).split(b"\n\n")
            for row in rows:
                data = row.rpartition(b"data: ")[2] if b"data: " in row else b""
                if data:
                    found.append((at_s, "[DONE]" if data == b"[DONE]" else json.loads(data)))
        return found

    def pieces(self) -> list[tuple[float, str]]:
        """The texts of a stream of chat, each with its seconds."""
        found = []
        for at_s, event in self.events():
            for choice in event.get("choices", []) if isinstance(event, dict) else []:
                if text := choice.get("delta", {}).get("content"):
                    found.append((at_s, text))
        return found

    @property
    def first_s(self) -> float:
        """Seconds to the first text of a stream; infinite where none came."""
        return next((at_s for at_s, _ in self.pieces()), float("inf"))


async def ask(
    port: int,
    path: str,
    body: Any = None,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    leave_after: int | None = None,
    leave_s: float | None = None,
) -> Reply:
    """Asks, and reads to the end.

    Args:
        body: sent as JSON, bytes as they are; None for a GET.
        leave_after: hang up after so many pieces of the body.
        leave_s: hang up so long after the request was sent.
    """
    reply, began_s = Reply(), time.perf_counter()
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    if key is not None:
        head.append(f"Authorization: Bearer {key}")
    head += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_MOST_LINE_BYTES)
        writer.write("\r\n".join([*head, "", ""]).encode() + data)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(leave_s):
                await _read(reader, reply, began_s, leave_after)
    except (OSError, asyncio.IncompleteReadError):
        # A server that refuses may close before it has read all; what it said came before.
        pass
    finally:
        reply.seconds = time.perf_counter() - began_s
        if writer is not None:
            writer.close()
    return reply


async def _read(reader: asyncio.StreamReader, reply: Reply, began_s: float, leave_after: int | None) -> None:
    first = (await reader.readuntil(b"\r\n")).split(b" ", 2)
    reply.status = int(first[1])
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        reply.headers[name.lower()] = value.strip()
    chunked = reply.headers.get("transfer-encoding") == "chunked"
    left = int(reply.headers.get("content-length", 0))
    while leave_after is None or len(reply.parts) < leave_after:
        size = int(await reader.readuntil(b"\r\n"), 16) if chunked else left
        part = await reader.readexactly(size)
        if chunked:
            await reader.readexactly(2)
        if size:
            reply.parts.append((time.perf_counter() - began_s, part))
        if not size or not chunked:
            reply.is_whole = True
            return


def ask_by_thread(port: int, path: str, body: Any) -> Reply:
    """As `ask`, by this thread, which sleeps in the socket and looks at nothing before the end.

    It takes a third of the processor's time that `ask` takes for each event: for one client on the cores of a server
    whose speed is measured.
    """
    reply, began_s, data = Reply(), time.perf_counter(), json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", "Content-Type: application/json"]
    head.append(f"Content-Length: {len(data)}")
    came, ends, n_bytes = bytearray(), [], 0
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall("\r\n".join([*head, "", ""]).encode() + data)
        while part := one.recv(1 << 16):
            came += part
            n_bytes += len(part)
            ends.append((n_bytes, time.perf_counter() - began_s))
    reply.seconds = time.perf_counter() - began_s
    first, _, rest = bytes(came).partition(b"\r\n\r\n")
    status, *lines = first.decode("latin-1").split("\r\n")
    reply.status = int(status.split(" ", 2)[1])
    reply.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if reply.headers.get("transfer-encoding") != "chunked":
        reply.parts, reply.is_whole = [(reply.seconds, rest)], True
        return reply
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            reply.is_whole = True
            break
        part, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        reply.parts.append((ends[bisect.bisect_left(ends, (n_bytes - len(rest), 0.0))][1], part))
    return reply


async def gather(asked: Sequence[Any]) -> list[Reply]:
    """All of them at once."""
    return list(await asyncio.gather(*asked))


def right(reply: Reply) -> Reply:
    """The reply itself, if it is a whole 200.

    Raises:
        EngineError: it is not.
    """
    if reply.status != 200 or not reply.is_whole:
        raise EngineError(f"answered with {reply.status}: {reply.body[:300].decode(errors='replace')}")
    return reply


def chat(model: str, text: str, n_tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a chat of one message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": n_tokens, **more}
