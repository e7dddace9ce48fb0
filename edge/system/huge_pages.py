"""Moves this process's memory from small pages to huge ones, where Linux has them on request.

    moved_bytes = to_huge_pages()

A decoded token reads every weight once. In pages of 4 KiB each costs a walk through the page tables, which in a virtual
machine are two tables deep; in pages of 2 MiB there are 512 times fewer. onnxruntime's weights lie in memory of malloc,
which on kernels set to "madvise" (Ubuntu's default) stays in small pages. Numbers do not change, only where they lie.
"""

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from .mappings import MADV_COLLAPSE, advise, libc, mappings

SYSTEM: Final = Path("/sys/kernel/mm/transparent_hugepage")
# A huge page is whole: of one that was hardly used, the rest would be new memory.
USED_PART: Final = 0.9


def huge_page_bytes(system: Path = SYSTEM) -> int | None:
    """Size of a huge page; None if there are none, or the machine's owner switched them off."""
    try:
        if "[never]" in (system / "enabled").read_text():
            return None
        return int((system / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return None


def to_huge_pages(stopped: Callable[[], bool] = lambda: False) -> int:
    """Moves what is private, without a file, and in use; returns the bytes that lie in huge pages now.

    Costs about as much as copying them. Other threads may go on; safe to call again. 0 if the system cannot do it.

    Args:
        stopped: asked before each page; true ends it early.
    """
    size_bytes = huge_page_bytes()
    if sys.platform != "linux" or size_bytes is None:
        return 0
    moved = 0
    for first, last in _mappings(size_bytes):
        for start, length in _used(first, last, size_bytes):
            if stopped():
                return moved
            if advise(start, length, MADV_COLLAPSE):
                moved += length
    return moved


def _mappings(size_bytes: int) -> list[tuple[int, int]]:
    """Ranges of whole huge pages in mappings that are ours to read and write and come from no file."""
    found = []
    for first, last, rights, _, inode, name, _ in mappings():
        if rights != "rw-p" or inode or name not in ("", "[heap]"):
            continue
        first, last = -(-first // size_bytes) * size_bytes, last // size_bytes * size_bytes
        if first < last:
            found.append((first, last))
    return found


def _used(first: int, last: int, size_bytes: int) -> list[tuple[int, int]]:
    """Start and length of those huge pages of a range that are in use."""
    resident = np.zeros((last - first) // mmap.PAGESIZE, np.uint8)
    if libc().mincore(first, last - first, resident.ctypes.data):
        return []  # unmapped since
    share = (resident & 1).reshape(-1, size_bytes // mmap.PAGESIZE).mean(axis=1)
    return [(first + int(index) * size_bytes, size_bytes) for index in np.flatnonzero(share >= USED_PART)]
