"""Writing files so that nothing half-written is ever seen, and locking.

with atomic_file("out.gguf") as aside:
    aside.write_bytes(b"...")       # `out.gguf` appears whole when the block ends, or not at all

A killed process leaves `.out.gguf.XXXXXXXX.aside/`; the next one that writes `out.gguf` removes it (`aside.py`).
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .read import CHUNK_BYTES, is_text, open_regular


def sync_folder(folder: Path) -> None:
    """Makes what was renamed in a folder last, also when the power fails."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _parent_of(dest: Path) -> Path:
    parent = dest.absolute().parent
    if not parent.is_dir():
        raise InputError("the folder to write into does not exist", where=parent, hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK):
        raise InputError("the folder cannot be written to", where=parent)
    return parent


def check_new(dest: Path, force: bool) -> None:
    """What commands with `--force` ask before they begin: InputError if something is there that must stay."""
    if dest.exists() and not force:
        raise InputError("exists already", where=dest, hint="choose another name, or replace it with --force")


@contextlib.contextmanager
def atomic_file(dest: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path beside `dest` to write to; on success it is synced and renamed to `dest`.

    On any exception, Ctrl-C included, the path is removed and `dest` stays as it was.

    Raises:
        InputError: the folder of `dest` does not exist or cannot be written to, or `dest` is a folder.
        DoesNotFitError: the disk is full.
    """
    dest = Path(dest)
    parent = _parent_of(dest)
    if dest.exists() and not dest.is_file():
        kind = "a folder" if dest.is_dir() else "not a plain file"
        raise InputError(f"is {kind}; a file is to be written there", where=dest)
    from .aside import folder_beside

    with folder_beside(dest) as folder:
        aside = folder / dest.name
        yield aside
        if not aside.exists():
            return
        _sync_file(aside)
        os.replace(aside, dest)
        sync_folder(parent)


@contextlib.contextmanager
def atomic_folder(dest: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `dest` to fill; on success every file is synced and it is renamed to `dest`.

    Args:
        dest: the folder to make.
        replace: an existing `dest` is replaced, in one step where the file system can.

    Raises:
        InputError: `dest` exists and `replace` is not set, or its parent cannot be written to.
        DoesNotFitError: the disk is full.
    """
    dest = Path(dest)
    parent = _parent_of(dest)
    from .aside import REPLACED, exchange, folder_beside

    with folder_beside(dest) as folder:
        if dest.exists() and not replace and (not dest.is_dir() or any(dest.iterdir())):
            raise InputError("exists already", where=dest, hint="choose another place, or remove it first")
        aside = folder / dest.name
        aside.mkdir()
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_file():
                _sync_file(path)
        if not (dest.exists() and exchange(aside, dest)):
            if dest.exists():
                os.rename(dest, folder / (dest.name + REPLACED))
            os.rename(aside, dest)
        sync_folder(parent)


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Writes `data` as indented UTF-8 JSON, atomically. NaN and infinity are refused; lone surrogates are escaped."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    if not is_text(text):
        text = json.dumps(data, indent=2, allow_nan=False)
    with atomic_file(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Makes `folder` and its parents if missing.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made ({error.strerror})", where=folder) from None
    return folder


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str],
    on_wait: Callable[[], object] | None = None,
    *,
    wait: bool = True,
    shared: bool = False,
) -> Iterator[None]:
    """Holds a lock on the file `path` (made if missing); waits until another holder releases it.

    Args:
        path: the lock file; it stays there, empty.
        on_wait: called once when another process holds the lock.
        wait: else BlockingIOError is raised where another process holds it.
        shared: others may hold it shared as well; where the system has no such locks (Windows) it is held by one.

    Raises:
        InputError: the file cannot be made or opened.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        lock = path.open("a+b")
    except OSError as error:
        raise InputError(f"cannot be locked ({error.strerror})", where=path) from None
    with lock as stream:
        if sys.platform == "win32":
            import msvcrt

            try:
                msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except PermissionError as error:
                raise BlockingIOError(*error.args) from None
        else:
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(stream, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if on_wait is not None:
                    on_wait()
                fcntl.flock(stream, kind)
        yield


def copy_file(source: Path, dest: Path, on_bytes: Callable[[int], object] | None = None) -> None:
    """Copies bytes from `source` to `dest`, telling `on_bytes` of each chunk."""
    with open_regular(source) as reader, dest.open("wb") as writer:
        if on_bytes is None:
            shutil.copyfileobj(reader, writer, CHUNK_BYTES)
            return
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            on_bytes(len(chunk))
