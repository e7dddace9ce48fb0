"""Notices that an open file was changed in place. Weights are mapped: what is cut off from them ends the process.

A file that is deleted, or replaced by renaming another onto it, stays as it was for those who have it open.
"""

import os
from typing import Self

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
