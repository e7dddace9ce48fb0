"""How much memory this process has used, and how much it may."""

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Final

# Whether mapped pages can be let go, see `llama/mapped_pages.py`
CAN_LET_GO: Final = sys.platform == "linux"
CGROUP: Final = Path("/sys/fs/cgroup")
# Control groups of version 1 write "no limit" as a number near 2^63.
UNLIMITED_BYTES: Final = 1 << 60


def peak_memory_bytes() -> int:
    """The most memory that was resident at once, mapped files included.

    On Linux VmHWM is read, as getrusage's value starts from what the parent process had, less what it counts twice now.
    """
    if sys.platform == "linux":
        from .mappings import counted_twice_bytes

        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 - counted_twice_bytes() if found else 0
    elif sys.platform == "win32":  # noqa: RET505  (type checkers follow platforms through if and elif only)
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    else:
        import resource

        # macOS counts in bytes here, the others in KiB.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_bytes() -> int:
    """What new memory can take at this moment without swapping, the page cache that can be dropped included."""
    import psutil

    return int(psutil.virtual_memory().available)


def machine_bytes() -> int:
    """The memory that the machine has."""
    import psutil

    return int(psutil.virtual_memory().total)


def memory_limit_bytes(cgroup: Path = CGROUP, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the process's control groups or its own rlimits allow; None if there is no limit.

    Read are memory.max of version 2 and memory.limit_in_bytes of version 1, of the process's group and those above it,
    then RLIMIT_DATA and RLIMIT_AS.
    """
    if sys.platform == "win32":
        return None
    import resource

    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    for file in _limit_files(cgroup, own):
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):
            continue
    return min((limit for limit in limits if 0 <= limit < UNLIMITED_BYTES), default=None)


def _limit_files(cgroup: Path, own: Path) -> list[Path]:
    """Where the limits of this process's memory stand; a container sees its own group at the top."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    files = [cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"]
    for line in lines:
        _, kinds, place = line.split(":", 2)
        group = PurePosixPath(place.lstrip("/"))
        for above in (group, *group.parents):
            if not kinds:
                files.append(cgroup / above / "memory.max")
            elif "memory" in kinds.split(","):
                files.append(cgroup / "memory" / above / "memory.limit_in_bytes")
    return files
