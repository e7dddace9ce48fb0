"""Joules per token of a stretch of work, by sensor, each with what its figure includes.

    meter = Meter(sensors, samples)          # samples: the list that `sensors.sampled` fills
    …                                        # the work
    meter.rows(seconds, n_tokens)            # [{"sensor": "RAPL package-0", "joules_per_token": 0.21, …}]

A counter of energy is read before and after; of a sensor of power the mean reading counts, times the seconds. The
power that the device draws when idle is in all of them. Without sensors there are no rows, never a zero.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .sensors import Sensors, energy_between


class Meter:
    """Begins to measure when it is made.

    Args:
        sensors: of the machine.
        samples: readings so far, to which a thread adds.
    """

    def __init__(self, sensors: Sensors, samples: Sequence[Mapping[str, Any]]) -> None:
        self._sensors = sensors
        self._samples = samples
        self._n_before = len(samples)
        self._counters = sensors.energy_counters()

    def rows(self, seconds: float, n_tokens: int) -> list[dict[str, Any]]:
        """One row for each sensor since the beginning.

        Args:
            seconds: that passed.
            n_tokens: that were computed in them.
        """
        joules = energy_between(self._counters, self._sensors.energy_counters())
        powers = [row["power_w"] for row in self._samples[self._n_before :] if "power_w" in row]
        for name in dict.fromkeys(name for row in powers for name in row):
            joules[name] = seconds * statistics.fmean(row[name] for row in powers if name in row)
        return [
            {"sensor": name, "joules": value, "joules_per_token": value / n_tokens, "includes": includes(name)}
            for name, value in joules.items()
            # A counter that stood still, as in a virtual machine, tells nothing.
            if value > 0 and n_tokens
        ]


def includes(sensor: str) -> str:
    """What a figure of `sensors.Sensors` includes, in words."""
    if sensor.startswith("RAPL psys"):
        return "the whole platform as the processor's maker defines it, idle power included"
    if sensor.startswith("RAPL"):
        return "the processor's package, not memory modules, disk, screen or supply; idle power included"
    if sensor.startswith("pmic"):
        return "the rails behind the power controller, not 5 V peripherals or the supply; idle power included"
    if sensor.startswith("battery"):
        return "the whole machine on battery, screen included; idle power included"
    return "what this sensor sits on, see its board's manual; idle power included"
