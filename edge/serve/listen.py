"""Sockets, and connections that may not last for ever: uvicorn's HTTP with deadlines and caps of our own.

uvicorn would wait for the end of a request's head as long as a client likes, and closes its listeners before it tells
anyone that it ends. So its parts are used here, not its main loop.
"""

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import InputError
from ..openai.faults import Fault
from ..openai.reply import Receive, Scope, Send
from .guard import App

HEAD_S: Final = 10.0
# Whoever takes no byte of what waits for it for so long is taken for gone.
UNREAD_S: Final = 30.0
IDLE_S: Final = 5
MOST_HEAD_BYTES: Final = 16 << 10
MOST_CONNECTIONS: Final = 64
# From one address; this machine's own, where a proxy may stand, are counted together with all.
MOST_OF_ADDRESS: Final = 16
# Where a scope's extensions have the connection's `Wire`
WIRE: Final = "slm_edge.wire"


class Wire:
    """A connection's socket for threads beside the event loop's, see `openai.direct.Wire`."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._fd = transport.get_extra_info("socket").fileno()
        # The number is another file's once the socket is closed.
        self._lock = threading.Lock()
        self._is_closed = False

    def write(self, data: bytes) -> int:
        """How many bytes the socket took at once."""
        with self._lock:
            # What goes wrong is told to the event loop, which reads from it.
            with contextlib.suppress(OSError):
                return 0 if self._is_closed else os.write(self._fd, data)
            return 0

    def push(self, data: bytes) -> None:
        """Sends bytes when the socket takes them."""
        self._transport.write(data)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent, and the connection is open."""
        return not self._transport.is_closing() and not self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Nothing is written any more."""
        with self._lock:
            self._is_closed = True


class Limited(H11Protocol):
    """One connection. Its head must come in time, what is sent must be read, and there may be only so many of them.

    Args:
        unread_s: how long nothing may be read of what waits.
        on_unread: called where nobody read, and the connection is closed.
        more: as of uvicorn's class.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _began_s = 0.0

    def __init__(self, *, unread_s: float, on_unread: Callable[[], object], **more: Any) -> None:
        super().__init__(**more)
        self._unread_s, self._on_unread = unread_s, on_unread

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # More than one event is never kept for a reader: who sends waits until it is gone.
        transport.set_write_buffer_limits(0)
        wire = self._wire = Wire(transport)
        app = self.app

        async def wired(scope: Scope, receive: Receive, send: Send) -> None:
            # Only there does an answer of open length go out in chunks.
            if scope["http_version"] == "1.1":
                scope.setdefault("extensions", {})[WIRE] = wire
            await app(scope, receive, send)

        self.app = wired
        connections = [one for one in self.server_state.connections if isinstance(one, Limited)]
        address = self.client[0] if self.client else ""
        same = [one for one in connections if one.client and one.client[0] == address]
        self._began_s = self.loop.time()
        if len(connections) > MOST_CONNECTIONS or (len(same) > MOST_OF_ADDRESS and not _is_loopback(address)):
            of_own = connections if len(connections) > MOST_CONNECTIONS else same
            # Whoever takes longest to say what it wants makes room for whoever comes.
            slow = min(
                (one for one in of_own if one is not self and one.is_asking), key=lambda one: one._began_s, default=None
            )
            if slow is None:
                self._refuse(Fault(503, "overloaded", "too many connections", wait_s=2))
                return
            slow.give_up()
        self._watch_head()

    @property
    def is_asking(self) -> bool:
        """Whether its request is not here yet, or none has begun."""
        is_answered = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return not is_answered and not self.transport.is_closing()

    def give_up(self) -> None:
        """Closes it, with a word where none was said yet."""
        self._refuse(Fault(503, "overloaded", "too many connections, and this one waited", wait_s=2))
        self.server_state.connections.discard(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.close()
        self._unwatch_head()
        self._unwatch_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._unwatch_reader()
        super().resume_writing()

    def _watch_reader(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self._unread_s, self._reader_is_slow)

    def _unwatch_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _reader_is_slow(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread_bytes:
            self._watch_reader()
            return
        # Not `close`, which would wait for the reader.
        self.transport.abort()
        self._on_unread()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Fault(400, "invalid_request", "this is no valid HTTP/1.1 request"))

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE:
            self._refuse(Fault(408, "request_timeout", f"the request's head did not come within {HEAD_S:.0f} s"))

    def _refuse(self, fault: Fault) -> None:
        """Answers past h11, which may be in any state, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = msgspec.json.encode(fault.as_dict())
            head = [f"HTTP/1.1 {fault.status} {_PHRASES.get(fault.status, 'Error')}", "content-type: application/json"]
            head += [f"content-length: {len(body)}", "connection: close"]
            head += [f"{name}: {value}" for name, value in fault.headers.items()]
            self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()


_PHRASES: Final = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Listener:
    """Answers on sockets with an application.

    Args:
        sockets: bound, not yet listening; closed with the listener.
        unread_s, on_unread: as of `Limited`.
    """

    def __init__(
        self,
        app: App,
        sockets: Sequence[socket.socket],
        *,
        unread_s: float = UNREAD_S,
        on_unread: Callable[[], object] = lambda: None,
    ) -> None:
        # What goes wrong with a request is told by the guard; uvicorn would print what a client sent.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        arguments: dict[str, Any] = {
            "http": functools.partial(Limited, unread_s=unread_s, on_unread=on_unread),
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "date_header": False,
            "proxy_headers": False,
            "timeout_keep_alive": IDLE_S,
            "h11_max_incomplete_event_size": MOST_HEAD_BYTES,
        }
        self._config = uvicorn.Config(app, **arguments)
        self._server = uvicorn.Server(self._config)
        self._sockets = list(sockets)

    @property
    def n_connections(self) -> int:
        """How many there are now."""
        return len(self._server.server_state.connections)

    async def start(self) -> None:
        """Begins to answer."""
        self._config.load()
        self._server.lifespan = self._config.lifespan_class(self._config)
        await self._server.startup(sockets=self._sockets)

    async def stop(self, grace_s: float) -> None:
        """Takes no more connections, and gives those that there are so long to end."""
        self._config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
        await self._server.shutdown(sockets=self._sockets)


def tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host.

    Raises:
        InputError: there is no such host, or the port is taken or not ours to take.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InputError(f"the host {host!r} has no address ({error.strerror})", hint="--host 127.0.0.1") from None
    sockets: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(found):
        one = socket.socket(family, kind, proto)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # A port that the system chose for the first address is everyone's.
            chosen = sockets[0].getsockname()[1] if sockets and not port else port
            one.bind((address[0], chosen, *address[2:]))
        except OSError as error:
            one.close()
            if error.errno == errno.EADDRNOTAVAIL and sockets:
                continue
            for other in sockets:
                other.close()
            taken = error.errno == errno.EADDRINUSE
            reason = "another program has it" if taken else error.strerror
            hint = "--port takes another" + ("; slm-edge ps lists the servers that run here" if taken else "")
            raise InputError(f"cannot listen on {host} port {port}: {reason}", hint=hint) from None
        sockets.append(one)
    return sockets


def unix_socket(path: Path) -> socket.socket:
    """A Unix socket that its owner alone may open; one that a dead server left is replaced.

    Raises:
        InputError: a server listens there, something else lies there, or it cannot be made.
    """
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise InputError("another server listens there", where=path)
        else:
            raise InputError("is no socket; another file lies there", where=path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"cannot be looked at ({error.strerror})", where=path) from None
    one = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        one.bind(str(path))
    except OSError as error:
        one.close()
        raise InputError(f"no socket can be made there ({error.strerror or error})", where=path) from None
    finally:
        os.umask(before)
    return one


def remove_socket(path: Path) -> None:
    """Takes a socket's file away, where it is still there."""
    with contextlib.suppress(OSError):
        path.unlink()


def all_loopback(sockets: Sequence[socket.socket]) -> bool:
    """Whether this machine alone can reach them."""
    return all(one.family == socket.AF_UNIX or _is_loopback(one.getsockname()[0]) for one in sockets)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        # A Unix socket has no address.
        return True


def url_of(one: socket.socket) -> str:
    """How a client names it."""
    if one.family == socket.AF_UNIX:
        return f"unix:{one.getsockname()}"
    host, port = one.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
