"""A file over HTTP, resumed where it broke off, checked by its sha256.

The part that is here is kept beside what is known of it (`NAME.part.json`: address, ETag, size). A server that honours
Range goes on with it, if the file there is still the same (If-Range); another starts over. A connection that breaks
again and again is no failure while it brings something.
"""

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
from pathlib import Path
from typing import Any, Final

from ..console import Advance, note
from ..errors import DamagedError, SlmEdgeError, is_full
from .aside import full_disk, require_room
from .atomic import make_folder, sync_folder, write_json
from .read import CHUNK_BYTES, read_table
from .web import Access, DownloadError, opened, request_of, wait_s

# Tries in a row in which nothing moved
TRIES: Final = 5
LEAST_PROGRESS_BYTES: Final = 64 << 10
# A server that sends less than so many bytes in such a time is left, and asked anew.
_SLOWEST_BYTES, _SLOWEST_S = 16 << 10, 60
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def download(
    url: str,
    dest: Path,
    *,
    part: Path,
    sha256: str,
    access: Access,
    advance: Advance,
    size_bytes: int | None = None,
    token: str | None = None,
) -> None:
    """Downloads `url` to `dest`.

    Args:
        dest: written whole by a rename.
        part: on the same disk; holds what has come so far, and stays on failure. The caller holds a lock on it.
        sha256, size_bytes: what the file must be; None where the size is known to the server alone.
        advance: told of every byte, those already here included.
        token: sent as a bearer token to this address, not to where it redirects.

    Raises:
        DownloadError: the server cannot be reached or refuses.
        DoesNotFitError: the disk is full.
        DamagedError: the bytes are not the expected ones; they are removed.
    """
    make_folder(part.parent)
    coming = _Coming(url, dest, part, size_bytes, access, advance, token)
    try:
        began_bytes = coming.have_bytes
        coming.fetch()
        if coming.sha256() != sha256 and began_bytes:
            note(f"what had come of {dest.name} earlier is damaged; it is fetched anew")
            coming.restart()
            coming.fetch()
        found = coming.sha256()
        if found == sha256:
            coming.finish()
            return
        coming.discard()
        raise DamagedError(
            f"the bytes are not the expected ones: sha256 {found}, not {sha256}; they were removed", where=url
        )
    except OSError as error:
        if not is_full(error):
            raise
        raise full_disk(error, dest, kept=part) from None
    finally:
        coming.close()


