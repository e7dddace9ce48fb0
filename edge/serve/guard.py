"""What every request passes before anything reads it: Host, origin, key, kind and size of its body.

It wraps the whole application, so that no path is forgotten: what is open to all is listed here, all else needs a key
where there are keys. Written as plain ASGI, because a wrapper that gathers answers would hide who hung up.
"""

import asyncio
import ipaddress
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ..console import note
from ..errors import SlmEdgeError
from ..openai.faults import Fault, fault_of
from ..openai.reply import Event, Gone, Receive, Scope, Send, answer_json
from .keys import ANYONE, Key, Keys
from .page import FILES as PAGE_FILES

App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES: Final = 1 << 20
# Of all requests together: bodies that are being read or answered
MOST_BODIES_BYTES: Final = 16 << 20
BODY_S: Final = 30.0
# Read without a key: they say nothing but whether the server is well, and the page for people nothing at all.
OPEN_PATHS: Final = frozenset({"/health", "/health/live", "/health/ready", *PAGE_FILES})
METRICS_PATHS: Final = frozenset({"/metrics"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_ALLOWED_HEADERS: Final = b"authorization, content-type, x-api-key, x-request-id"
_SHOWN_HEADERS: Final = b"x-request-id, x-slm-adapter, x-slm-adapter-digest, x-slm-queue-ms, x-slm-ignored, retry-after"


@dataclass
class Rules:
    """Who is let in.

    Attributes:
        keys: None where everyone who reaches the server may use it.
        hosts: names that the Host header may have beside loopback's and the address that was called.
        origins: web pages that may call from a browser; "*" for all.
    """

    keys: Keys | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()


@dataclass
class Caller:
    """One request, as endpoints see it: `scope["slm_edge"]`.

    Attributes:
        body: read whole, at most `MOST_BODY_BYTES`.
        headers: added to the answer, whatever it becomes.
        status: of the answer, once it has begun.
        facts: what the log says of it, beside.
    """

    key: Key
    request_id: str
    trusted: bool = False
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)


class Guard:
    """Lets requests through to an application, or refuses them.

    Args:
        trusted: requests come over a socket that only the server's own user can open: no key, no Host is asked for.
        done: called with each request once it is answered: scope, caller.
    """

    def __init__(
        self, app: App, rules: Rules, *, trusted: bool = False, done: Callable[[Scope, Caller], None] | None = None
    ) -> None:
        self._app = app
        self.rules = rules
        self._trusted = trusted
        self._done = done
        self._bodies_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = _headers(scope)
        given = headers.get(b"x-request-id", [b""])[0]
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        caller = scope["slm_edge"] = Caller(ANYONE, request_id, self._trusted)
        origin = self._origin(headers)
        started = False

        async def sent(event: Event) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                caller.status = event["status"]
                more = {"x-request-id": request_id, **caller.headers}
                event["headers"] = [
                    *event.get("headers", []),
                    *((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in more.items()),
                    (b"x-content-type-options", b"nosniff"),
                    *origin,
                ]
            await send(event)
            started = True

        held_bytes = 0
        try:
            try:
                self._check(scope, headers, caller)
                if scope["method"] == "OPTIONS" and origin and b"access-control-request-method" in headers:
                    await _preflight(sent)
                    return
                if scope["method"] in ("POST", "PUT", "PATCH"):
                    held_bytes = await self._read(headers, receive, caller)
                await self._app(scope, receive, sent)
            except (Fault, SlmEdgeError) as error:
                fault = error if isinstance(error, Fault) else fault_of(error)
                caller.facts["code"] = fault.code
                await answer_fault(sent, fault, started)
            except Gone:
                pass
            except Exception as error:  # noqa: BLE001
                # The server stays; what it was about is not told to a stranger.
                note("".join(traceback.format_exception(error)))
                text = f"the server failed on this request ({request_id} in its log)"
                await answer_fault(sent, Fault(500, "internal_error", text), started)
        finally:
            self._bodies_bytes -= held_bytes
            if self._done is not None:
                self._done(scope, caller)

    def _check(self, scope: Scope, headers: dict[bytes, list[bytes]], caller: Caller) -> None:
        if self._trusted:
            return
        self._check_host(scope, headers)
        path = scope["path"]
        keys = self.rules.keys
        if keys is None or path in OPEN_PATHS:
            return
        if scope["method"] == "OPTIONS" and self._origin(headers):
            # A browser asks first, and sends no key with that.
            return
        key = keys.find(_secret(headers))
        if key is None:
            raise Fault(
                401,
                "invalid_api_key",
                "a valid key is needed: Authorization: Bearer KEY",
                headers={"www-authenticate": "Bearer"},
            )
        if path in METRICS_PATHS and not key.metrics:
            raise Fault(403, "not_allowed", "this key has no scope `metrics`")
        caller.key = key

    def _check_host(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
        """A page of another name that was made to point here is refused: its Host is that name."""
        if scope.get("server") is None or scope["server"][1] is None:
            # A Unix socket, which no browser opens.
            return
        given = headers.get(b"host", [])
        name = _host_name(given[0].decode("latin-1")) if len(given) == 1 else None
        if name is None or not (name in _LOOPBACK or name in self.rules.hosts or _same_address(name, scope["server"])):
            raise Fault(403, "host_not_allowed", "this Host is not served here (--allowed-host NAME lets it in)")

    def _origin(self, headers: dict[bytes, list[bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers by which a browser lets a page read the answer; none where its origin was not named."""
        given = headers.get(b"origin", [b""])[0].decode("latin-1")
        if not given or not self.rules.origins & {given, "*"}:
            return []
        allowed = b"*" if "*" in self.rules.origins else given.encode("latin-1")
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _SHOWN_HEADERS),
            (b"vary", b"origin"),
        ]

    async def _read(self, headers: dict[bytes, list[bytes]], receive: Receive, caller: Caller) -> int:
        """Reads the body; the bytes that are held until the request is answered."""
        kind = headers.get(b"content-type", [b""])[0].partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Fault(415, "unsupported_media_type", "the Content-Type must be application/json")
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # A proxy in front may have read it otherwise than it is read here.
            text = "the body has two lengths"
            raise Fault(400, "invalid_request", text, headers={"connection": "close"})
        if headers.get(b"content-encoding", [b"identity"])[0].lower() != b"identity":
            raise Fault(415, "unsupported_media_type", "the body must not be compressed")
        length = headers.get(b"content-length", [b"0"])[0]
        if length.isdigit() and int(length) > MOST_BODY_BYTES:
            raise _too_large()
        parts: list[bytes] = []
        n_bytes = 0
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise Gone
                    part = event.get("body", b"")
                    n_bytes += len(part)
                    self._bodies_bytes += len(part)
                    parts.append(part)
                    if n_bytes > MOST_BODY_BYTES:
                        raise _too_large()
                    if self._bodies_bytes > MOST_BODIES_BYTES:
                        raise Fault(503, "overloaded", "too many large requests at once", wait_s=5)
                    if not event.get("more_body", False):
                        break
        except TimeoutError:
            self._bodies_bytes -= n_bytes
            fault = Fault(408, "request_timeout", f"the body did not come within {BODY_S:.0f} s")
            fault.headers["connection"] = "close"
            raise fault from None
        except BaseException:
            self._bodies_bytes -= n_bytes
            raise
        caller.body = b"".join(parts)
        return n_bytes


async def answer_fault(send: Send, fault: Fault, started: bool = False) -> None:
    """Sends a refusal; where an answer has begun, nothing can be said any more, and the connection ends."""
    if not started:
        await answer_json(send, fault.status, fault.as_dict(), fault.headers)


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _too_large() -> Fault:
    most = f"{MOST_BODY_BYTES >> 20} MiB"
    return Fault(413, "request_too_large", f"the body is larger than {most}", headers={"connection": "close"})


def _headers(scope: Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, []).append(value)
    return found


def _secret(headers: dict[bytes, list[bytes]]) -> str:
    given = headers.get(b"authorization", [])
    scheme, _, secret = (given[0] if len(given) == 1 else b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return secret.strip().decode("latin-1")
    return headers.get(b"x-api-key", [b""])[0].decode("latin-1")


def _host_name(text: str) -> str | None:
    """The name or address in a Host header, in lower case and without its port; None where it is none."""
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") or not port else "x"
    else:
        name, _, port = text.partition(":")
        bracket = "]"
    if not bracket or not name or (port and not port.isdigit()):
        return None
    return name.lower().removesuffix(".")


def _same_address(name: str, server: Iterable[Any]) -> bool:
    """Whether it is the very address that the connection came in on."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(str(next(iter(server))).partition("%")[0])
    except ValueError:
        return False
