"""Computed prefixes on disk, so that what every prompt of an adapter begins with is computed once per device.

    disk = PrefixDisk(Path("~/kv").expanduser(), domain="…", cap_bytes=512 << 20)
    snapshot = disk.load(tokens, chunks)        # None: not there, or damaged and removed
    disk.offer(snapshot)                        # kept in memory until `flush` writes it

One file per prefix, named by the hash of all that its bits depend on: magic, length of the header, header, keys and
values, BLAKE2b-256 of everything before. The header is compared byte for byte with what is looked for, never parsed.
Files are written aside and renamed under a lock; a process that finds the lock taken leaves the writing for later.
Nothing here fails an answer: what cannot be read is computed, what cannot be written is not kept, `fault` says why.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import SlmEdgeError
from ..files.atomic import atomic_file, locked, make_folder
from ..llama.kv_bytes import Blob, new_blob
from .chunks import Chunk, Snapshot

MAGIC: Final = b"SLMKV 1\n"
DIGEST_BYTES: Final = 32
SUFFIX: Final = ".kv"
LOCK: Final = ".lock"
# A prefix that is computed as fast as a file is opened earns none.
MIN_TOKENS: Final = 32


class PrefixDisk:
    """A folder of prefixes; several processes and several bases may share it.

    Args:
        folder: made if missing.
        domain: names everything but tokens, chunks and adapters that the bits depend on (`domain.py`).
        cap_bytes: what all files may hold together, those of other domains included; the oldest go first.
        most_bytes: there is no memory for a larger prefix: it is neither read nor written. None: for any.

    Attributes:
        n_restored, n_written: files used and made.
        fault: why the last read or write failed; None while all went well.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, domain: str, cap_bytes: int, most_bytes: int | None = None) -> None:
        self.folder = make_folder(folder)
        self.cap_bytes = cap_bytes
        self.most_bytes = cap_bytes if most_bytes is None else most_bytes
        self.n_restored = 0
        self.n_written = 0
        self.fault: str | None = None
        self._domain = domain
        self._waiting: dict[Path, Snapshot] = {}

    def _header(self, tokens: Sequence[int], chunks: Sequence[Chunk]) -> bytes:
        cut = [[end, state.adapters] for end, state in chunks]
        return json.dumps({"domain": self._domain, "tokens": list(tokens), "chunks": cut}).encode()

    def _path(self, header: bytes) -> Path:
        return self.folder / (hashlib.blake2b(header, digest_size=20).hexdigest() + SUFFIX)

    def load(
        self, tokens: list[int], chunks: list[Chunk], on_bytes: Callable[[int], object] = lambda n: None
    ) -> Snapshot | None:
        """The keys and values of exactly these tokens, computed like this; a damaged file is removed.

        Args:
            on_bytes: called with how much memory it will take, before it does.
        """
        header = self._header(tokens, chunks)
        path = self._path(header)
        if path in self._waiting:
            return self._waiting[path]
        try:
            with path.open("rb") as stream:
                size_bytes = os.fstat(stream.fileno()).st_size
                if self.most_bytes < size_bytes <= self.cap_bytes:
                    return None
                on_bytes(size_bytes)
                blob = _read(stream, header, self.cap_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.fault = f"{path}: {error.strerror}"
            return None
        except ValueError as error:
            self.fault = f"{path}: {error}; it is removed"
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        self.n_restored += 1
        return Snapshot(list(tokens), list(chunks), blob)

    def drop(self, snapshot: Snapshot) -> None:
        """Removes a prefix that could not be used."""
        path = self._path(self._header(snapshot.tokens, snapshot.chunks))
        self.fault = f"{path}: llama.cpp could not go on from it; it is removed"
        self._waiting.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink()

    def wants(self, tokens: Sequence[int], chunks: Sequence[Chunk], size_bytes: int = 0) -> bool:
        """Whether these would be worth a file: long enough, of bits that last, not there yet, and there is memory."""
        if len(tokens) < MIN_TOKENS or size_bytes > self.most_bytes or not all(state.lasting for _, state in chunks):
            return False
        path = self._path(self._header(tokens, chunks))
        return path not in self._waiting and not path.exists()

    def offer(self, snapshot: Snapshot) -> None:
        """Takes a snapshot to be written by the next `flush`."""
        self._waiting[self._path(self._header(snapshot.tokens, snapshot.chunks))] = snapshot

    def flush(self) -> None:
        """Writes what was offered. What another process's lock keeps from being written stays for the next time."""
        if not self._waiting:
            return
        try:
            with locked(self.folder / LOCK, wait=False):
                _remove_leftovers(self.folder)
                while self._waiting:
                    path, snapshot = self._waiting.popitem()
                    self._write(path, snapshot)
        except BlockingIOError:
            return
        except (OSError, SlmEdgeError) as error:
            # A full or read-only disk: what is waiting would only fill memory.
            self._waiting.clear()
            said = error.strerror if isinstance(error, OSError) else error.message
            self.fault = f"{self.folder}: a prefix could not be written ({said})"

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        header = self._header(snapshot.tokens, snapshot.chunks)
        parts = (MAGIC + len(header).to_bytes(8, "little") + header, snapshot.blob.data)
        size_bytes = sum(len(part) for part in parts) + DIGEST_BYTES
        if size_bytes > self.cap_bytes or path.exists():
            return
        _make_room(self.folder, self.cap_bytes - size_bytes)
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        with atomic_file(path) as aside, aside.open("wb") as stream:
            for part in parts:
                stream.write(part)
                digest.update(part)
            stream.write(digest.digest())
        self.n_written += 1


def _read(stream: BinaryIO, header: bytes, most_bytes: int) -> Blob:
    """The keys and values of a whole and undamaged file; ValueError says what is wrong."""
    head = MAGIC + len(header).to_bytes(8, "little") + header
    n_bytes = os.fstat(stream.fileno()).st_size - len(head) - DIGEST_BYTES
    if not 0 < n_bytes <= most_bytes or stream.read(len(head)) != head:
        raise ValueError("is not the prefix that its name says")
    blob = new_blob(n_bytes)
    digest = hashlib.blake2b(head, digest_size=DIGEST_BYTES)
    if stream.readinto(blob.data) != n_bytes:  # type: ignore[attr-defined]
        raise ValueError("is cut short")
    digest.update(blob.data)
    if stream.read() != digest.digest():
        raise ValueError("is damaged")
    return blob


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When last used, size in bytes and path of each prefix."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path


def _make_room(folder: Path, most_bytes: int) -> None:
    """Removes the files that were used longest ago until the rest hold at most `most_bytes`."""
    files = sorted(_files(folder))
    used_bytes = sum(size for _, size, _ in files)
    for _, size_bytes, path in files:
        if used_bytes <= most_bytes:
            return
        path.unlink(missing_ok=True)
        used_bytes -= size_bytes


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes were writing; called under the lock, when nobody else writes."""
    for path in folder.glob(f".*{SUFFIX}.*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
