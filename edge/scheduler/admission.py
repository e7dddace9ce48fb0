"""How long a new request would wait until it is begun, from what was measured and what is to do.

A flow's requests are begun one after the other as its rows become free; while it gets some seconds of the engine, each
other flow gets as many, as far as it has work. So the wait is the flow's own time to a free row, had it the engine for
itself, and for each other flow the same time again or its whole work, whichever is less.
"""

import heapq
from collections.abc import Collection
from typing import Final

from .flows import SLICE_STEPS, SLICE_SWAPS
from .job import Job
from .pace import Pace

# An answer's length where none of the adapter's was seen yet
_USUAL_TOKENS: Final = 100
# What one answer counts for beside those before it
_SHARE: Final = 0.1


class Expected:
    """What is known of an adapter's requests, and from it the waiting time; used under one lock.

    Args:
        n_rows: answers that are computed side by side.
    """

    def __init__(self, pace: Pace, n_rows: int) -> None:
        self._pace = pace
        self._n_rows = n_rows
        # By adapter: mean length of answers, and which part of a prompt was computed
        self._answers: dict[str, float] = {}
        self._computed: dict[str, float] = {}

    def learn(self, job: Job) -> None:
        """A request was answered."""
        if job.growing is None or job.growing.reason is None:
            return
        n_prompt, n_answer = len(job.request.prompt), float(len(job.growing.ids))
        if job.growing.reason == "max_tokens":
            # It would have gone on.
            n_answer = max(n_answer, self._answers.get(job.name, 0.0))
        if job.request.ignore_eos:
            # Its length says nothing of others.
            n_answer = self._answers.get(job.name, float(_USUAL_TOKENS))
        for known, now in (
            (self._answers, n_answer),
            (self._computed, (n_prompt - job.growing.n_kept_tokens) / n_prompt),
        ):
            before = known.get(job.name)
            known[job.name] = now if before is None else before + _SHARE * (now - before)

    def work_s(self, job: Job, n_rows: int) -> float:
        """Seconds of the engine that a request needs still, where so many are computed side by side."""
        left = len(job.request.prompt) - job.n_filled
        request = job.request
        usual = max(self._answers.get(job.name, _USUAL_TOKENS), request.min_tokens, 1.0)
        n_answer = request.max_tokens if request.ignore_eos else min(request.max_tokens, usual)
        if job.growing is None:
            left = round(left * self._computed.get(job.name, 1.0))
        else:
            n_answer -= len(job.growing.ids)
        return self._pace.token_s * left + max(n_answer, 1.0) * self._pace.step_s(n_rows) / n_rows

    def wait_s(self, new: Job, jobs: Collection[Job]) -> float:
        """Seconds until a new request would be begun, behind all these."""
        flows: dict[object, list[Job]] = {}
        for job in jobs:
            flows.setdefault(job.flow, []).append(job)
        own = flows.pop(new.flow, [])
        n_side_by_side = min(self._n_rows, len(jobs) + 1)
        n_own = max(1, self._n_rows // (len(flows) + 1), self._n_rows - len(jobs) + len(own))
        others_s = [sum(self.work_s(job, n_side_by_side) for job in flow) for flow in flows.values()]
        # Rows of the flow, by when each is free if the flow has the engine for itself
        free_s = [0.0] * n_own
        own.sort(key=lambda job: (job.row is None, job.arrived_s))
        for job in own:
            heapq.heapreplace(free_s, free_s[0] + self.work_s(job, min(n_own, len(own))) * min(n_own, len(own)))
        alone_s = free_s[0]
        n_groups = len({job.group for job in jobs} | {new.group})
        slice_s = max([self._slice_s(), *(self._pace.chunk_s(job.next_tokens) for job in jobs)])
        return alone_s + sum(min(other, alone_s) for other in others_s) + (n_groups - 1) * slice_s

    def _slice_s(self) -> float:
        return max(SLICE_STEPS * self._pace.step_s(self._n_rows), SLICE_SWAPS * self._pace.swap_s)
