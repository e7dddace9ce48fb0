"""What the service manager is told (systemd's Type=notify): the server answers, it still works, it is about to end.

    tell("READY=1")
    async with watched(fault): …

Without a manager that asks for it nothing is sent.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable


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
