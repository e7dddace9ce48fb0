"""Addresses on the web and what is asked of them: over https, and never led into this machine's own network.

    access = access_of("https://host/pack.json")        # what an address that the user typed may lead to
    with opened(request_of(url, {}, access), access) as answer:
        answer.read1(1 << 20)

A token goes to the host that it is meant for and to no other, whatever redirects.
"""

import contextlib
import functools
import http.client
import ipaddress
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from ..errors import DamagedError, UnreachableError

TIMEOUT_S: Final = 60
# What a killed process loses is what waits in the kernel for it.
_RECEIVE_BYTES: Final = 384 << 10
OFFLINE: Final = "offline mode is on (HF_HUB_OFFLINE)"
_TRUE: Final = ("1", "ON", "YES", "TRUE")
_LOCAL_NAMES: Final = ("localhost", "ip6-localhost")


class DownloadError(UnreachableError):
    """A source could not be read; another may do."""


@dataclass(frozen=True)
class Access:
    """What may be asked.

    Attributes:
        insecure: plain http too.
        private: hosts of private networks and this machine too: the user named one of them.
    """

    insecure: bool = False
    private: bool = False


def access_of(url: str, *, insecure: bool = False) -> Access:
    """What may be asked for the sake of an address that the user typed: of private networks what lies in one itself.

    Raises:
        DownloadError: it is no address.
    """
    host = _split(url).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    return Access(insecure, any(is_private(str(row[4][0])) for row in found))


def is_private(address: str) -> bool:
    """Whether an IP address is of this machine or a network that is not the internet; other texts are not."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return not (mapped or ip).is_global


def is_offline() -> bool:
    """Whether nothing is to be fetched: `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE`, as huggingface_hub has it."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def hub_endpoint() -> str:
    """The hub's address; `$HF_ENDPOINT` names another, as for huggingface_hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_url(repo: str, file: str, revision: str = "main") -> str:
    """The address of a hub's file."""
    return f"{hub_endpoint()}/{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(file)}"


def hub_token(url: str) -> str | None:
    """The user's token for the hub, as huggingface_hub finds it, if `url` is the hub's and nobody can listen."""
    mine, asked = _split(hub_endpoint()), _split(url)
    if _origin(mine) != _origin(asked) or not (asked.scheme == "https" or _is_this_machine(asked.hostname or "")):
        return None
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return None
    if token := os.environ.get("HF_TOKEN"):
        return token.strip() or None
    try:
        from huggingface_hub import get_token
    except ModuleNotFoundError:
        return None
    return get_token()


def request_of(
    url: str, headers: Mapping[str, str], access: Access, token: str | None = None
) -> urllib.request.Request:
    """The request of an address as people write it: letters beyond ASCII are put as addresses have them.

    Args:
        token: sent as a bearer token to this host, not to where it redirects.

    Raises:
        DownloadError: it is no address, or none that may be asked.
    """
    parts = _split(url)
    try:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it has no host")
        place = parts.netloc.encode("ascii" if parts.netloc.isascii() else "idna").decode("ascii")
        rest = urllib.parse.quote(urllib.parse.urlunsplit(("", "", *parts[2:])), safe="%/:?#[]@!$&'()*+,;=~")
        headers = {"User-Agent": "slm-edge", "Accept-Encoding": "identity", **headers}
        request = urllib.request.Request(f"{parts.scheme}://{place}{rest}", headers=headers)
    except ValueError as error:
        raise DownloadError(f"is no address ({error})", where=url) from None
    _check(request.full_url, access)
    if is_offline():
        raise DownloadError(OFFLINE, where=url)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return request


@contextlib.contextmanager
def opened(request: urllib.request.Request, access: Access, timeout_s: float = TIMEOUT_S) -> Iterator[Any]:
    """The server's answer to a request.

    Args:
        timeout_s: for the connection, and for each piece that is read.

    Raises:
        DownloadError: the address, or where it leads, is none or may not be asked; or the server refuses for good.
        OSError, http.client.HTTPException: another try may do; also while the answer is read.
    """
    url = request.full_url
    try:
        with _opener(access).open(request, timeout=timeout_s) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code not in (408, 416, 429):
            raise DownloadError(
                f"the server answers {error.code} {error.reason}", where=url, hint=_why(error)
            ) from None
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, DownloadError):
            raise error.reason from None
        raise
    except (http.client.InvalidURL, ValueError) as error:
        # ValueError: what urllib raises of addresses with half an IPv6 host, or names that DNS cannot hold.
        raise DownloadError(f"it is, or leads to, no address ({error})", where=url) from None


def read_small(url: str, access: Access, most_bytes: int, token: str | None = None) -> bytes:
    """A small file, whole.

    Raises:
        DownloadError: it cannot be had.
        DamagedError: it is larger.
    """
    for last in (False, False, True):
        try:
            with opened(request_of(url, {}, access, token), access) as answer:
                data: bytes = answer.read(most_bytes + 1)
                length = answer.headers.get("Content-Length")
                if len(data) > most_bytes:
                    raise DamagedError(f"is larger than the {most_bytes} bytes that such a file may have", where=url)
                if length is None or not length.isdigit() or len(data) == int(length):
                    return data
                problem: object = "the connection ended early"
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.reason}"
            if not last:
                time.sleep(wait_s(error, 0.5))
        except (OSError, http.client.HTTPException) as error:
            problem = getattr(error, "reason", error)
    raise DownloadError(f"cannot be read: {problem}", where=url)


