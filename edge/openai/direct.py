"""Pieces of a stream that the engine's thread itself writes to the socket.

Waking the event loop for each token takes a CPU from what computes the next one, and costs several times what the
write does. So while nothing hinders it, the loop sleeps: it has the stream's beginning and end, what is not plain text,
and what the socket did not take.

    direct = Direct(wire, ticket, (b'data: {…"content":', b"…}\\n\\n"), observer)
    direct.resume(n_sent)       # the loop has sent so many pieces, and no byte of them waits
    direct.takes(i)             # whether the loop is to send the i-th piece
"""

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Protocol

import msgspec

from ..scheduler.ticket import Ticket

if TYPE_CHECKING:
    from .service import Observer


class Wire(Protocol):
    """A connection's socket, whose answer goes out in chunks (HTTP/1.1)."""

    def write(self, data: bytes) -> int:
        """How many bytes the socket took at once; 0 where it is closed. From any thread."""

    def push(self, data: bytes) -> None:
        """Sends bytes when the socket takes them. In the event loop alone, as what follows."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent, and the connection is open."""


class Direct:
    """The pieces of one ticket. All but `_write` is the event loop's.

    Args:
        frame: of an event with a piece of text, what stands before the JSON text and behind it.
        observer: told of the pieces that are written here.
    """

    def __init__(self, wire: Wire, ticket: Ticket, frame: tuple[bytes, bytes], observer: "Observer") -> None:
        self._wire = wire
        self._ticket = ticket
        self._begin, self._end = frame
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._is_on = False
        # Pieces that were sent, here or by the loop, and of them bytes that the socket did not take
        self._n_sent = 0
        self._rest = b""
        self._has_written = False
        ticket.tap = self._write

    def resume(self, n_sent: int) -> None:
        """From here on pieces are written here, if the loop has sent all that there are."""
        with self._lock:
            self._n_sent = max(self._n_sent, n_sent)
            is_level = self._n_sent == self._ticket.n_pieces and not self._ticket.done
            self._is_on = is_level and not self._rest and self._wire.is_empty

    def takes(self, i: int) -> bool:
        """Whether the i-th piece is the loop's to send; then so are those behind it, until `resume`."""
        with self._lock:
            if i < self._n_sent:
                return False
            self._is_on = False
            return True

    def stop(self) -> bool:
        """The loop sends something of its own; whether anything was written here since it last did."""
        with self._lock:
            self._is_on = False
            has_written, self._has_written = self._has_written, False
        self._flush()
        return has_written

    def close(self) -> None:
        """Nothing is written here any more."""
        self._ticket.tap = None
        self.stop()

    def _flush(self) -> None:
        with self._lock:
            rest, self._rest = self._rest, b""
        if rest:
            self._wire.push(rest)

    def _write(self) -> bool:
        """Writes what there is of new; False: the loop has to. On the engine's thread."""
        with self._lock:
            if not self._is_on:
                return False
            fresh = self._ticket.pieces_from(self._n_sent)
            if any(piece.thinking for piece in fresh):
                self._is_on = False
                return False
            data = b"".join(self._chunk(piece.text) for piece in fresh if piece.text)
            n_bytes = self._wire.write(data) if data else 0
            self._n_sent += len(fresh)
            self._has_written |= bool(data)
            self._rest = data[n_bytes:]
            self._is_on = is_whole = not self._rest
        for _ in fresh:
            self._observer.piece(self._ticket)
        if not is_whole:
            # A loop that was closed has nobody to send to.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._flush)
        return True

    def _chunk(self, text: str) -> bytes:
        body = self._begin + msgspec.json.encode(text) + self._end
        return b"%x\r\n%b\r\n" % (len(body), body)
