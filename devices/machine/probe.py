"""Probes this machine in seconds: sustained read bandwidth by threads, and the rates of llama.cpp's kernels by type.

found = probe()
found.device.read_curve(), found.calibration.cycles
"""

import dataclasses
import os
import platform
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ...edge.console import Advance
from ...edge.errors import InputError
from ...edge.files.atomic import make_folder, write_json
from ...edge.files.cache import cache_folder
from ...edge.files.read import read_table
from ...edge.system.load import OthersCores, is_busy
from ...edge.system.machine import default_threads
from ..catalogue.catalogue import GIB, Device, Fact, core_classes
from ..predict.predict import Calibration, Predictor
from .probe_kernels import N_DECODE, N_PROMPT, PROBED_TYPES, KernelRates, kernel_rates

PROBED: Final = "probed here"
READ_BYTES: Final = 256 << 20
# Steps that `probe` tells of: the memory, each kernel.
N_STEPS: Final = 1 + len(PROBED_TYPES)


@dataclass(frozen=True)
class Probe:
    """What was found: the machine as a device, and its kernels' rates over those of its class."""

    device: Device
    calibration: Calibration
    seconds: float
    others_cores: float = 0.0

    @property
    def busy(self) -> str | None:
        """Why its rates are too low to rest on; None if the machine was quiet."""
        return busy_reason(self.others_cores)


def busy_reason(others_cores: float) -> str | None:
    """What to tell when other processes keep so many cores busy that a probe would show theirs; None: they do not."""
    threads = default_threads()
    if not is_busy(others_cores, threads):
        return None
    return f"other processes keep {others_cores:.1f} cores busy, and {threads} are probed"


def others_cores(seconds: float = 0.5) -> float:
    """Cores that other processes keep busy, over so long."""
    others = OthersCores()
    time.sleep(seconds)
    return others()


def unprobed_device(reason: str) -> Device:
    """This machine, of whose rates nothing is known; plans of memory hold."""
    device = this_device()
    # No rate is shown that rests on it: it lets the setups be compared.
    facts = {**device.facts, "theoretical_gb_per_s": Fact(25.6, "assumed, not probed")}
    return dataclasses.replace(device, facts=facts, unprobed=reason)


def probe(advance: Advance | None = None) -> Probe:
    """Measures this machine.

    Args:
        advance: told of each of `N_STEPS`.
    """
    step = advance or (lambda n=1, /, *, text=None, total=None: None)
    start_s, others = time.perf_counter(), OthersCores()
    threads = default_threads()
    curve = read_bandwidth(threads)
    step(1, text="memory")
    device = this_device(curve)
    rates = {}
    for label in PROBED_TYPES:
        rates[label] = kernel_rates(label, threads)
        step(1, text=f"{label} kernels")
    calibration = calibration_of(device, rates, threads)
    return Probe(device, calibration, time.perf_counter() - start_s, others())


def calibration_of(device: Device, rates: Mapping[str, KernelRates], threads: int) -> Calibration:
    """What the kernels' rates say of a device, whose memory rates are known: per type and for one and all threads.

    Cycles per weight are those of one thread, fixed times of the layers taken off; what all threads together do
    differently is the factor on decode, the median over the types. Prompts are measured with all threads.
    """
    bare = Predictor(device, calibration=Calibration(decode=1.0, prefill={"repack": 1.0, "plain": 1.0}))
    hertz = device.number("clock_ghz") * 1e9
    cycles, macs = {}, {}
    for label, rate in rates.items():
        work = rate.work
        layers_s = work.n_layers * bare.constants.layer_s
        cycles[label] = max(rate.token_one_s - layers_s, layers_s) * hertz / work.n_weights
        kernel = bare.kernel_of(work)
        parts = bare.prefill(work, n_prompt_tokens=N_PROMPT, threads=threads, kernel=kernel).parts
        fixed_s = sum(seconds for name, seconds in parts.items() if name not in ("weights", "streaming"))
        part = max(rate.prompt_s / N_PROMPT - fixed_s, fixed_s) / parts["weights"]
        (kind,) = work.weights_by_type
        macs[label] = bare.macs_per_cycle(kind, kernel) / part
    known = Calibration(decode=1.0, prefill={"repack": 1.0, "plain": 1.0}, cycles=cycles, macs_per_cycle=macs)
    whole = Predictor(device, calibration=known)
    scales = [
        1 / rate.token_s / whole.decode(rate.work, threads=threads, depth_tokens=N_DECODE / 2).tokens_per_s
        for rate in rates.values()
    ]
    source = f"a probe of this machine ({threads} threads)"
    return dataclasses.replace(known, decode=float(np.median(scales)), source=source)


