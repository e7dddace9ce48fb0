"""How busy other processes keep the CPUs, and how many of these computing may use meanwhile.

others = OthersCores()
…
others()        # 1.02: since then one other process computed all the time

room = Room()
threads = room.begin(4)
…               # compute on so many threads
room.end()

Threads that compute one token wait for each other hundreds of times. While one of them has lost its core to another
process, all others spin: two threads beside one busy process are 2 to 40 times slower than one. So there are fewer
as soon as two things are seen together: the threads got less CPU time than they asked for, and other processes took it.
There are more again when the others' CPUs fall idle. Who is nice (`nice 10`) may take nothing away: beside such
processes more threads are tried from time to time, and kept if they get their CPU time.

`Threads` are those of one context of llama.cpp. Their number is one that was given, or as many as the machine has room
for. The bits of a prompt do not depend on it, nor do those of single tokens while at most 256 are in the cache. Beyond
that flash attention splits one token's keys and values among the threads, and adds the parts up in another order. So a
single token that belongs to a prompt is computed on one thread where the number is left open: a kept prefix is the same
then.
"""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import InputError
from .machine import allowed_cpus, default_decode_threads, default_threads

STAT: Final = Path("/proc/stat")
TASKS: Final = Path("/proc/self/task")
# Columns of a CPU's line in /proc/stat that are work: user, nice, system, irq, softirq, steal (others' too).
# Guests' time is counted in user's as well.
_WORK: Final = (0, 1, 2, 5, 6, 7)
_NICE: Final = 1
# How often the counters are read. The system counts in ticks of 10 ms.
WINDOW_S: Final = 0.1
# After so long without computing, what is known is old: then who runs is looked at so often, so far apart.
STALE_S: Final = 2.0
LOOKS: Final = 3
LOOK_S: Final = 0.002
# Others may take so much of a CPU before it counts as taken.
SLACK_CPUS: Final = 0.3
# Threads that together get so much less than the CPU time that they ask for stand in somebody's way.
LOST_CPUS: Final = 0.2
# How long after a step down the next step up may come; doubled each time when it was wrong within `WRONG_S`.
FIRST_HOLD_S: Final = 0.25
LONGEST_HOLD_S: Final = 30.0
WRONG_S: Final = 1.0


def busy_seconds(cpus: set[int], stat: Path = STAT) -> tuple[float, float]:
    """Seconds that all processes together computed on `cpus` since the system started, and those of niced ones in it.

    Outside of Linux on all CPUs. Where the system does not count, all is 0: nobody seems busy.
    """
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return _busy_elsewhere()
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    work = niced = 0
    for line in lines[1:]:
        name, *counts = line.split()
        if not name.startswith("cpu"):
            break
        if int(name[3:]) in cpus:
            work += sum(int(counts[at]) for at in _WORK if at < len(counts))
            niced += int(counts[_NICE])
    return work * tick_s, niced * tick_s


def _busy_elsewhere() -> tuple[float, float]:
    import psutil

    times = psutil.cpu_times()
    return times.user + getattr(times, "nice", 0.0) + times.system, getattr(times, "nice", 0.0)


def n_running(stat: Path = STAT) -> int | None:
    """Threads of the whole system that run or wait for a CPU at this moment, this one among them; None: not told."""
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("procs_running ")), None)


def n_running_here(tasks: Path = TASKS) -> int:
    """Threads of this process that run or wait for a CPU at this moment, this one too; 1 where it is not told."""
    n = 0
    for task in tasks.glob("*/stat"):
        with contextlib.suppress(OSError):
            # The name before it may hold anything, parentheses and spaces too.
            n += task.read_text(encoding="ascii", errors="replace").rpartition(") ")[2].startswith("R")
    return max(1, n)


