"""Reads, hashes and watches files that anyone may have written: each is refused by one message, or read rightly.

    with open_regular("base.gguf") as stream: ...   # no folder, FIFO, device, nor a file that is all holes
    read_text(path)                     # UTF-8, without the byte-order mark that editors of Windows put first
    parse_json(text, path)              # deep nesting, numbers without end, a Git LFS pointer: InputError
    for number, row in json_rows(path): # JSON Lines, gzipped or not, cut at LF only
    with FileWatch(path) as watch: ...  # `watch.check()`: was it changed in place since?

A FIFO or a terminal would be waited on for ever, a device read without end, and a file with holes is as long as it
likes to be. JSON may hold raw U+2028, U+0085 and form feeds in its texts, where `str.splitlines` cuts.

A file that is deleted, or replaced by renaming another onto it, stays as it was for those who have it open. Weights are
mapped: a read of what was cut off them the system answers with SIGBUS, for which nothing in C can be undone, as the
instruction that read would be run again. What can be done is to say what happened and to end (`expect_mapped`).
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Self, TypeGuard, cast

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


BOM: Final = "\ufeff"
LFS_START: Final = b"version https://git-lfs.github.com/spec/"
LFS_HINT: Final = "run `git lfs pull` where the file comes from, or download it"
# Of a whole number in JSON: transformers writes 10**30 for "no limit", a float holds 10**308
MOST_DIGITS: Final = 300
MOST_BYTES: Final = 1 << 30
MOST_LEVELS: Final = 200
CHUNK_BYTES: Final = 1 << 20
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a text that has a UTF-8 form: halves of surrogate pairs, which JSON can escape, have none."""
    return isinstance(value, str) and _SURROGATE.search(value) is None


def is_lfs_pointer(data: bytes) -> bool:
    """Whether a file that begins so is Git LFS's pointer to another."""
    return data.startswith(LFS_START)


def read_bytes(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: as `open_regular`, or it is too large, or a Git LFS pointer.
    """
    path = Path(path)
    with open_regular(path) as stream:
        try:
            data = _at_most(stream, most_bytes + 1)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    if len(data) > most_bytes:
        raise InputError(f"is too large ({most_bytes} bytes at most)", where=path)
    if is_lfs_pointer(data):
        raise InputError("is a Git LFS pointer, not the file itself", where=path, hint=LFS_HINT)
    return data


def _at_most(stream: IO[bytes], most_bytes: int) -> bytes:
    """What a stream has, up to so many bytes, by parts: `read(n)` takes n bytes of memory whatever there is."""
    parts: list[bytes] = []
    left = most_bytes
    while left > 0 and (part := stream.read(min(left, CHUNK_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def read_text(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte-order mark; errors as `read_bytes`, and InputError for other bytes."""
    return decode(read_bytes(path, most_bytes), path)


def decode(data: bytes, where: str | os.PathLike[str]) -> str:
    """UTF-8 text without a byte-order mark; InputError with the line where it is none."""
    try:
        return data.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"is not UTF-8 text (line {line}, byte {error.start})",
            where=where,
            hint="save it as UTF-8",
        ) from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, cut at LF only; CR before it belongs to the line's end."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def loads_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError alone, also for what is nested too deep or too long a number."""
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_LEVELS):
        inner = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return value
    # It could not be shown or written again: that recurses too.
    raise ValueError("it is nested too deep")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parse_json(text: str, where: str | os.PathLike[str], part: str = "") -> Any:
    """The value of a JSON text; InputError where it is none.

    Args:
        part: of the file, such as "line 3 ".
    """
    try:
        return loads_json(text.removeprefix(BOM))
    except ValueError as error:
        raise InputError(f"{part}is not valid JSON ({error})", where=where) from None


def json_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON Lines, or of a JSON file that holds one list, each with its number from 1.

    In JSON Lines the number is the line's. `.gz` files are unpacked.

    Raises:
        InputError: it cannot be read, or a line is no JSON.
    """
    path = Path(path)
    data = read_bytes(path)
    if path.name.endswith(".gz"):
        # Imported where it is used: every command reads JSON, few read this.
        import gzip
        import io
        import zlib

        try:
            data = _at_most(cast(IO[bytes], gzip.GzipFile(fileobj=io.BytesIO(data))), MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"is not a whole gzip file ({error})", where=path) from None
        if len(data) > MOST_BYTES:
            raise InputError(f"unpacks to more than {MOST_BYTES} bytes", where=path)
    text = decode(data, path)
    if text.lstrip().startswith("["):
        rows = parse_json(text, path)
        yield from enumerate(rows, 1)
        return
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            yield number, parse_json(line, path, f"line {number} ")


def sha256_file(path: str | os.PathLike[str], on_bytes: Callable[[int], object] | None = None) -> str:
    """The sha256 of a file as hex; `on_bytes` is called with each chunk's length, for a progress bar."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """sha256 of what JSON can say, whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: it is not there, no UTF-8 JSON, nested too deep, or holds a number without end.
    """
    return parse_json(read_text(path), path)


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON file that holds an object; errors as `read_json`, and InputError where it holds something else."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError("holds no JSON object", where=path)
    return data


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
        found = os.fstat(self._handle)
        return found.st_size, found.st_mtime_ns

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


_mapped: dict[str, int] = {}
_cut_handler: Any = None


def expect_mapped(path: str | os.PathLike[str]) -> None:
    """Names a file that this process maps from now on, and sees to SIGBUS unless the program does so itself.

    The process ends in the handler, by whatever thread read; it runs no other code of Python's.
    """
    place = os.path.realpath(path)
    with contextlib.suppress(OSError):
        _mapped[place] = Path(place).stat().st_size
    _catch_cuts()


def _catch_cuts() -> None:
    global _cut_handler
    if _cut_handler is not None or sys.platform == "win32":
        return
    import ctypes

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end_with_reason)
    # Not by Python's `signal`: its handlers wait for the interpreter, while the read is tried again and again.
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    if before:
        # Somebody else's, such as faulthandler's
        set_handler(signal.SIGBUS, before)
    _cut_handler = handler


def _end_with_reason(_: int) -> None:
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
    os._exit(DamagedError.exit_code)
