"""The record of a machine that makes two profiles comparable, or tells why they are not."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ...edge.llama.binding import lib, prompt_kernels
from .probe import cpu_name, isa_class
from .sensors import Sensors, throttle_words


def machine_record(sensors: Sensors) -> dict[str, Any]:
    """Device, system, cores, instruction set, build of llama.cpp; None if something cannot be read."""
    import psutil

    flags = throttled = None
    if (flags := sensors.throttled()) is not None:
        throttled = throttle_words(flags)
    return {
        "device": cpu_name(),
        "firmware": _first(Path("/proc/device-tree/chosen/bootloader/version"), Path("/sys/class/dmi/id/bios_version")),
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "governor": _first(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "ram_bytes": psutil.virtual_memory().total,
        "swap_used_bytes": psutil.swap_memory().used,
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "isa_class": isa_class(),
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        "llama_system_info": lib().llama_print_system_info().decode(errors="replace").strip(),
        "prompt_kernels": prompt_kernels().name,
        "throttled": throttled,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def same_machine(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What makes two records' rates incomparable; empty if nothing does."""
    keys = ("device", "machine", "isa_class", "llama_cpp_python", "llama_system_info", "prompt_kernels")
    return [f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)]


def _first(*paths: Path) -> str | None:
    for path in paths:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
        except OSError:
            continue
    return None
