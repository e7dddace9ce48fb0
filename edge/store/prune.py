"""Removes what nobody needs: names that were let go, versions that no name stands for, blobs that no version links.

    prune(store, lambda: unneeded(store, is_needed_by))     # what went, and how many bytes that freed

What a process uses, what a name keeps (current, previous, trial) and the bases of packs elsewhere on this disk stay.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import SlmEdgeError
from ..files.aside import remove_leftovers_below
from .store import Store, size_bytes
from .uses import Use, forget_uses, uses_of
from .version import Version, decoded, is_sha256

# Parts of downloads that nobody has gone on with for so long are given up.
PART_DAYS: Final = 7


@dataclass(frozen=True)
class Unneeded:
    """What may go.

    Attributes:
        versions: (name, digest).
        blobs, parts: files.
        freed_bytes: what that frees on the disk.
    """

    versions: tuple[tuple[str, str], ...]
    blobs: tuple[str, ...]
    parts: tuple[Path, ...]
    freed_bytes: int


def needed_versions(store: Store) -> list[Version]:
    """The versions that a name stands for, or that a process uses."""
    found = []
    for folder in sorted((store.folder / "packs").glob("*")):
        name = decoded(folder.name)
        ref = store.ref(name)
        for version in store.versions(name):
            held = any(use.running for use in uses_of(store, version.digest))
            if held or (ref is not None and version.digest in ref.kept):
                found.append(version)
    return found


def unneeded(
    store: Store, is_needed_by: Callable[[str, Use], bool], also: Iterable[str] = (), days: int = PART_DAYS
) -> Unneeded:
    """What may go.

    Args:
        is_needed_by: whether who used a blob once (its sha256, and the use) still needs it; asked where none runs.
        also: further sha256 that stay.
        days: so old a part of a download is given up; 0 for all of them.

    Raises:
        DamagedError: a name cannot be read: then nobody knows what it needs.
    """
    kept = needed_versions(store)
    keys = {(version.name, version.digest) for version in kept}
    all_versions = [
        (decoded(place.parent.name), place.name)
        for place in sorted((store.folder / "packs").glob("*/*"))
        if place.is_dir() and is_sha256(place.name)
    ]
    gone = tuple(row for row in all_versions if row not in keys)
    needed = {sha256 for version in kept for sha256 in version.blobs} | set(also)
    blobs = []
    for path in sorted((store.folder / "blobs" / "sha256").glob("*")):
        if not is_sha256(path.name) or path.name in needed:
            continue
        uses = uses_of(store, path.name)
        if not any(use.running or is_needed_by(path.name, use) for use in uses):
            blobs.append(path)
    parts = [path for path in sorted((store.folder / "state" / "downloads").glob("*.part")) if _is_old(path, days)]
    # A blob that is linked elsewhere, as from another program's cache, frees nothing.
    links_below = _links_in(store, gone)
    alone = [path for path in blobs if path.stat().st_nlink - 1 <= links_below.get(_inode(path), 0)]
    freed_bytes = sum(path.stat().st_size for path in alone)
    freed_bytes += sum(size_bytes(path) for path in parts)
    return Unneeded(gone, tuple(path.name for path in blobs), tuple(parts), freed_bytes)


def prune(store: Store, plan: Callable[[], Unneeded], *, wait: bool = True) -> Unneeded:
    """Removes what a plan, made while nobody else changes the store, says; returns it.

    Raises:
        BlockingIOError: without `wait`: somebody fills the store.
    """
    with store.alone(wait=wait):
        gone = plan()
        for name, digest in gone.versions:
            store.remove_version(name, digest)
            forget_uses(store, digest)
        for sha256 in gone.blobs:
            store.blob(sha256).unlink(missing_ok=True)
            forget_uses(store, sha256)
        for part in gone.parts:
            part.unlink(missing_ok=True)
            part.with_name(part.name + ".json").unlink(missing_ok=True)
        with contextlib.suppress(OSError, SlmEdgeError):
            remove_leftovers_below(store.folder)
        return gone


def _is_old(path: Path, days: int) -> bool:
    return time.time() - path.stat().st_mtime >= days * 86400


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _links_in(store: Store, versions: Iterable[tuple[str, str]]) -> dict[tuple[int, int], int]:
    """inode -> how many of its links lie in these versions."""
    counts: dict[tuple[int, int], int] = {}
    for name, digest in versions:
        for folder, _, files in os.walk(store.place(name, digest)):
            for file in files:
                inode = _inode(Path(folder) / file)
                counts[inode] = counts.get(inode, 0) + 1
    return counts