class OthersCores:
    """Cores that other processes keep busy, from its making to each call."""

    def __init__(self) -> None:
        self._cpus = allowed_cpus()
        self._start = self._now()

    def _now(self) -> tuple[float, float]:
        """Seconds: that other processes computed, and of the clock."""
        return busy_seconds(self._cpus)[0] - time.process_time(), time.perf_counter()

    def __call__(self) -> float:
        others_s, now_s = self._now()
        return max(others_s - self._start[0], 0.0) / max(now_s - self._start[1], 1e-3)


def busy_words(others_cores: float, threads: int) -> str | None:
    """For people: that other processes make so many threads slower; None while they do not."""
    if not is_busy(others_cores, threads):
        return None
    return f"the machine is busy: other processes kept {others_cores:.1f} of {len(allowed_cpus())} CPUs"


def is_busy(others_cores: float, threads: int) -> bool:
    """Whether other processes keep so many cores busy that the speed of so many threads shows it."""
    return others_cores > 0.15 + 0.05 * threads


class Machine(Protocol):
    """What is asked of the system."""

    n_cpus: int

    def now(self) -> float:
        """Seconds of a clock."""

    def own(self) -> float:
        """Seconds of CPU time that this process took."""

    def busy(self) -> tuple[float, float]:
        """Seconds of CPU time that all processes took, and those of niced ones in it that count as polite."""

    def running(self) -> int | None:
        """Threads that run or wait for one of these CPUs now, of this process this one alone; None: not known."""


class ThisMachine:
    """The CPUs that this process may use."""

    def __init__(self) -> None:
        self._cpus = allowed_cpus()
        self.n_cpus = len(self._cpus)
        # To a niced process other niced ones are equals.
        self._is_nice = hasattr(os, "getpriority") and os.getpriority(os.PRIO_PROCESS, 0) > 0

    now = staticmethod(time.perf_counter)
    own = staticmethod(time.process_time)

    def busy(self) -> tuple[float, float]:
        """As `Machine.busy`."""
        work_s, niced_s = busy_seconds(self._cpus)
        return work_s, 0.0 if self._is_nice else niced_s

    def running(self) -> int | None:
        """As `Machine.running`; None where other CPUs than these are counted too."""
        if self.n_cpus != os.cpu_count():
            return None
        # Threads of ours spin for a while when they have computed: they stand in nobody's way.
        return fewest(lambda: None if (running := n_running()) is None else running - n_running_here() + 1)


def fewest(look: Callable[[], int | None]) -> int | None:
    """The least of `LOOKS` looks at who runs, at least 1; None: not known.

    Who wants a CPU for a moment is no busy process, so the looks are `LOOK_S` apart. They end where nobody else runs:
    on an idle machine a prompt after a pause waits for none.
    """
    least = look()
    for _ in range(LOOKS - 1):
        if least is None or least <= 1:
            break
        time.sleep(LOOK_S)
        now = look()
        least = least if now is None else min(least, now)
    return None if least is None else max(1, least)


