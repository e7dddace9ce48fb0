"""Files by their sha256: each once, read-only, put together from what is here already before anything is fetched.

place_copy(source, dest)    # a reflink where the file system has them, else a hard link, else a copy
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from ..console import Advance, silent
from ..errors import DamagedError
from ..files.atomic import atomic_file, copy_file, make_folder
from ..files.read import sha256_file

READ_ONLY: Final = 0o444
_FICLONE: Final = 0x40049409


def take(blob: Path, file: Path, sha256: str, *, ours: bool, advance: Advance = silent) -> None:
    """Puts a file into the store as the blob with this sha256; nothing is done if it is there.

    Args:
        ours: nobody else writes to the file, so a link to it will do; else one is made only where it cannot be cloned,
            and its mode stays as its owner set it.

    Raises:
        DamagedError: the file has another sha256.
        DoesNotFitError: the disk is full.
    """
    if blob.exists():
        return
    make_folder(blob.parent)
    with atomic_file(blob) as aside:
        linked = _place(file, aside, clone_first=not ours)
        found = sha256_file(aside, advance)
        if found != sha256:
            raise DamagedError(f"has the sha256 {found}, not {sha256}", where=file)
        if ours or not linked:
            aside.chmod(READ_ONLY)


def place(blob: Path, dest: Path) -> None:
    """Makes a blob's file at `dest`: a hard link, which shares its bytes, where that can be; else a clone or a copy."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if not _place(blob, dest, clone_first=False):
        dest.chmod(READ_ONLY)


def mend(blob: Path, dest: Path, sha256: str) -> None:
    """Places a blob anew where its file is missing or damaged."""
    with contextlib.suppress(OSError):
        if dest.samefile(blob) or sha256_file(dest) == sha256:
            return
    dest.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(dest) as aside:
        place(blob, aside)


def _place(source: Path, dest: Path, *, clone_first: bool) -> bool:
    """Whether `dest` is a hard link now; else it is a file of its own."""
    if clone_first and _cloned(source, dest):
        return False
    # Of links to files that are not the user's, the kernel refuses some.
    with contextlib.suppress(OSError):
        os.link(source.resolve(), dest, follow_symlinks=False)
        return True
    if not _cloned(source, dest):
        copy_file(source, dest)
    return False


def _cloned(source: Path, dest: Path) -> bool:
    """Whether the file system made a copy that shares its blocks (btrfs, XFS, bcachefs)."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as reader, dest.open("xb") as writer:
            fcntl.ioctl(writer, _FICLONE, reader.fileno())
            return True
    except OSError:
        with contextlib.suppress(OSError):
            dest.unlink(missing_ok=True)
        return False
