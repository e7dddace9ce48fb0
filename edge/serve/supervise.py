"""What the service manager is told (systemd's Type=notify): the server answers, it still works, it is about to end.

    tell("READY=1")
    async with watched(fault), tidied(): …

Without a manager that asks for it nothing is sent. And what a server that runs for months does for its memory.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

# Between two times that free memory is given back to the system
_TIDY_S: Final = 20.0
# glibc's mallopt: what it calls them, and values. A block as large as that is the system's again when it is freed; a
# row of logits is smaller. Left alone, glibc raises the bound to what the longest prompt took, and keeps it.
# Each heap keeps what is free at its end up to the trim threshold, and each thread would have a heap of its own: what
# the largest request took in each of them would stay, and look like a leak for as long as not all have had theirs.
_M_TRIM, _TRIM_BYTES = -1, 512 << 10
_M_MMAP, _MMAP_BYTES = -3, 2 << 20
_M_ARENAS, _N_ARENAS = -8, 2


def tell(state: str) -> bool:
    """Sends one line, such as "READY=1"; whether somebody asked for it."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return False
    # "@name" is a socket in Linux's abstract namespace.
    address = "\0" + place[1:] if place.startswith("@") else place
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect(address)
        out.sendall(state.encode())
        return True
    return False


def watchdog_s() -> float | None:
    """How long this process may be silent before it is taken for hung; None: nobody waits."""
    pid, limit_us = os.environ.get("WATCHDOG_PID"), os.environ.get("WATCHDOG_USEC", "")
    if not limit_us.isdigit() or int(limit_us) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 1e6


@contextlib.asynccontextmanager
async def watched(fault: Callable[[], Awaitable[str | None]]) -> AsyncIterator[None]:
    """Meanwhile the watchdog is told, twice in its time, that the server works.

    Args:
        fault: what is wrong with it; None: it works.
    """
    limit_s = watchdog_s()
    watching = None if limit_s is None else asyncio.ensure_future(_watch(limit_s / 2, fault))
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()


async def _watch(pause_s: float, fault: Callable[[], Awaitable[str | None]]) -> None:
    while True:
        if await fault() is None:
            tell("WATCHDOG=1")
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def tidied(pause_s: float = _TIDY_S) -> AsyncIterator[None]:
    """Meanwhile memory that was freed goes back to the system; nothing is done where libc cannot.

    glibc keeps what one large request took, in the heap of each thread that ever served one.
    """
    libc = ctypes.CDLL(None)
    trim, option = getattr(libc, "malloc_trim", None), getattr(libc, "mallopt", None)
    if option is not None:
        option(_M_TRIM, _TRIM_BYTES)
        option(_M_MMAP, _MMAP_BYTES)
        option(_M_ARENAS, _N_ARENAS)
    tidying = None if trim is None else asyncio.ensure_future(_tidy(trim, pause_s))
    try:
        yield
    finally:
        if tidying is not None:
            tidying.cancel()


async def _tidy(trim: Callable[[int], Any], pause_s: float) -> None:
    while True:
        await asyncio.sleep(pause_s)
        # On a thread: it takes milliseconds.
        await asyncio.to_thread(trim, 0)
