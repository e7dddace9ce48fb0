"""Joules of a run, by sensor, and what a right answer took of them.

    with Joules(Sensors()) as joules:
        ...                              # work
        joules.totals()                  # {"RAPL package-0": 812.4}; {} where no sensor tells power or energy

Each answer is written with the totals of its run so far, as it is with the seconds: so a run that was killed and went
on is counted whole and once. A counter of energy is read as it is; a sensor of power once a second, times the seconds.
Idle power and the scoring beside generation are included. Without sensors nothing is said, never a zero.
"""

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from ...devices.machine.energy import includes
from ...devices.machine.sensors import Sensors, energy_between
from ..tasks.benchmark import Metric
from .answers import Record


class Joules:
    """Adds up energy from when it is entered until it is left.

    Args:
        sensors: of this machine.
        every_s: between two readings of power.
        clock: seconds.
    """

    def __init__(self, sensors: Sensors, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._sensors, self._every_s, self._clock = sensors, every_s, clock
        self._totals: dict[str, float] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="joules", daemon=True)

    def __enter__(self) -> "Joules":
        self._at_s, self._counters, self._powers = (
            self._clock(), self._sensors.energy_counters(), self._sensors.powers()
        )  # fmt: skip
        if self._counters or self._powers:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    def totals(self) -> dict[str, float]:
        """Joules so far, by sensor; those that stood still, as in a virtual machine, are left out."""
        with self._lock:
            self._advance()
            return {name: value for name, value in self._totals.items() if value > 0}

    def _advance(self) -> None:
        counters, at_s = self._sensors.energy_counters() if self._counters else {}, self._clock()
        moved = energy_between(self._counters, counters)
        for name, watts in self._powers.items():
            moved[name] = watts * (at_s - self._at_s)
        for name, value in moved.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        self._at_s, self._counters = at_s, counters

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            # A reading may take a process; the lock is not held for it
            powers = self._sensors.powers()
            with self._lock:
                self._advance()
                self._powers = powers


def energy_rows(records: Iterable[Record], metric: Metric) -> list[dict[str, Any]]:
    """A row for each sensor over all answers of runs that it saw; no rows if none did.

    Args:
        metric: the task's main one: what a right answer is, where it is binary.

    Returns:
        sensor, includes, joules, n_answers, joules_per_answer, and joules_per_correct: None if no answer is right
        or the metric is not of right and wrong.
    """
    by_run: dict[int, list[Record]] = {}
    for record in records:
        by_run.setdefault(record.run, []).append(record)
    joules: dict[str, float] = {}
    seen: dict[str, list[Record]] = {}
    for answers in by_run.values():
        last = max(answers, key=lambda record: record.at_s).energy_j or {}
        for name, value in last.items():
            joules[name] = joules.get(name, 0.0) + value
            seen.setdefault(name, []).extend(answers)
    rows = []
    for name, value in joules.items():
        n = len(seen[name])
        n_correct = sum(record.scores.get(metric.source, 0.0) for record in seen[name]) if metric.binary else 0.0
        rows.append(
            {
                "sensor": name,
                "includes": includes(name),
                "joules": round(value, 3),
                "n_answers": n,
                "joules_per_answer": value / n,
                "joules_per_correct": value / n_correct if n_correct else None,
            }
        )
    return rows
