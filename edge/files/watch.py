"""Notices that an open file was changed in place. Weights are mapped: what is cut off from them ends the process.

A file that is deleted, or replaced by renaming another onto it, stays as it was for those who have it open. A read of
what was cut off the system answers with SIGBUS, for which nothing in C can be undone: the instruction that read would
be run again. What can be done is to say what happened and to end, with the exit code of a damaged file.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final, Self

from ..errors import DamagedError


class FileWatch:
    """Holds a file open and compares its size and time with those at the beginning.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY)
        self._first = self._now()

    def _now(self) -> tuple[int, int]:
        stat = os.fstat(self._handle)
        return stat.st_size, stat.st_mtime_ns

    def check(self) -> None:
        """Raises DamagedError when the file was cut, grown or written to."""
        now = self._now()
        if now != self._first:
            raise DamagedError(
                f"was changed while it was in use ({self._first[0]} bytes before, {now[0]} now)",
                where=self._path,
                hint="put the file back (slm-edge pull fetches a base again), and open the session anew",
            )

    def close(self) -> None:
        """Closes the file. Calling it twice does nothing."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# DamagedError's
EXIT_CODE: Final = 5
_mapped: dict[str, int] = {}
_installed: Any = None


def expect_mapped(path: str | os.PathLike[str]) -> None:
    """Names a file that this process maps from now on, and sees to SIGBUS unless the program does so itself.

    The process ends in the handler, by whatever thread read; it runs no other code of Python's.
    """
    place = os.path.realpath(path)
    with contextlib.suppress(OSError):
        _mapped[place] = Path(place).stat().st_size
    _install()


def _install() -> None:
    global _installed
    if _installed is not None or sys.platform == "win32":
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
    # Not by Python's `signal`: its handlers wait for the interpreter, while the read is tried again and again.
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    if before:
        # Somebody else's, such as faulthandler's
        set_handler(signal.SIGBUS, before)
    _installed = handler


def _end(_: int) -> None:
    reason = "a mapped file was cut while it was in use"
    for path, size_bytes in _mapped.items():
        try:
            now_bytes = Path(path).stat().st_size
        except OSError:
            continue
        if now_bytes < size_bytes:
            reason = f"{path}: was cut from {size_bytes} to {now_bytes} bytes while it was in use"
    text = f"Error: {reason}\n  put the file back (slm-edge pull fetches a base again), and begin anew\n"
    os.write(2, text.encode("utf-8", errors="replace"))
    os._exit(EXIT_CODE)
