"""How much memory this process has used."""

import re
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory that was resident at once, mapped files included.

    On Linux VmHWM is read: getrusage's value starts from what the parent process had.
    """
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    elif sys.platform == "win32":  # noqa: RET505  (type checkers follow platforms through if and elif only)
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    else:
        import resource

        # macOS counts in bytes here, the others in KiB.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
