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
# Device and inode
File = tuple[str, int]


class Mapping(NamedTuple):
    """A line of /proc/self/maps: addresses, rights as "rw-p", place in the file; its inode, name or "", device."""

    first: int
    last: int
    rights: str
    offset_bytes: int
    inode: int
    name: str
    device: str

    @classmethod
    def of(cls, line: str) -> "Mapping":
        """From "7f0000000000-7f0000100000 r--s 00000000 fe:00 1234    /a path/base.gguf"."""
        place, rights, offset, device, inode, *name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in place.split("-"))
        return cls(first, last, rights, int(offset, 16), int(inode), name[0] if name else "", device)


def mappings() -> Iterator[Mapping]:
    """All of them as they are now; none where the system does not tell."""
    try:
        lines = MAPS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    yield from map(Mapping.of, lines)


def counted_twice_bytes() -> int:
    """What the resident set counts too often: pages of files that are mapped more than once here (`two_layouts.py`)."""
    mapped, size = Counter[File](), Counter[File]()
    for mapping in mappings():
        if file := _shared_file(mapping):
            n_bytes = mapping.last - mapping.first
            mapped[file] += n_bytes
            size[file] = max(size[file], mapping.offset_bytes + n_bytes)
    if all(mapped[file] <= size[file] for file in mapped):
        return 0
    resident = Counter[File | None]()
    file = None
    for line in MAPS.with_name("smaps").read_text(errors="surrogateescape").splitlines():
        # Each mapping's line is followed by its numbers, "Rss:   123 kB" among them.
        if line.startswith("Rss:"):
            resident[file] += int(line.split()[1]) * 1024
        elif not line.split(maxsplit=1)[0].endswith(":"):
            file = _shared_file(Mapping.of(line))
    return sum(max(resident[file] - size[file], 0) for file in size)


def _shared_file(mapping: Mapping) -> File | None:
    """The device and inode of the file that this mapping shares its pages with."""
    return (mapping.device, mapping.inode) if mapping.inode and mapping.rights[3] == "s" else None


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
