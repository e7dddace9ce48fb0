"""How many threads a model should run on: one for each fast physical core that this process may use.

Hyperthreads share the units that matrix products need, and a slow core of a hybrid CPU holds all others up at
every layer; both are left out. A container's CPU quota counts too.
"""

import math
import os
from pathlib import Path

SYSTEM = Path("/sys/devices/system/cpu")
CGROUPS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
# A core with less than this part of the fastest one's capacity is a "little" one (Arm: 0.3 to 0.5, Intel E: about 0.6)
FAST_PART = 0.7


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _allowed_cpus() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def _speed(cpu: int, system: Path) -> int:
    folder = system / f"cpu{cpu}"
    return _number(folder / "cpu_capacity") or _number(folder / "cpufreq" / "cpuinfo_max_freq") or 0


def fast_cores(cpus: set[int], system: Path = SYSTEM) -> int | None:
    """Number of distinct fast physical cores among `cpus`, or None where the kernel does not tell (not Linux)."""
    cores: dict[tuple[int, int], int] = {}
    for cpu in sorted(cpus):
        topology = system / f"cpu{cpu}" / "topology"
        core = _number(topology / "core_id")
        if core is None:
            return None
        key = (_number(topology / "physical_package_id") or 0, core)
        cores[key] = max(cores.get(key, 0), _speed(cpu, system))
    fastest = max(cores.values(), default=0)
    return sum(speed >= FAST_PART * fastest for speed in cores.values()) or None


def _quota(files: tuple[Path, ...] = CGROUPS) -> float:
    """CPUs that the control group may use; infinity without a limit."""
    for path in files:
        try:
            words = path.read_text().split()
        except OSError:
            continue
        quota = words[0]
        period = words[1] if len(words) > 1 else (_number(path.with_name("cpu.cfs_period_us")) or 100_000)
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


def default_threads() -> int:
    """Threads for a model on this machine, at least 1."""
    cpus = _allowed_cpus()
    cores = fast_cores(cpus)
    if cores is None:
        import psutil

        cores = psutil.cpu_count(logical=False) or len(cpus)
    return max(1, min(cores, len(cpus), math.floor(min(_quota(), 1 << 20)) or 1))
