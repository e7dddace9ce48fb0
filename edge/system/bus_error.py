"""Ends the process with a reason where a mapped file was cut while it was being read.

The system answers such a read with SIGBUS, for which nothing in C can be undone: the instruction that read would be
run again. What can be done is to say what happened and to end, with the exit code of a damaged file.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

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
