"""Opens files that a user, a pack or a checkpoint names: regular ones, of a size that makes sense.

    with open_regular("base.gguf") as stream:
        head = stream.read(4)

A FIFO or a terminal would be waited on for ever, a device read without end, and a file with holes is as long as it
likes to be.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from ..errors import DamagedError, InputError

# Of a file that is mostly holes, at least this share is there; others are as they were made by hand.
_LEAST_WRITTEN: Final = 1 / 16
_SMALL_BYTES: Final = 1 << 20
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str], *, whole: bool = False) -> BinaryIO:
    """Opens a file for reading bytes.

    Args:
        whole: refuse a file that is nearly all holes.

    Raises:
        InputError: there is no such file, it cannot be read, or it is a folder, FIFO, device or socket.
        DamagedError: it is nearly all holes.
    """
    path = Path(path)
    try:
        # Before it is opened: that alone rewinds a tape.
        _check_kind(path.stat().st_mode, path)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    except ValueError as error:
        raise InputError(f"is no name of a file ({error})", where=repr(str(path))) from None
    try:
        found = os.fstat(handle)
        # It may be another one by now.
        _check_kind(found.st_mode, path)
        if whole and _is_hollow(handle, found):
            raise DamagedError(
                f"has {found.st_size} bytes, but only {found.st_blocks * 512} were ever written",
                where=path,
                hint="copy or download it again",
            )
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_kind(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no file")
        raise InputError(f"is {kind}; a regular file is needed", where=path)


def _is_hollow(handle: int, found: os.stat_result) -> bool:
    if found.st_size <= _SMALL_BYTES or not hasattr(os, "SEEK_HOLE"):
        return False
    if found.st_blocks * 512 >= found.st_size * _LEAST_WRITTEN:
        return False
    # A file system that counts blocks in its own way, by compressing them for example, knows of no hole.
    return os.lseek(handle, 0, os.SEEK_HOLE) < found.st_size and os.lseek(handle, 0, os.SEEK_SET) == 0
