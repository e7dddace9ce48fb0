"""Lines of JSON that long work writes as it goes, to go on from: what is there after kill -9 is whole lines."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DamagedError, is_full
from .aside import full_disk
from .read import loads_json


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as its line."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def rows_of(data: bytes, where: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a journal, and how many bytes are whole lines: the last one may have been cut short.

    Raises:
        DamagedError: a whole line is no JSON object.
    """
    whole = data.rfind(b"\n") + 1
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
        try:
            row = loads_json(line.decode("utf-8", "surrogatepass"))
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise DamagedError(
                f"line {number} is damaged ({error})", where=where, hint="remove the file to begin anew"
            ) from None
        rows.append(row)
    return rows, whole


class Journal:
    """A file to add rows to.

    Args:
        whole_bytes: of it that are kept: whole lines.
        first: the row of a file that has none yet: what it is of.
    """

    def __init__(self, path: Path, whole_bytes: int, first: Mapping[str, Any]) -> None:
        self._path = path
        self._stream: BinaryIO = path.open("ab", buffering=0)
        os.ftruncate(self._stream.fileno(), whole_bytes)
        if whole_bytes == 0:
            self.add(first)

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes a row: one unbuffered write of one whole line, so what was written survives the process.

        Raises:
            DoesNotFitError: the disk is full; the row is cut off again.
        """
        line = line_of(row)
        start_bytes = os.fstat(self._stream.fileno()).st_size
        try:
            # On a disk that is almost full a write takes a part, and says so by its number alone.
            while line:
                line = line[self._stream.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._stream.fileno(), start_bytes)
            raise full_disk(error, self._path) if is_full(error) else error from None

    def close(self) -> None:
        """Ends writing. Calling it twice does nothing."""
        self._stream.close()
