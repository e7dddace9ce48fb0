"""A file over HTTP, resumed where it broke off, checked by its sha256.

The part already here is kept as `NAME.part`; a server that honours Range continues it, another starts over.
"""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..console import Advance
from ..errors import DamagedError, EngineError, is_full
from .aside import full_disk
from .atomic import CHUNK_BYTES

TIMEOUT_S = 60
TRIES = 5


class DownloadError(EngineError):
    """A source could not be read; another may do."""


def hub_url(repo: str, file: str, revision: str = "main") -> str:
    """The address of a hub's file; `$HF_ENDPOINT` names another hub, as for huggingface_hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{repo}/resolve/{revision}/{file}"


def hub_token() -> str | None:
    """The user's token for gated repositories, `$HF_TOKEN`."""
    return os.environ.get("HF_TOKEN") or None


def part_of(dest: Path) -> Path:
    """Where the part of `dest` that has come so far is kept."""
    return dest.with_name(dest.name + ".part")


@contextlib.contextmanager
def opened(request: urllib.request.Request) -> Iterator[Any]:
    """The server's answer to a request.

    Raises:
        DownloadError: the address, or one that it leads to, is none; or the server refuses for good.
        OSError, http.client.HTTPException: another try may do; also while the answer is read.
    """
    url = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code not in (408, 429):
            raise DownloadError(f"the server answers {error.code} {error.reason}", where=url) from None
        raise
    except (http.client.InvalidURL, ValueError) as error:
        # ValueError: what urllib raises of addresses with half an IPv6 host, or names that DNS cannot hold.
        raise DownloadError(f"it is, or leads to, no address ({error})", where=url) from None


def request_of(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """The request of an address as people write it: letters beyond ASCII are put as addresses have them.

    Raises:
        DownloadError: it is no http address.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it has no host")
        place = parts.netloc.encode("ascii" if parts.netloc.isascii() else "idna").decode("ascii")
        rest = urllib.parse.quote(urllib.parse.urlunsplit(("", "", *parts[2:])), safe="%/:?#[]@!$&'()*+,;=~")
        return urllib.request.Request(f"{parts.scheme}://{place}{rest}", headers={"User-Agent": "slm-edge", **headers})
    except ValueError as error:
        raise DownloadError(f"is no address ({error})", where=url) from None


def download(url: str, dest: Path, *, size_bytes: int, sha256: str, advance: Advance, token: str | None = None) -> None:
    """Downloads `url` to `dest`.

    Args:
        dest: written whole by a rename; `dest` + ".part" holds what has come so far and stays on failure.
        size_bytes, sha256: what the file must be.
        advance: told of every byte, those already here included.
        token: sent as a bearer token to this address, not to where it redirects.

    Raises:
        DownloadError: the server cannot be reached or refuses.
        DoesNotFitError: the disk is full.
        DamagedError: the bytes are not the expected ones; they are removed.
    """
    part = part_of(dest)
    if part.exists() and part.stat().st_size > size_bytes:
        part.unlink()
    shown_bytes = 0
    for attempt in range(TRIES):
        have_bytes = part.stat().st_size if part.exists() else 0
        advance(have_bytes - shown_bytes)
        shown_bytes = have_bytes
        if have_bytes == size_bytes:
            break
        try:
            shown_bytes += _append(url, part, have_bytes, size_bytes, advance, token)
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and is_full(error):
                raise full_disk(error, dest, kept=part) from None
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            problem = "the connection ended early"
        if part.exists() and part.stat().st_size == size_bytes:
            break
        if attempt + 1 == TRIES:
            raise DownloadError(f"the download failed {TRIES} times: {problem}", where=url)
        time.sleep(min(2**attempt, 10) * 0.5)
    _finish(part, dest, sha256, url)


def _append(url: str, part: Path, have_bytes: int, size_bytes: int, advance: Advance, token: str | None) -> int:
    """Fetches the rest of a file; returns by how much the shown progress changed."""
    request = request_of(url, {"Range": f"bytes={have_bytes}-"} if have_bytes else {})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    moved = 0
    with opened(request) as answer:
        resumed = answer.status == 206
        if have_bytes and not resumed:
            advance(-have_bytes)
            moved -= have_bytes
            have_bytes = 0
        with part.open("ab" if resumed else "wb") as stream:
            while chunk := answer.read1(CHUNK_BYTES):
                if have_bytes + len(chunk) > size_bytes:
                    stream.close()
                    part.unlink()
                    raise DamagedError(f"the server sends more than the expected {size_bytes} bytes", where=url)
                stream.write(chunk)
                # What a killed process had in its buffers would be lost.
                stream.flush()
                have_bytes += len(chunk)
                moved += len(chunk)
                advance(len(chunk))
    return moved


def _finish(part: Path, dest: Path, sha256: str, url: str) -> None:
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    if found != sha256:
        part.unlink()
        raise DamagedError(
            f"the bytes are not the expected ones: sha256 {found}, not {sha256}; they were removed", where=url
        )
    os.replace(part, dest)
