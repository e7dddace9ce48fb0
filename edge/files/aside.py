"""Temporary folders beside what is being written, and the end of those that killed processes left.

with folder_beside(Path("out.gguf")) as folder:
    ...                             # .out.gguf.k3j2h1g0.aside/, removed when the block ends

A process holds a lock on its folder while it lives; however it ends, the kernel releases it. Whoever writes to the
same place next removes the folders that nobody holds. Where folders cannot be locked (Windows, some network file
systems) they stay until someone removes them.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import DoesNotFitError, InputError, is_full
from ..written import human_bytes

SUFFIX: Final = ".aside"
_OURS: Final = re.compile(rf"\.(.*)\.[a-z0-9_]{{8}}{re.escape(SUFFIX)}", re.DOTALL)
# Of a name; file systems hold 255 bytes, and ours has 17 more.
MOST_NAME_BYTES: Final = 200
# Put behind a folder's name while it is replaced, where it cannot be exchanged in one step.
REPLACED: Final = ".replaced"


@contextlib.contextmanager
def folder_beside(dest: Path) -> Iterator[Path]:
    """An empty folder beside `dest`, removed when the block ends; what killed processes left there is removed first.

    Raises:
        DoesNotFitError: the block found the disk full.
        InputError: no folder can be made there.
    """
    remove_leftovers(dest)
    try:
        folder, handle = _new_folder(dest)
    except OSError as error:
        if is_full(error):
            raise full_disk(error, dest) from None
        raise InputError(f"cannot be written ({error.strerror})", where=dest) from None
    try:
        yield folder
    except OSError as error:
        if not is_full(error):
            raise
        raise full_disk(error, dest) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def require_room(folder: Path, needed_bytes: int, what: str, hint: str | None = None) -> None:
    """Raises DoesNotFitError, with the numbers, where a folder's disk has less free than is needed `what` for."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise DoesNotFitError(
            f"{human_bytes(needed_bytes)} are needed {what}, {human_bytes(free_bytes)} are free",
            where=folder,
            hint=hint,
        )


def full_disk(error: OSError, dest: Path, *, kept: Path | None = None) -> DoesNotFitError:
    """The message for an error that `is_full`.

    Args:
        dest: what was to be written.
        kept: the part of it that stays, to be continued.
    """
    # A file of a folder that is being made: people know the folder.
    for above in dest.absolute().parents:
        if found := _OURS.fullmatch(above.name):
            dest = above.parent / found[1]
    parent = dest.absolute().parent
    free = f"; {human_bytes(shutil.disk_usage(parent).free)} are free there now" if parent.is_dir() else ""
    left = "nothing of it is left" if kept is None else f"what has come stays as {kept.name}, to go on from"
    return DoesNotFitError(
        f"cannot be written ({error.strerror or 'no room'}); {left}",
        where=dest,
        hint=f"make room, or write to another disk{free}",
    )


def remove_leftovers(dest: Path) -> None:
    """Removes what killed processes were writing to `dest`, and puts back what one of them was about to replace."""

    def is_of_dest(name: str) -> bool:
        found = _OURS.fullmatch(name)
        return found is not None and found[1] == _called(dest)

    try:
        with os.scandir(dest.absolute().parent) as entries:
            found = [Path(entry.path) for entry in entries if is_of_dest(entry.name)]
    except OSError:
        return
    for folder in found:
        try:
            handle = _lock(folder)
        except OSError:
            continue
        if handle is None:
            continue
        with contextlib.suppress(OSError):
            old = folder / (dest.name + REPLACED)
            if old.is_dir() and not dest.exists():
                os.rename(old, dest)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def remove_leftovers_below(top: Path) -> None:
    """Removes what killed processes were writing anywhere in a folder."""
    for folder, names, _ in os.walk(top):
        for name in names:
            if found := _OURS.fullmatch(name):
                remove_leftovers(Path(folder) / found[1])


def _called(dest: Path) -> str:
    """What the folder beside `dest` is called after: its name, shortened where there is no room for ours beside it."""
    name = os.fsencode(dest.name)
    return dest.name if len(name) <= MOST_NAME_BYTES else hashlib.sha256(name).hexdigest()


def _new_folder(dest: Path) -> tuple[Path, int | None]:
    """The folder and its lock; None if it cannot be locked."""
    while True:
        made = tempfile.mkdtemp(prefix=f".{_called(dest)}.", suffix=SUFFIX, dir=dest.absolute().parent)
        folder = Path(made)
        # Until it is locked another process may take it for a dead one's, and remove it.
        try:
            handle = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue
        except OSError:
            return folder, None
        if folder.exists():
            return folder, handle
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Locks a folder: the handle to close. None if folders have no locks.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: it cannot be opened or locked.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def exchange(new: Path, old: Path) -> bool:
    """Exchanges two paths in one step; returns False if the system or file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    at_cwd, flag_exchange = -100, 2
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), flag_exchange) == 0
