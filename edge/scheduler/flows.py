"""Whose turn it is: the engine's measured seconds are shared between flows, a flow being one key with one adapter set.

Each flow has an account of the seconds that were spent on it. The adapters of the flow with the least go next, for a
slice of max(8 steps, 20 swaps), so that swaps take at most a twentieth; all flows of these adapters are computed
together then. A flow that wakes begins at the account that was served last, less one slice at most of what it is owed:
who asks again at once loses nothing by the moment between, and nobody saves up for a long sleep. Those that woke before
are never overtaken by that. So with k adapter sets at work a new request's first unit of work begins within
(k - 1) x max(slice, one chunk).
"""

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from .job import Group, Job
from .pace import Pace

SLICE_STEPS: Final = 8
SLICE_SWAPS: Final = 20
# Accounts of flows that sleep
_MOST_KNOWN: Final = 1024


@dataclass(eq=False)
class Flow:
    """Requests of one key for one set of adapters.

    Attributes:
        spent_s: its account.
        waiting: those without a row, the next one first.
        running: those in rows, the newest last.
        stuck: its adapters do not fit beside those that answer now.
    """

    key: str
    group: Group
    spent_s: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    stuck: bool = False

    @property
    def awake(self) -> bool:
        """Whether there is anything to do for it."""
        return bool(self.waiting or self.running)


class Turns:
    """The accounts, and the slice that is being computed.

    Attributes:
        group: the adapters whose slice it is.
        slice_s: what it took so far.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._flows: dict[tuple[str, Group], Flow] = {}
        # The largest account that a slice was given to; it never goes back.
        self._served_s = 0.0
        self.group: Group | None = None
        self.slice_s = 0.0

    @property
    def awake(self) -> list[Flow]:
        """Flows with anything to do."""
        return [flow for flow in self._flows.values() if flow.awake]

    def of(self, group: Group) -> list[Flow]:
        """Flows of some adapters with anything to do, the one that is owed most first."""
        return sorted((flow for flow in self.awake if flow.group == group), key=lambda flow: flow.spent_s)

    def flow(self, job: Job) -> Flow:
        """The flow of a request."""
        return self._flows[job.flow]

    def add(self, job: Job) -> None:
        """A new request, behind those of its flow."""
        flow = self._flows.get(job.flow)
        if flow is None:
            self._forget_some()
            flow = self._flows[job.flow] = Flow(*job.flow)
        if not flow.awake:
            flow.spent_s = max(flow.spent_s, self._served_s - self.limit_s())
        flow.waiting.append(job)

    def remove(self, job: Job) -> None:
        """A request that has ended."""
        flow = self.flow(job)
        if job in flow.running:
            flow.running.remove(job)
        elif job in flow.waiting:
            flow.waiting.remove(job)
        for other in self._flows.values():
            other.stuck = False

    def charge(self, jobs: Collection[Job], took_s: float) -> None:
        """Seconds that were spent on requests of the slice's adapters, alike."""
        self.slice_s += took_s
        for job in jobs:
            self.flow(job).spent_s += took_s / len(jobs)

    def choose(self, able: Callable[[Flow], bool], next_s: Callable[[Group], float]) -> Group | None:
        """The adapters that are to compute the next unit; None if nothing can be done.

        Args:
            able: whether something can be done for a flow now.
            next_s: how long the next unit of some adapters will take.
        """
        flows = [flow for flow in self.awake if not flow.stuck and able(flow)]
        if not flows:
            return None
        groups = {flow.group for flow in flows}
        if self.group is not None and self.group in groups:
            rest_s = self.limit_s() - self.slice_s
            if len(groups) == 1 or next_s(self.group) <= rest_s:
                return self.group
        chosen = min(flows, key=lambda flow: (flow.spent_s, flow.group == self.group))
        self._served_s = max(self._served_s, chosen.spent_s)
        self.group, self.slice_s = chosen.group, 0.0
        return chosen.group

    def limit_s(self) -> float:
        """How long a slice is."""
        n_rows = sum(len(flow.running) for flow in self._flows.values() if flow.group == self.group)
        return max(SLICE_STEPS * self._pace.step_s(max(n_rows, 1)), SLICE_SWAPS * self._pace.swap_s)

    def _forget_some(self) -> None:
        asleep = [name for name, flow in self._flows.items() if not flow.awake]
        for name in asleep[: max(0, len(asleep) - _MOST_KNOWN)]:
            del self._flows[name]
