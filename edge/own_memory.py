"""This process's own mappings, and advice to the kernel about them (Linux).

for mapping in mappings():
    if mapping.name == "/path/base.gguf":
        advise(mapping.first, mapping.last - mapping.first, MADV_DONTNEED)
"""

import ctypes
import functools
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
