"""The user's store: what was pulled, under which names, and the links from one to the other.

    store = Store()
    with store.filling():                               # nothing is pruned meanwhile
        sha256 = store.take_bytes(b"...")               # a blob
        folder = store.add(Version(name, digest, "pack", files, origin))
        store.switch(name, lambda ref: ref.moved_to(digest))
    version, folder = store.find(name)

What lies in the store's folder:

    blobs/sha256/SHA256         every file once, read-only
    packs/NAME/DIGEST/          a version's files: hard links to blobs, else clones or copies
    packs/NAME/DIGEST.json      what is known of it (`version.py`)
    refs/NAME.json              the versions that a name stands for; one atomic write switches
    state/                      parts of downloads, locks, who uses what

A pack's folder lies whole and stays as it is until it is removed; a name switches from one to another.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ..console import Advance, note, silent
from ..errors import InputError, SlmEdgeError
from ..files.atomic import atomic_file, atomic_folder, locked, make_folder, write_json
from ..files.cache import store_folder
from ..files.read import read_table
from . import blobs
from .version import Ref, Version, as_table, check_stored_name, decoded, encoded, is_inside, read_ref, read_version


class Store:
    """A store in a folder; several processes may use it at once.

    Args:
        folder: None for the user's own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = store_folder() if folder is None else folder

    # Blobs

    def blob(self, sha256: str) -> Path:
        """Where the file with this sha256 is, or will be."""
        return self.folder / "blobs" / "sha256" / sha256

    def part(self, sha256: str) -> Path:
        """Where what has come so far of a blob is kept while it is downloaded."""
        return self.folder / "state" / "downloads" / f"{sha256}.part"

    def fetching(self, sha256: str, on_wait: Callable[[], object] | None = None) -> AbstractContextManager[None]:
        """The lock of who fetches a blob: of two at once the second waits, and finds it."""
        return locked(self._lock(f"blob-{sha256}"), on_wait)

    def take_bytes(self, data: bytes) -> str:
        """Keeps bytes as a blob; returns their sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        blob = self.blob(sha256)
        if not blob.exists():
            make_folder(blob.parent)
            with atomic_file(blob) as aside:
                aside.write_bytes(data)
                aside.chmod(blobs.READ_ONLY)
        return sha256

    def take_file(self, file: Path, sha256: str, *, ours: bool = False, advance: Advance = silent) -> Path:
        """Keeps a file as a blob, by a link where it can; see `blobs.take`. Returns the blob's path."""
        blobs.take(self.blob(sha256), file, sha256, ours=ours, advance=advance)
        return self.blob(sha256)

    # Versions

    def place(self, name: str, digest: str) -> Path:
        """The folder of a version."""
        return self.folder / "packs" / encoded(name) / digest

    def add(self, version: Version) -> Path:
        """Puts a version in place, from blobs that are here; returns its folder. One that is there is mended.

        Raises:
            InputError: its name, or one of a file, is none that the store takes; a blob is missing.
            DoesNotFitError: the disk is full.
        """
        check_stored_name(version.name)
        wrong = [path for path in version.files if not is_inside(path)]
        missing = [path for path, sha256 in version.files.items() if not self.blob(sha256).is_file()]
        if wrong or missing:
            problems = [f"{path!r} would leave its folder" for path in wrong]
            problems += [f"{path!r} is not in the store" for path in missing]
            raise InputError("cannot be put into the store", where=version.name, problems=problems)
        folder = self.place(version.name, version.digest)
        make_folder(folder.parent)
        with self._changing(version.name):
            if folder.is_dir():
                for path, sha256 in version.files.items():
                    blobs.mend(self.blob(sha256), folder / path, sha256)
            else:
                with atomic_folder(folder) as aside:
                    for path, sha256 in version.files.items():
                        blobs.place(self.blob(sha256), aside / path)
            write_json(self._record(version.name, version.digest), as_table(version))
        return folder

    def version(self, name: str, digest: str) -> Version | None:
        """What is known of a version; None if it is not here whole.

        Raises:
            DamagedError: what is known of it cannot be read.
        """
        record = self._record(name, digest)
        if not record.is_file() or not self.place(name, digest).is_dir():
            return None
        return read_version(read_table(record), record)

    def versions(self, name: str) -> list[Version]:
        """All versions of a name that are here."""
        digests = sorted(path.stem for path in (self.folder / "packs" / encoded(name)).glob("*.json"))
        return [version for digest in digests if (version := self.version(name, digest)) is not None]

    def version_of(self, folder: Path) -> Version | None:
        """The version whose folder this is; None for a folder that is not the store's."""
        with contextlib.suppress(OSError, SlmEdgeError):
            folder = folder.resolve()
            if folder.parent.parent == (self.folder / "packs").resolve():
                return self.version(decoded(folder.parent.name), folder.name)
        return None

    # Names

    def ref(self, name: str) -> Ref | None:
        """Which versions a name stands for; None if there is no such name.

        Raises:
            DamagedError: the file that says so cannot be read.
        """
        path = self._ref(name)
        return read_ref(read_table(path), path) if path.is_file() else None

    def names(self) -> list[str]:
        """All names, in order."""
        try:
            return sorted(decoded(path.stem) for path in (self.folder / "refs").glob("*.json"))
        except OSError:
            return []

    def switch(self, name: str, change: Callable[[Ref], Ref]) -> Ref:
        """Changes what a name stands for, by one atomic write; returns what it is now.

        Args:
            change: gets what it is (a new name stands for nothing), returns what it shall be; may raise.

        Raises:
            InputError: a version that it names is not here.
        """
        check_stored_name(name)
        with self._changing(name):
            before = self.ref(name) or Ref(name)
            after = change(before)
            for digest in after.kept - before.kept:
                if self.version(name, digest) is None:
                    raise InputError(f"there is no version {digest} in the store", where=name)
            if after != before or not self._ref(name).is_file():
                make_folder(self._ref(name).parent)
                write_json(self._ref(name), as_table(after))
            return after

    def find(self, name: str) -> tuple[Version, Path] | None:
        """The current version of a name and its folder; None if there is none.

        Raises:
            DamagedError: what the store says of it cannot be read.
        """
        if not self._ref(name).is_file():
            return None
        ref = self.ref(name)
        version = self.version(name, ref.current) if ref is not None and ref.current is not None else None
        return None if version is None else (version, self.place(name, version.digest))

    def forget(self, name: str) -> None:
        """Removes a name; its versions and blobs go with the next `prune`."""
        with self._changing(name):
            self._ref(name).unlink(missing_ok=True)

    def remove_version(self, name: str, digest: str) -> None:
        """Removes a version's folder: first what says that it is whole, then its files. Blobs stay."""
        with self._changing(name):
            self._record(name, digest).unlink(missing_ok=True)
            folder = self.place(name, digest)
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    # Who is at work

    def filling(self) -> AbstractContextManager[None]:
        """While something is put together in the store: nothing is pruned. Several may at once."""
        return locked(self._lock("store"), lambda: note("waiting until the store is cleaned …"), shared=True)

    @contextlib.contextmanager
    def alone(self, *, wait: bool = True) -> Iterator[None]:
        """While things are removed; BlockingIOError without `wait` if somebody fills the store."""
        with locked(self._lock("store"), lambda: note("waiting until a pull ends …"), wait=wait):
            yield

    def _changing(self, name: str) -> AbstractContextManager[None]:
        return locked(self._lock(f"name-{encoded(name)}"))

    def _lock(self, what: str) -> Path:
        return self.folder / "state" / "locks" / f"{what}.lock"

    def _ref(self, name: str) -> Path:
        return self.folder / "refs" / f"{encoded(name)}.json"

    def _record(self, name: str, digest: str) -> Path:
        return self.folder / "packs" / encoded(name) / f"{digest}.json"


def size_bytes(path: Path) -> int:
    """Of a file, or of all files below a folder; links are not followed."""
    if path.is_file():
        return path.stat().st_size
    return sum((Path(folder) / file).lstat().st_size for folder, _, files in os.walk(path) for file in files)