class _Coming:
    """A file on its way: the part that is here, its hash, and what the server said of the whole."""

    def __init__(
        self,
        url: str,
        dest: Path,
        part: Path,
        size_bytes: int | None,
        access: Access,
        advance: Advance,
        token: str | None,
    ) -> None:
        self._url, self._dest, self._part = url, dest, part
        self._wanted_bytes, self._total_bytes = size_bytes, size_bytes
        self._access, self._advance, self._token = access, advance, token
        self._about = part.with_name(part.name + ".json")
        self._etag = ""
        self._stream: Any = part.open("a+b", buffering=0)
        self._digest = hashlib.sha256()
        self.have_bytes = 0
        if size_bytes is not None and os.fstat(self._stream.fileno()).st_size > size_bytes:
            self.restart()
        # The hash goes on from the part's bytes as they are on the disk, whoever wrote them.
        self._stream.seek(0)
        while chunk := self._stream.read(CHUNK_BYTES):
            self._digest.update(chunk)
            self.have_bytes += len(chunk)
        advance(self.have_bytes)
        with contextlib.suppress(SlmEdgeError):
            about = read_table(self._about)
            if about.get("url") == url and self.have_bytes:
                self._etag = str(about.get("etag", ""))

    def fetch(self) -> None:
        """Fetches the rest; errors as `download`, and OSError of a full disk."""
        most_bytes, quiet = self.have_bytes, 0
        while not self._is_whole():
            pause_s = 0.5 * min(2**quiet, 20)
            try:
                self._append()
                problem = "the connection ended early"
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}"
                if error.code == 416:
                    # What is here is longer than the file there.
                    self.restart()
                pause_s = wait_s(error, pause_s)
                if error.code == 429 and pause_s > 5:
                    note(f"the server asks to wait {pause_s:.0f} s …")
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and is_full(error):
                    raise
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if self._is_whole():
                return
            moved = self.have_bytes - most_bytes >= LEAST_PROGRESS_BYTES
            most_bytes = max(most_bytes, self.have_bytes)
            quiet = 0 if moved else quiet + 1
            if quiet == TRIES:
                raise DownloadError(f"the download failed {TRIES} times: {problem}", where=self._url)
            time.sleep(0.05 if moved else pause_s)

    def _is_whole(self) -> bool:
        return self._total_bytes is not None and self.have_bytes == self._total_bytes

    def _append(self) -> None:
        """Asks for the rest, and keeps what comes of it."""
        headers = {}
        if self.have_bytes:
            headers = {"Range": f"bytes={self.have_bytes}-"} | ({"If-Range": self._etag} if self._etag else {})
        with opened(request_of(self._url, headers, self._access, self._token), self._access) as answer:
            self._begin(answer)
            began_s, began_bytes = time.monotonic(), self.have_bytes
            while chunk := answer.read1(CHUNK_BYTES):
                if self._total_bytes is not None and self.have_bytes + len(chunk) > self._total_bytes:
                    self.discard()
                    raise DamagedError(
                        f"the server sends more than the expected {self._total_bytes} bytes", where=self._url
                    )
                self._write(chunk)
                if time.monotonic() - began_s > _SLOWEST_S:
                    if self.have_bytes - began_bytes < _SLOWEST_BYTES:
                        raise TimeoutError("the server sends next to nothing")
                    began_s, began_bytes = time.monotonic(), self.have_bytes
            if self._total_bytes is None:
                # It said no length: what ended is taken for whole, and the hash decides.
                self._total_bytes = self.have_bytes

    def _begin(self, answer: Any) -> None:
        """Takes what the server says of the file; a part that it does not go on with is dropped."""
        length = answer.headers.get("Content-Length", "")
        total_bytes = int(length) if length.isdigit() else None
        if answer.status == 206:
            found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != self.have_bytes:
                self.restart()
                raise http.client.HTTPException("the server answers with another range than was asked")
            total_bytes = int(found[2]) if found[2] != "*" else None
        elif self.have_bytes:
            self.restart()
        if self._wanted_bytes is None:
            self._total_bytes = total_bytes
            if total_bytes is not None:
                require_room(self._part.parent, total_bytes - self.have_bytes, f"for {self._dest.name}")
        elif total_bytes is not None and total_bytes != self._wanted_bytes:
            raise DownloadError(f"the file there has {total_bytes} bytes, not {self._wanted_bytes}", where=self._url)
        etag = str(answer.headers.get("ETag") or "")
        etag = etag if etag.startswith('"') else ""
        if etag != self._etag or not self._about.exists():
            self._etag = etag
            write_json(self._about, {"url": self._url, "etag": etag, "size_bytes": self._total_bytes})

    def _write(self, chunk: bytes) -> None:
        """Nothing is buffered: what a killed process had in its memory would be lost."""
        rest = memoryview(chunk)
        while rest:
            n_bytes = self._stream.write(rest)
            self._digest.update(rest[:n_bytes])
            self.have_bytes += n_bytes
            self._advance(n_bytes)
            rest = rest[n_bytes:]

    def sha256(self) -> str:
        """Of what is here."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Drops what is here."""
        self._stream.truncate(0)
        self._advance(-self.have_bytes)
        self.have_bytes, self._digest, self._etag = 0, hashlib.sha256(), ""

    def finish(self) -> None:
        """The part becomes the file."""
        os.fsync(self._stream.fileno())
        self._stream.close()
        os.replace(self._part, self._dest)
        sync_folder(self._dest.absolute().parent)
        self._about.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the part."""
        self._stream.close()
        self._part.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves the part as it is; one without bytes goes."""
        if not self._stream.closed:
            empty = os.fstat(self._stream.fileno()).st_size == 0
            self.discard() if empty else self._stream.close()
