"""Zip archives that anyone may have written: what does not read as one is a DamagedError, whatever raised.

with open_archive(path) as archive, archive.member(name) as chunks: ...
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import DamagedError, InputError

# Members are read in pieces of this size: what one claims to unpack to is not believed.
PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def reading(path: Path, what: str = "is not a whole zip archive", hint: str | None = None) -> Iterator[None]:
    """Turns whatever zipfile and the decompressors raise while they read `path` into one error.

    That is BadZipFile, RuntimeError (encrypted), NotImplementedError (method), zlib.error, LZMAError, EOFError, OSError
    without a number (bz2), ValueError and OverflowError (offsets), struct.error and more: so all are meant.

    Raises:
        DamagedError: the bytes are no such archive.
        InputError: the operating system cannot read the file.
    """
    try:
        yield
    except (InputError, DamagedError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes lead these libraries to
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise InputError(f"cannot be read ({error.strerror})", where=path) from None
        reason = str(error) or type(error).__name__
        raise DamagedError(f"{what} ({reason[:200]})", where=path, hint=hint) from None


def pieces(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """A member's bytes, piece by piece; errors as `reading`."""
    while True:
        with reading(path):
            piece = stream.read(PIECE_BYTES)
        if not piece:
            return
        yield piece


def entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name; ValueError where two have one name."""
    found = {entry.filename: entry for entry in archive.infolist()}
    if len(found) < len(archive.infolist()):
        raise ValueError("two members have the same name")
    return found
