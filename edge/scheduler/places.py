"""The rows of an engine: who computes in which, and what those hold that are free.

A row that is free keeps the keys and values of what was computed in it last, until its place is needed: a request goes
into the free row that holds most of its prompt, else into one that was never used, else into the one that was used
longest ago. Where no row is free, an answer that has more than its share of them is laid aside for one that has less.
"""

from collections.abc import Sequence
from typing import Generic

from ..answer.engine import RowsT
from ..prefix.chunks import Section
from .flows import Flow, Turns
from .job import Job


class Places(Generic[RowsT]):
    """The rows.

    Args:
        fast: what was computed in other pieces counts as computed.

    Attributes:
        n_parked: how often an answer was laid aside.
        aside_bytes: what those that are aside hold.
    """

    def __init__(self, rows: RowsT, n_rows: int, turns: Turns, *, fast: bool) -> None:
        self._rows = rows
        self._turns = turns
        self._fast = fast
        self._jobs: list[Job | None] = [None] * n_rows
        # When each was used last, by a count of uses; 0: it holds nothing
        self._used = [0] * n_rows
        self._n_uses = 0
        self.n_parked = 0
        self.aside_bytes = 0

    @property
    def jobs(self) -> list[Job]:
        """Requests in rows, by row."""
        return [job for job in self._jobs if job is not None]

    @property
    def _free(self) -> list[int]:
        return [row for row, job in enumerate(self._jobs) if job is None]

    def can_have(self, flow: Flow) -> bool:
        """Whether a request of a flow that waits could have a row now."""
        return bool(flow.waiting) and (bool(self._free) or self._victim(flow) is not None)

    def give(self, job: Job, sections: Sequence[Section]) -> None:
        """Gives a waiting request a row; `can_have` was true. What was laid aside is there again.

        Raises:
            EngineError: llama.cpp does not take back what was laid aside; the row stays free.
        """
        flow = self._turns.flow(job)
        if not self._free:
            victim = self._victim(flow)
            assert victim is not None
            self._lay_aside(victim)
        aside = job.aside
        row = self._best(job.request.prompt, sections, anew=aside is not None)
        if aside is not None:
            job.aside = None
            self.aside_bytes -= aside.size_bytes
            self._rows.hold(self.aside_bytes)
            self._rows.put_back(row, aside)
        self._jobs[row], job.row = job, row
        self._touch(row)
        flow.waiting.remove(job)
        flow.running.append(job)

    def leave(self, job: Job, *, clean: bool = False) -> None:
        """A request needs its row, or what was laid aside of it, no more; `clean`: nobody may use what is in it."""
        if job.aside is not None:
            self.aside_bytes -= job.aside.size_bytes
            self._rows.hold(self.aside_bytes)
            job.aside = None
        row, job.row = job.row, None
        if row is None:
            return
        self._jobs[row] = None
        self._touch(row)
        if clean:
            self._rows.release(row)
            self._used[row] = 0

    def _touch(self, row: int) -> None:
        self._n_uses += 1
        self._used[row] = self._n_uses

    def _best(self, prompt: Sequence[int], sections: Sequence[Section], *, anew: bool) -> int:
        """The free row for a prompt; `anew`: what it holds is of no use."""
        kept = {row: 0 if anew else self._rows.kept(row, prompt, sections, self._fast) for row in self._free}
        return max(kept, key=lambda row: (kept[row], -self._used[row]))

    def _victim(self, flow: Flow) -> Job | None:
        """Whose answer is laid aside for a request of `flow`: the newest one of the flow with the most rows."""
        awake = self._turns.awake
        share = max(1, len(self._jobs) // len(awake))
        others = [other for other in awake if other is not flow and other.running]
        if len(flow.running) >= share or not others:
            return None
        most = max(others, key=lambda other: (len(other.running), other.spent_s))
        # With more flows than rows each has one in turn.
        if len(most.running) <= share and (flow.running or most.spent_s <= flow.spent_s):
            return None
        job = most.running[-1]
        assert job.row is not None
        return job if self._rows.has_room(self.aside_bytes + self._rows.aside_bytes(job.row)) else None

    def _lay_aside(self, job: Job) -> None:
        flow = self._turns.flow(job)
        assert job.row is not None
        job.filling = None
        self._rows.hold(self.aside_bytes + self._rows.aside_bytes(job.row))
        job.aside = self._rows.lay_aside(job.row)
        self.aside_bytes += job.aside.size_bytes
        self.n_parked += 1
        self._jobs[job.row], self._used[job.row] = None, 0
        job.row = None
        flow.running.remove(job)
        flow.waiting.appendleft(job)
