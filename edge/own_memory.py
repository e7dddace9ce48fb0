"""This process's own mappings, and advice to the kernel about them (Linux).

for mapping in mappings():
    if mapping.name == "/path/base.gguf":
        advise(mapping.first, mapping.last - mapping.first, MADV_DONTNEED)
"""

import ctypes
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

MAPS: Final = Path("/proc/self/maps")
# Of the kernel's uapi; the same on x86 and ARM
MADV_DONTNEED: Final = 4
MADV_COLLAPSE: Final = 25


class Mapping(NamedTuple):
    """A line of /proc/self/maps: addresses, rights as "rw-p", the place in the file, its inode and its name or ""."""

    first: int
    last: int
    rights: str
    offset_bytes: int
    inode: int
    name: str


def mappings() -> Iterator[Mapping]:
    """All of them as they are now; none where the system does not tell."""
    try:
        lines = MAPS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        # "7f0000000000-7f0000100000 r--s 00000000 fe:00 1234    /a path/base.gguf"
        place, rights, offset, _, inode, *name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in place.split("-"))
        yield Mapping(first, last, rights, int(offset, 16), int(inode), name[0] if name else "")


def counted_twice_bytes() -> int:
    """What the resident set counts too often: pages of files that are mapped more than once here (`two_layouts.py`)."""
    mapped, size = Counter[int](), Counter[int]()
    for mapping in mappings():
        if mapping.inode and mapping.rights[3] == "s":
            mapped[mapping.inode] += mapping.last - mapping.first
            end = mapping.offset_bytes + mapping.last - mapping.first
            size[mapping.inode] = max(size[mapping.inode], end)
    if all(mapped[inode] <= size[inode] for inode in mapped):
        return 0
    resident: Counter[int] = Counter()
    inode = 0
    for line in MAPS.with_name("smaps").read_text(errors="surrogateescape").splitlines():
        words = line.split(maxsplit=5)
        if words[0] == "Rss:":
            resident[inode] += int(words[1]) * 1024
        elif "-" in words[0] and len(words) > 4:
            inode = int(words[4]) if words[1][3] == "s" else 0
    return sum(max(resident[inode] - size[inode], 0) for inode in size)


@functools.cache
def libc() -> Any:
    """The C library, with the types of what is called here."""
    library = ctypes.CDLL(None)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return library


def advise(first: int, size_bytes: int, advice: int) -> bool:
    """Whether madvise(2) took this advice."""
    return bool(libc().madvise(first, size_bytes, advice) == 0)