def hub_state(timeout_s: float = 3) -> str:
    """Whether the hub answers: "reachable", or why not; waits no longer than this."""
    if is_offline():
        return OFFLINE
    said = [f"no answer within {timeout_s:g} s"]

    def ask() -> None:
        url = f"{hub_endpoint()}/"
        try:
            access = access_of(url, insecure=True)
            with opened(request_of(url, {}, access), access, timeout_s):
                said[0] = "reachable"
        except urllib.error.HTTPError as error:
            said[0] = f"it answers {error.code}"
        except DownloadError as error:
            # Whatever it answers, it is there.
            said[0] = "reachable" if error.message.startswith("the server answers") else error.message
        except (OSError, http.client.HTTPException) as error:
            said[0] = f"not reachable ({getattr(error, 'reason', error)})"

    # Looking up a name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    return said[0]


def wait_s(error: urllib.error.HTTPError, else_s: float, most_s: float = 120) -> float:
    """How long a server wants us to wait, by Retry-After or the hub's RateLimit."""
    said = str(error.headers.get("Retry-After") or "").strip()
    if said.isdigit():
        return min(int(said), most_s)
    with contextlib.suppress(ValueError, TypeError):
        return min(max(0.0, parsedate_to_datetime(said).timestamp() - time.time()), most_s)
    found = re.search(r"\bt=(\d+)", str(error.headers.get("RateLimit") or ""))
    return min(int(found[1]), most_s) if found and error.code == 429 else else_s


def _why(error: urllib.error.HTTPError) -> str | None:
    said = str(error.headers.get("X-Error-Code") or "")
    if said == "GatedRepo" or error.code in (401, 403):
        return "if it is gated or private: accept its terms on its page, then set HF_TOKEN or run: hf auth login"
    return None


def _split(url: str) -> urllib.parse.SplitResult:
    """An address in its parts; DownloadError if it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        # Raises where it is none
        parts.port  # noqa: B018
        return parts
    except ValueError as error:
        raise DownloadError(f"is no address ({error})", where=url) from None


def _origin(parts: urllib.parse.SplitResult) -> tuple[str, str, int | None]:
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_this_machine(host: str) -> bool:
    try:
        return host.lower() in _LOCAL_NAMES or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(url: str, access: Access) -> None:
    """Raises DownloadError for what an address alone says that it may not be asked."""
    parts = _split(url)
    host = parts.hostname or ""
    local = _is_this_machine(host)
    if (local or is_private(host)) and not access.private:
        raise DownloadError("leads into a private network, where what comes from outside may not look", where=url)
    if parts.scheme != "https" and not access.insecure and not (parts.scheme == "http" and local):
        raise DownloadError(
            f"is {parts.scheme}, not https: anyone on the way could change it",
            where=url,
            hint="slm-edge pull --insecure takes it all the same" if parts.scheme == "http" else None,
        )


def _connected(access: Access, proxied: bool, *given: Any, **named: Any) -> socket.socket:
    """A connection whose other end was looked at before anything is sent: names can lead anywhere."""
    connection = socket.create_connection(*given, **named)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    if not proxied and not access.private and is_private(str(connection.getpeername()[0])):
        connection.close()
        raise DownloadError(
            "leads into a private network, where what comes from outside may not look", where=str(given[0][0])
        )
    return connection


class _Handler(urllib.request.HTTPSHandler):
    """http and https through connections that are looked at."""

    def __init__(self, access: Access) -> None:
        super().__init__()
        self._access = access

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(self._connection, http.client.HTTPConnection, req), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(self._connection, http.client.HTTPSConnection, req), req)

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _connection(self, kind: Any, req: urllib.request.Request, host: str, **named: Any) -> Any:
        made = kind(host, **named)
        proxied = req.has_proxy() or getattr(req, "_tunnel_host", None) is not None
        made._create_connection = functools.partial(_connected, self._access, proxied)
        return made


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to https, to the same scheme, and nowhere that may not be asked; the token stays with its host."""

    max_redirections = 5

    def __init__(self, access: Access) -> None:
        self._access = access

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = _split(req.full_url), _split(newurl)
        if after.scheme != "https" and after.scheme != before.scheme:
            raise DownloadError(f"is led from {before.scheme} to {after.scheme or 'nowhere'}", where=req.full_url)
        _check(newurl, self._access)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if request is not None and token and _origin(before) == _origin(after):
            request.add_unredirected_header("Authorization", token)
        return request


@functools.lru_cache(maxsize=8)
def _opener(access: Access) -> urllib.request.OpenerDirector:
    """Knows http and https and no other scheme: no files, no ftp, no data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(access),
        urllib.request.HTTPErrorProcessor(),
        _Handler(access),
    ):
        opener.add_handler(handler)
    return opener
