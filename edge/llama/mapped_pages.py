"""Releases a mapped base's pages while it is loaded, so that what is copied is not in memory twice.

llama.cpp maps the whole file, has the kernel bring all of it in, and copies the weights that have a faster layout. The
pages that they were copied from stay in the process for good. On Linux they can be released tensor by tensor: they
remain in the page cache, which the kernel empties when it needs to, and those that are read later come back by
themselves. So loading takes the memory of a base that was read, and the time of one that is mapped.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..system.machine import CAN_LET_GO
from ..system.mappings import MADV_DONTNEED, advise, mappings
from .binding import called_by_c, interrupt_waits

# Share of the weights that is loaded between two times.
STEP: Final = 0.01


def let_go(path: str | os.PathLike[str], spans: Sequence[tuple[int, int]]) -> int:
    """Takes whole pages of these parts of a file out of the process, in every shared mapping of it.

    Safe at any time: what is mapped shared and from a file comes back from it when it is read.

    Args:
        spans: first byte of the file and the one behind the last.

    Returns:
        Bytes that were released, in the process or not; 0 if the system cannot do it.
    """
    if not CAN_LET_GO:
        return 0
    name, gone_bytes = os.path.realpath(path), 0
    # Read each time: an address kept from before may hold something else by now.
    for mapping in mappings():
        if mapping.name != name or mapping.rights[3] != "s":
            continue
        for start, end in spans:
            first = max(-(-(start - mapping.offset_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE, 0)
            last = min((end - mapping.offset_bytes) // mmap.PAGESIZE * mmap.PAGESIZE, mapping.last - mapping.first)
            if first < last and advise(mapping.first + first, last - first, MADV_DONTNEED):
                gone_bytes += last - first
    return gone_bytes


class LettingGo:
    """A progress callback for `llama_model_load_from_file` that releases what has been copied from.

    Attributes:
        callback: to be given to llama.cpp, and kept as long as it loads.
        error: what was raised in it, as a KeyboardInterrupt: loading has ended there, and it is to be raised again.
    """

    def __init__(self, path: Path, spans: Sequence[tuple[int, int]], kind: Callable[..., Any]) -> None:
        """`kind` is the binding's `llama_progress_callback`."""
        self.callback = kind(self._progress)
        self.error: BaseException | None = None
        self._path, self._spans, self._at = path, spans, -1.0

    @called_by_c
    def _progress(self, share: float, _: object) -> bool:
        try:
            if share >= self._at + STEP:
                let_go(self._path, self._spans)
                self._at = share
        except BaseException as error:  # noqa: BLE001 - C cannot raise it; `Model.load` does
            self.error = error
            return False
        return not interrupt_waits()
