"""The controller of threads beside a scheduler that is simulated, and what it reads beside processes that are real."""

import multiprocessing
import os
import time

import psutil
import pytest
from slm_edge.edge.system.load import (
    LONGEST_HOLD_S,
    OthersCores,
    Room,
    ThisMachine,
    busy_seconds,
    fewest,
    is_busy,
    n_running,
)
from slm_edge.edge.system.machine import allowed_cpus

TICK_S = 0.01


class Scheduler:
    """A machine on which time passes by `work` and `wait` alone.

    Its CPUs are shared evenly by all who want one; who is polite gets a twentieth of a share. Counters of all
    processes come in ticks, as the kernel's do.
    """

    def __init__(self, n_cpus, others=0.0, polite=0.0, running=None):
        self.n_cpus, self.others, self.polite = n_cpus, others, polite
        self._running = running
        self.now_s = self.own_s = self.others_s = self.polite_s = 0.0

    def now(self):
        return self.now_s

    def own(self):
        return self.own_s

    def busy(self):
        def ticks(seconds):
            return int(seconds / TICK_S) * TICK_S

        return ticks(self.own_s + self.others_s + self.polite_s), ticks(self.polite_s)

    def running(self):
        return self._running

    def work(self, threads, seconds):
        """What of its CPU time the process gets in so many seconds on so many threads."""
        wanted = threads + self.others + self.polite / 20
        share = min(1.0, self.n_cpus / max(wanted, 1.0))
        self.now_s += seconds
        self.own_s += share * threads * seconds
        self.others_s += share * self.others * seconds
        self.polite_s += min(self.polite, max(self.polite * share / 20, self.n_cpus - wanted)) * seconds

    def wait(self, seconds):
        self.work(0, seconds)


def compute(room, machine, seconds, *, most=None, token_s=0.01):
    """The numbers of threads that it goes on with, each once in a row."""
    seen = []
    end_s = machine.now() + seconds
    while machine.now() < end_s:
        threads = room.begin(most or machine.n_cpus)
        machine.work(threads, token_s)
        room.end()
        if not seen or seen[-1] != threads:
            seen.append(threads)
    return seen


@pytest.mark.parametrize(
    ("n_cpus", "others", "threads"),
    [(2, 0, 2), (2, 1, 1), (2, 2, 1), (4, 0, 4), (4, 1, 3), (4, 2, 2), (4, 4, 1), (1, 3, 1), (16, 1, 15), (2, 0.1, 2)],
)
def test_others_cpus_are_left_to_them(n_cpus, others, threads):
    machine = Scheduler(n_cpus)
    room = Room(machine)
    assert compute(room, machine, 1.0) == [n_cpus]
    machine.others = others
    assert compute(room, machine, 2.0)[-1] == threads
    machine.others = 0
    assert compute(room, machine, 2.0)[-1] == n_cpus


def test_a_busy_machine_is_known_before_the_first_prompt():
    machine = Scheduler(2, others=1)
    room = Room(machine)
    machine.wait(0.3)
    assert compute(room, machine, 1.0) == [1]


def test_after_a_pause_it_counts_who_runs_at_that_moment():
    machine = Scheduler(4, running=3)
    room = Room(machine)
    compute(room, machine, 1.0)
    machine.wait(60.0)
    machine.others = 2
    assert compute(room, machine, 1.0) == [2]
    machine = Scheduler(4, running=None)
    room = Room(machine)
    machine.wait(60.0)
    assert room.begin(4) == 4


@pytest.mark.parametrize(
    ("seen", "found", "looks"),
    [
        ([1, 5, 5], 1, 1),  # idle: the first prompt after a pause is not held up by further looks
        ([0, 5, 5], 1, 1),
        ([3, 2, 3], 2, 3),
        ([2, 1, 3], 1, 2),
        ([2, None, 3], 2, 3),
        ([None, 2, 2], None, 1),
    ],
)
def test_who_runs_is_looked_at_again_only_while_somebody_does(seen, found, looks):
    left = list(seen)
    assert fewest(lambda: left.pop(0)) == found
    assert len(seen) - len(left) == looks


def test_threads_that_get_their_time_stay():
    # Another process takes what is left: two threads of ours on four CPUs stand in nobody's way.
    machine = Scheduler(4, others=2)
    room = Room(machine)
    assert compute(room, machine, 3.0, most=2) == [2]
    # So it is beside one that is nice.
    machine = Scheduler(2, polite=1)
    room = Room(machine)
    machine.wait(0.3)
    assert compute(room, machine, 3.0)[-1] == 2


def test_who_is_nice_but_in_the_way_is_tried_less_and_less_often():
    class Stubborn(Scheduler):
        """Counts as polite, and takes as much as anybody."""

        def busy(self):
            work_s, _ = super().busy()
            return work_s, self.others_s

    machine = Stubborn(2, others=1)
    room = Room(machine)
    seen = compute(room, machine, 300.0)
    assert 4 <= seen.count(2) < 20
    assert seen.count(2) <= 8 + 300 / LONGEST_HOLD_S


def test_short_bursts_of_others_do_not_make_it_swing():
    machine = Scheduler(2)
    room = Room(machine)
    swings = 0
    for burst in range(100):
        machine.others = burst % 2
        swings += len(compute(room, machine, 0.15)) - 1
    assert swings <= 60
    machine.others = 0
    assert compute(room, machine, 3.0)[-1] == 2


def test_a_system_that_counts_nothing_leaves_all_threads(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\nintr 0\n")
    assert busy_seconds({0}, stat) == (0.0, 0.0)
    assert n_running(stat) is None
    stat.write_text("cpu  9 9 9 9\ncpu0 100 20 30 900 5 1 2 7 0 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nprocs_running 3\n")
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert busy_seconds({0}, stat) == (160 * tick_s, 20 * tick_s)
    assert n_running(stat) == 3
    work_s, _ = busy_seconds({0}, tmp_path / "none")
    assert work_s > 0


def spin(end_s):
    while time.monotonic() < end_s:
        pass


def test_it_sees_real_processes():
    cpus = allowed_cpus()
    machine = ThisMachine()
    assert machine.n_cpus == len(cpus)
    work_s, niced_s = machine.busy()
    times = [psutil.cpu_times(percpu=True)[cpu] for cpu in sorted(cpus)]
    theirs_s = sum(one.user + one.nice + one.system + one.irq + one.softirq + one.steal for one in times)
    assert work_s == pytest.approx(theirs_s, abs=2 * len(cpus))
    assert niced_s <= work_s
    others = OthersCores()
    processes = [multiprocessing.get_context("spawn").Process(target=spin, args=(time.monotonic() + 1.5,))]
    for process in processes:
        process.start()
    while others() < 0.2 and any(process.is_alive() for process in processes):
        time.sleep(0.05)
    assert others() >= 0.2
    assert is_busy(others(), 1)
    for process in processes:
        process.join()