class Room:
    """The CPUs that computing may use now.

    Attributes:
        n_cpus: that there are.
        cpus: that may be used, 1 to `n_cpus`.
        others_cpus: that other processes kept busy when they were last looked at.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or ThisMachine()
        self.n_cpus = self.cpus = self._machine.n_cpus
        self.others_cpus = 0.0
        self._threads = 1
        self._hold_s = FIRST_HOLD_S
        self._hold_until_s = self._raised_s = -math.inf
        self._began = (0.0, 0.0)
        self._start(self._machine.now())

    def _start(self, now_s: float) -> None:
        """Begins a window."""
        self._since_s = now_s
        self._counters = (self._machine.own(), *self._machine.busy())
        # Seconds of computing, and CPU time that the threads asked for and did not get
        self._computed_s = self._lost_s = 0.0

    def begin(self, most: int) -> int:
        """How many threads, of at most `most`, shall compute what begins now; `end` follows it."""
        now_s = self._machine.now()
        if now_s - self._since_s >= WINDOW_S:
            self._look(now_s)
        self._threads = min(most, self.cpus)
        self._began = now_s, self._machine.own()
        return self._threads

    def end(self) -> None:
        """What began has been computed."""
        began_s, own_s = self._began
        took_s = self._machine.now() - began_s
        self._computed_s += took_s
        self._lost_s += self._threads * took_s - (self._machine.own() - own_s)

    def _look(self, now_s: float) -> None:
        own_s, busy_s, niced_s = self._counters
        computed_s, lost_s, passed_s = self._computed_s, self._lost_s, now_s - self._since_s
        self._start(now_s)
        idle = computed_s < passed_s / 4
        if idle and passed_s > STALE_S:
            running = self._machine.running()
            if running is not None:
                self._set(now_s, self._free(running - 1))
            return
        own_s, busy_s, niced_s = (
            now - then for now, then in zip(self._counters, (own_s, busy_s, niced_s), strict=True)
        )
        self.others_cpus = max(0.0, busy_s - own_s) / passed_s
        free = self._free(self.others_cpus)
        if idle:
            # Before the first prompt, or between two
            self._set(now_s, free)
        elif free < self._threads:
            if lost_s > LOST_CPUS * computed_s:
                self._set(now_s, free)
        elif now_s >= self._hold_until_s:
            self._set(now_s, max(free, self._free(self.others_cpus - niced_s / passed_s)))

    def _free(self, others_cpus: float) -> int:
        return min(max(1, math.floor(self.n_cpus - others_cpus + SLACK_CPUS)), self.n_cpus)

    def _set(self, now_s: float, cpus: int) -> None:
        if cpus < self.cpus:
            self._hold_s = min(2 * self._hold_s, LONGEST_HOLD_S) if now_s - self._raised_s < WRONG_S else FIRST_HOLD_S
            self._hold_until_s = now_s + self._hold_s
        elif cpus > self.cpus:
            self._raised_s = now_s
        self.cpus = cpus


@functools.cache
def room() -> Room:
    """This process's: whatever computes in it stands in the same room."""
    return Room()


# GGML_MAX_N_THREADS of ggml.h
MAX_THREADS: Final = 512


class Threads:
    """The numbers of threads of one context.

    Args:
        llama: the binding.
        one, many: for single tokens, and for prompts and batches. None: `many` is as `one` or the fast physical cores,
            `one` is `machine.default_decode_threads`, and fewer while other processes want the CPUs.

    Attributes:
        one, many: the most that are used.
        given: as they were given.
        adapts: whether fewer may be used.
        llama: the binding, where a proof may put a clock around `llama_decode`.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, llama: Any, one: int | None, many: int | None) -> None:
        for number in (one, many):
            if number is not None and not 1 <= number <= MAX_THREADS:
                raise InputError(f"{number} threads are asked for; 1 to {MAX_THREADS} are allowed")
        self.given = one, many
        self.one: int = one or default_decode_threads()
        self.many: int = many or one or default_threads()
        self.adapts = one is None and max(self.one, self.many) > 1
        self._many_adapts = many is None
        self.llama = llama
        self._set = (self.one, self.many)

    @property
    def now(self) -> int:
        """For the next single token."""
        return min(self.one, room().cpus) if self.adapts else self.one

    @property
    def many_now(self) -> int:
        """For the next prompt or batch."""
        return min(self.many, room().cpus) if self.adapts and self._many_adapts else self.many

    def decode(self, handle: Any, batch: Any, steady: bool = False) -> int:
        """`llama_decode` on as many threads as there is room for; returns its code.

        Args:
            steady: a single token is computed on one thread.
        """
        llama_decode = self.llama.llama_decode
        if not self.adapts:
            return int(llama_decode(handle, batch))
        space, (one, many) = room(), self._set
        if batch.n_tokens > 1:
            measured = self._many_adapts
            many = space.begin(self.many) if measured else many
        else:
            measured = not steady
            one = space.begin(self.one) if measured else 1
        if (one, many) != self._set:
            self.llama.llama_set_n_threads(handle, one, many)
            self._set = one, many
        code = int(llama_decode(handle, batch))
        if measured:
            space.end()
        return code
