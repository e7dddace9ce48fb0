"""What this process may use of the machine: CPUs and memory.

How many threads a model should run on: one for each fast physical core that this process may use. Hyperthreads share
the units that matrix products need, and a slow core of a hybrid CPU holds all others up at every layer; both are left
out. CPU quotas of the process's control groups count too, a container's and a service's. A prompt is bound by these
units and takes every fast core; single tokens are bound by memory, and on boards where fewer cores read faster they
take fewer.
"""

import math
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Final

SYSTEM: Final = Path("/sys")
DEVICE_TREE: Final = Path("/proc/device-tree")
CGROUP: Final = Path("/sys/fs/cgroup")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
# A core with less than this part of the fastest one's capacity is a "little" one (Arm: 0.3 to 0.5, Zen 5c: 0.65)
FAST_PART = 0.7
# Chips whose memory is read fastest by so many cores. BCM2712 (Raspberry Pi 5): 13.8, 12.7 and 10.7 GB/s with 1, 2 and
# 4; Q4_0 decodes 15 to 23 % slower with 4 threads than with 2 (Arm learning path "llm-decode-roofline", 2026-10).
DECODE_THREADS: Final = {"brcm,bcm2712": 2}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def cpu_list(text: str) -> set[int]:
    """CPUs of the kernel's notation: "0-3,8" is {0, 1, 2, 3, 8}; anything else is empty."""
    cpus: set[int] = set()
    try:
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    except ValueError:
        return set()
    return cpus


def allowed_cpus() -> set[int]:
    """The CPUs that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def _speed(cpu: int, system: Path) -> int:
    """A core's capacity as the scheduler sees it, else its highest clock; 0 if neither is known."""
    folder = system / "devices/system/cpu" / f"cpu{cpu}"
    return _number(folder / "cpu_capacity") or _number(folder / "cpufreq" / "cpuinfo_max_freq") or 0


def fast_cores(cpus: set[int], system: Path = SYSTEM) -> int | None:
    """Number of distinct fast physical cores among `cpus`, or None if the kernel does not tell (not Linux)."""
    # Intel's hybrids name their P cores; the clocks of their E cores alone would not tell them apart.
    performance = cpus & cpu_list(_text(system / "devices/cpu_core/cpus"))
    cores: dict[frozenset[int], int] = {}
    for cpu in performance or cpus:
        # Numbers of cores begin anew in every cluster of an Arm chip: only the hyperthreads of a core tell which it is.
        topology = system / "devices/system/cpu" / f"cpu{cpu}" / "topology"
        threads = cpu_list(_text(topology / "core_cpus_list") or _text(topology / "thread_siblings_list"))
        if not threads:
            return None
        core = frozenset(threads)
        cores[core] = max(cores.get(core, 0), _speed(cpu, system))
    fastest = max(cores.values(), default=0)
    return sum(speed >= FAST_PART * fastest for speed in cores.values()) or None


def cpu_quota(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> float:
    """CPUs that may be busy at once: the least of the process's control group and those above it; infinity if no limit.

    Read are cpu.max of version 2 and cpu.cfs_quota_us of version 1.
    """
    found = math.inf
    for path in _quota_files(cgroup, own):
        words = _text(path).split()
        period = words[1] if len(words) > 1 else _text(path.with_name("cpu.cfs_period_us")) or "100000"
        try:
            quota_us, period_us = int(words[0]), int(period)
        except (IndexError, ValueError):
            # No such group, or "max"
            continue
        # -1 is no limit in version 1.
        if quota_us > 0 and period_us > 0:
            found = min(found, quota_us / period_us)
    return found


def _quota_files(cgroup: Path, own: Path) -> list[Path]:
    """Where quotas of this process stand; a container sees its own group at the top."""
    first = [cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu,cpuacct" / "cpu.cfs_quota_us"]
    files = [cgroup / "cpu.max", *first]
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        kinds, _, place = rest.partition(":")
        group = PurePosixPath(place.lstrip("/"))
        for above in (group, *group.parents):
            if not kinds:
                files.append(cgroup / above / "cpu.max")
            elif "cpu" in kinds.split(","):
                files += [file.parent / above / file.name for file in first]
    return files


def usable_cpus() -> int:
    """CPUs that this process may keep busy at once, hyperthreads too, at least 1: affinity and quota count."""
    return max(1, math.floor(min(len(allowed_cpus()), cpu_quota())))


def default_threads(cpus: set[int] | None = None, system: Path = SYSTEM, quota: float | None = None) -> int:
    """Threads for prompts and batches on this machine, at least 1.

    Args:
        cpus: that may be used; None: those of this process.
        system: where the kernel describes the machine, as /sys.
        quota: CPUs that may be busy at once; None: the control group's.
    """
    cpus = allowed_cpus() if cpus is None else cpus
    cores = fast_cores(cpus, system)
    if cores is None:
        import psutil

        cores = psutil.cpu_count(logical=False) or len(cpus)
    return max(1, min(cores, len(cpus), math.floor(min(cpu_quota() if quota is None else quota, 1 << 20)) or 1))


def default_decode_threads(n_prompt_threads: int | None = None, tree: Path = DEVICE_TREE) -> int:
    """Threads for single tokens on this machine, at least 1 and at most those for prompts.

    Args:
        n_prompt_threads: as `default_threads` gives; None: ask it.
        tree: where the kernel names the board's chip, as /proc/device-tree.
    """
    threads = default_threads() if n_prompt_threads is None else n_prompt_threads
    chips = _text(tree / "compatible").split("\0")
    return min([threads, *(DECODE_THREADS[chip] for chip in chips if chip in DECODE_THREADS)])


# Whether mapped pages can be let go, see `llama/mapped_pages.py`
CAN_LET_GO: Final = sys.platform == "linux"
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


def memory_limit_bytes(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int | None:
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
