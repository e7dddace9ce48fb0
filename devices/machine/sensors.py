"""Temperatures, frequencies, throttling and power, where this machine shows them. What is not there is left out.

    sensors = Sensors()
    sensors.read()             # {"temperature_c": {"thermal_zone0 cpu-thermal": 54.3}, "throttled": 0, …}
    joules = energy_between(before, sensors.energy_counters())

Places read (root of the file system can be another folder):

    sys/class/thermal/thermal_zone*/{type,temp}                              every Linux
    sys/class/hwmon/hwmon*/{name,temp*_input,power*_input,in*_input,curr*_input}  coretemp, k10temp, INA3221, INA226
    sys/class/powercap/intel-rapl:N/{name,energy_uj,max_energy_range_uj}     RAPL; root alone since CVE-2020-8694
    sys/class/power_supply/*/{type,status,power_now,voltage_now,current_now} laptops, on battery alone
    sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq                     the request on a Raspberry Pi
    sys/devices/platform/soc/soc:firmware/get_throttled, else vcgencmd       Raspberry Pi
    vcgencmd pmic_read_adc                                                   Raspberry Pi 5: rails without the 5 V ones
"""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

# get_throttled (raspberrypi/documentation, vcgencmd): now, and since boot 16 bits higher.
THROTTLE_BITS: Final = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
Command = Callable[[list[str]], str | None]


def run_command(words: list[str]) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def throttle_words(flags: int) -> list[str]:
    """The flags of get_throttled in words, those since boot marked so."""
    now = [word for bit, word in THROTTLE_BITS.items() if flags >> bit & 1]
    return now + [f"{word} (since boot)" for bit, word in THROTTLE_BITS.items() if flags >> (16 + bit) & 1]


class Sensors:
    """The sensors of one machine.

    Args:
        root: of the file system.
        command: runs vcgencmd.
    """

    def __init__(self, root: Path = Path("/"), command: Command = run_command) -> None:
        self.sys = root / "sys"
        self._command = command
        self._pi = self._throttle_file().is_file() or command(["vcgencmd", "get_throttled"]) is not None

    def read(self) -> dict[str, Any]:
        """What can be read now, by kind: temperature_c, frequency_mhz, power_w (each by sensor), throttled."""
        found: dict[str, Any] = {
            "temperature_c": self.temperatures(),
            "frequency_mhz": self.frequencies(),
            "power_w": self.powers(),
            "throttled": self.throttled(),
        }
        return {kind: value for kind, value in found.items() if value not in (None, {})}

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by sensor."""
        found = {}
        for zone in sorted((self.sys / "class/thermal").glob("thermal_zone*")):
            milli = _number(zone / "temp")
            if milli is not None and -40_000 < milli < 150_000:
                found[f"{zone.name} {_text(zone / 'type') or ''}".strip()] = milli / 1000
        for chip in self._chips():
            for path in sorted(chip.glob("temp*_input")):
                milli = _number(path)
                if milli is not None and -40_000 < milli < 150_000:
                    label = _text(path.with_name(path.name.replace("_input", "_label"))) or path.name[:-6]
                    found[f"{_text(chip / 'name')} {label}"] = milli / 1000
        return found

    def frequencies(self) -> dict[str, float]:
        """MHz by processor."""
        found = {}
        for path in sorted((self.sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
            khz = _number(path)
            if khz:
                found[path.parts[-3]] = khz / 1000
        return found

    def powers(self) -> dict[str, float]:
        """Watts by sensor: hwmon, INA3221 (rails), a discharging battery, a Pi 5's PMIC (sum of its rails)."""
        found = {}
        for chip in self._chips():
            name = _text(chip / "name") or chip.name
            for path in sorted(chip.glob("power*_input")):
                micro = _number(path)
                if micro is not None:
                    label = _text(path.with_name(path.name.replace("_input", "_label"))) or path.name[:-6]
                    found[f"{name} {label}"] = micro / 1e6
            for path in sorted(chip.glob("in[0-9]*_input")):
                number = path.name[2:-6]
                milli_v, milli_a = _number(path), _number(chip / f"curr{number}_input")
                if milli_v is not None and milli_a is not None:
                    found[f"{name} {_text(chip / f'in{number}_label') or f'rail {number}'}"] = milli_v * milli_a / 1e6
        for supply in sorted((self.sys / "class/power_supply").glob("*")):
            if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging":
                power = _number(supply / "power_now")
                volts, amperes = _number(supply / "voltage_now"), _number(supply / "current_now")
                if power is None and volts is not None and amperes is not None:
                    power = volts * amperes / 1e6
                if power:
                    found[f"battery {supply.name}"] = power / 1e6
        pmic = self._pmic_w()
        return found | ({"pmic rails (no 5 V peripherals)": pmic} if pmic else {})

    def throttled(self) -> int | None:
        """The flags of a Raspberry Pi's get_throttled; None on other machines."""
        if not self._pi:
            return None
        text = _text(self._throttle_file())
        if text is None:
            text = self._command(["vcgencmd", "get_throttled"]) or ""
            text = text.partition("=")[2].strip()
        with contextlib.suppress(ValueError):
            return int(text, 16)
        return None

    def energy_counters(self) -> dict[str, tuple[float, float]]:
        """RAPL's counters in joules and where each wraps, by package."""
        found = {}
        for zone in sorted((self.sys / "class/powercap").glob("intel-rapl:[0-9]*")):
            # Zones with two colons are parts of a package.
            if zone.name.count(":") > 1:
                continue
            micro, most = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
            if micro is not None and most:
                found[f"RAPL {_text(zone / 'name') or zone.name}"] = (micro / 1e6, most / 1e6)
        return found

    def _throttle_file(self) -> Path:
        return self.sys / "devices/platform/soc/soc:firmware/get_throttled"

    def _chips(self) -> list[Path]:
        return sorted((self.sys / "class/hwmon").glob("hwmon*"))

    def _pmic_w(self) -> float | None:
        if not self._pi:
            return None
        text = self._command(["vcgencmd", "pmic_read_adc"])
        return pmic_watts(text) if text else None


def pmic_watts(text: str) -> float | None:
    """The sum over rails that have both a current and a voltage, from the lines of `vcgencmd pmic_read_adc`."""
    values: dict[str, dict[str, float]] = {}
    for rail, kind, value in re.findall(r"(\w+?)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)", text):
        values.setdefault(rail, {})[kind] = float(value)
    rails = [row["A"] * row["V"] for row in values.values() if {"A", "V"} <= row.keys()]
    return sum(rails) if rails else None


def energy_between(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Joules that counters moved, once round their end at most."""
    return {name: (after[name][0] - start) % most for name, (start, most) in before.items() if name in after}


@contextlib.contextmanager
def sampled(sensors: Sensors, every_s: float = 1.0) -> Iterator[list[dict[str, Any]]]:
    """Reads all sensors now and then on a thread of its own while the block runs.

    One reading takes a few file reads, and on a Raspberry Pi 5 a process: at 1 Hz that costs no measurable speed
    (at 50 Hz it did: 6 times slower).
    """
    rows: list[dict[str, Any]] = []
    done = threading.Event()
    start_s = time.perf_counter()

    def read() -> None:
        while True:
            rows.append({"at_s": round(time.perf_counter() - start_s, 3), **sensors.read()})
            if done.wait(every_s):
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield rows
    finally:
        done.set()
        thread.join()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