def read_bandwidth(threads: int) -> dict[int, float]:
    """GB/s of summing a buffer beyond the caches, the best of four, by number of threads (1, 2, …, `threads`)."""
    buffer = np.ones(READ_BYTES // 8, np.int64)
    curve = {}
    counts = sorted({1, 2, threads} & set(range(1, threads + 1)))
    for count in counts:
        pieces = np.array_split(buffer, count)
        best_s = float("inf")
        with ThreadPoolExecutor(count) as pool:
            for _ in range(4):
                start_s = time.perf_counter()
                list(pool.map(np.add.reduce, pieces))
                best_s = min(best_s, time.perf_counter() - start_s)
        curve[count] = round(READ_BYTES / best_s / 1e9, 2)
    return curve


def this_device(curve: dict[int, float] | None = None) -> Device:
    """This machine as a device of the catalogue, without or with measured bandwidth."""
    import psutil

    n_cores = default_threads()
    ram_bytes = min(psutil.virtual_memory().total, _memory_limit())
    facts = {
        "big_cores": Fact(n_cores, PROBED),
        "clock_ghz": Fact(_clock_ghz(), "the kernel's highest frequency, else what it shows now"),
        "ram_gib": Fact([ram_bytes / GIB], PROBED),
        "reserve_gib": Fact(round(0.05 * ram_bytes / GIB, 2), "assumed: a twentieth of the RAM"),
    }
    if curve:
        facts["read_gb_per_s"] = Fact({str(n): rate for n, rate in curve.items()}, PROBED)
        facts["core_gb_per_s"] = Fact(max(curve.values()), PROBED)
    return Device("this", cpu_name(), core_classes()[isa_class()], ram_bytes, facts)


def cpu_name() -> str:
    """The processor's name as the system gives it; a board's model in front if there is one."""
    board = _text(Path("/proc/device-tree/model")).strip("\0 \n")
    info = _text(Path("/proc/cpuinfo"))
    found = re.search(r"^(?:model name|Hardware|Processor)\s*:\s*(.+)$", info, re.M)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return board or name


def isa_class(info: str | None = None, machine: str | None = None, system: str | None = None) -> str:
    """Which class of classes.toml a machine's cores are of.

    Args:
        info, machine, system: /proc/cpuinfo, `platform.machine()` and `platform.system()`; None: this machine's.
    """
    info = _text(Path("/proc/cpuinfo")) if info is None else info
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.M)
    flags = set(found[1].split()) if found else set()
    if (machine or platform.machine()).lower() in ("arm64", "aarch64"):
        if (system or platform.system()) == "Darwin":
            # macOS has no such file; all but the M1 have 8-bit matrix products.
            return "neon-dotprod-apple" if cpu_name() == "Apple M1" else "neon-i8mm-apple"
        if "i8mm" in flags:
            return "neon-i8mm"
        if flags and "asimddp" not in flags:
            return "neon"
        parts = set(re.findall(r"^CPU part\s*:\s*(\w+)$", info, re.M))
        return "neon-dotprod-a55" if parts == {"0xd05"} else "neon-dotprod"
    if {"avx512_vnni", "avx512f"} <= flags:
        return "avx512-vnni"
    return "avx2-small" if re.search(r"^model name\s*:.*\bN\d{2,3}\b", info, re.M) else "avx2"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _clock_ghz() -> float:
    most = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")).strip()
    if most.isdigit():
        return int(most) / 1e6
    found = re.findall(r"cpu MHz\s*:\s*([\d.]+)", _text(Path("/proc/cpuinfo")))
    return max((float(mhz) for mhz in found), default=2000.0) / 1000


def _memory_limit() -> int:
    text = _text(Path("/sys/fs/cgroup/memory.max")).strip()
    return int(text) if text.isdigit() else 1 << 62


def _path() -> Path:
    return cache_folder() / "devices" / "probe.json"


def save_probe(found: Probe) -> None:
    """Keeps a probe in the cache, for commands that want `this` without waiting.

    A calibration of `this` is relative to the probe before it, and goes with it.

    Raises:
        InputError: the machine was busy meanwhile.
    """
    if found.busy:
        raise InputError(f"a probe of a busy machine is not kept: {found.busy}")
    make_folder(_path().parent)
    _path().with_name("this.json").unlink(missing_ok=True)
    facts = {name: {"value": fact.value, "source": fact.source} for name, fact in found.device.facts.items()}
    data = {"facts": facts, "calibration": dataclasses.asdict(found.calibration), "seconds": found.seconds}
    data |= {"others_cores": found.others_cores}
    write_json(_path(), {**data, "machine": cpu_name(), "cores": os.cpu_count()})


def kept_probe() -> Probe | None:
    """The probe in the cache, if it is of this machine."""
    if not _path().is_file():
        return None
    data = read_table(_path())
    try:
        # Probes of before 2026-12 do not say how busy the machine was.
        if data["machine"] != cpu_name() or data["cores"] != os.cpu_count() or "others_cores" not in data:
            return None
        facts = {name: Fact(row["value"], row["source"]) for name, row in data["facts"].items()}
        device = dataclasses.replace(this_device(), facts=facts)
        return Probe(device, Calibration(**data["calibration"]), data["seconds"], data["others_cores"])
    except (KeyError, TypeError):
        raise InputError("is not a probe of this version", where=_path(), hint=f"rm {_path()}") from None
