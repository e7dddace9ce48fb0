"""What the engine's thread does: takes requests in, computes one unit of work at a time, hands pieces of text out.

A unit is a prompt, or one token for each answer in the making; between two units requests join, leave, are cancelled.
All of it belongs to one thread.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from ..answer.base import SessionBase
from ..answer.growing import Growing
from ..errors import EngineError, SlmEdgeError
from .job import Job, piece_of
from .stats import Stats
from .ticket import Piece, Ticket, wake


class Core:
    """Requests over the rows of one session.

    Args:
        n_rows: answers computed side by side.
        on_end: told of each request that has ended.

    Raises:
        DoesNotFitError: there is no memory for the rows.
    """

    def __init__(self, session: SessionBase[Any], n_rows: int, on_end: Callable[[Job], object]) -> None:
        self._session = session
        self._on_end = on_end
        self._n_rows = n_rows
        self._rows = session.row_maker()(n_rows, session.n_ctx_tokens)
        session.held = self._held
        # Names of the adapters in memory, for other threads
        self.loaded = frozenset(session.loaded_adapters)
        self._waiting: list[Job] = []
        self._active: dict[int, Job] = {}
        self._fresh: set[Ticket] = set()
        self._n_ended: Counter[str] = Counter()
        self._tokens: dict[str, Counter[str]] = {kind: Counter() for kind in ("prompt", "answer", "kept")}
        self._work_s: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._n_swaps = 0
        self._n_hits = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._active)

    def add(self, job: Job) -> None:
        """A request that was admitted."""
        if job.ticket.done:
            self._end(job)
            return
        self._waiting.append(job)

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request, wherever it is."""
        for job in [job for job in (*self._waiting, *self._active.values()) if job.ticket is ticket]:
            self._fail(job, EngineError("the request was cancelled"), "cancelled")
        self._tell()

    def cancel_all(self) -> int:
        """Ends every request; how many there were."""
        jobs = [*self._active.values(), *self._waiting]
        for job in jobs:
            self._fail(job, EngineError("the engine was closed before the answer was whole"), "cancelled")
        self._tell()
        return len(jobs)

    def work(self) -> None:
        """Computes one unit and tells whoever waits for it."""
        job = self._next()
        if job is not None:
            self._begin(job)
        elif self._active:
            self._step()
        if not self.busy:
            self._rows.flush()
        self._tell()

    def flush(self) -> None:
        """Writes to disk what waits for it."""
        self._rows.flush()

    def close(self) -> None:
        """Ends every request and frees the rows."""
        self.cancel_all()
        self._rows.close()

    def stats(self, adapter_name: Callable[[str], str]) -> Stats:
        """A snapshot; `adapter_name` gives the public name of the session's."""
        return Stats(
            n_rows=self._n_rows,
            running=Counter(_name(job) for job in self._active.values()),
            waiting=Counter(_name(job) for job in self._waiting),
            n_answered=self._n_ended["answered"],
            n_cancelled=self._n_ended["cancelled"],
            n_failed=self._n_ended["failed"],
            prompt_tokens=Counter(self._tokens["prompt"]),
            answer_tokens=Counter(self._tokens["answer"]),
            kept_tokens=Counter(self._tokens["kept"]),
            work_s=dict(self._work_s),
            n_swaps=self._n_swaps,
            n_parked=0,
            parked_bytes=0,
            loaded_bytes={adapter_name(name): n for name, n in self._session.loaded_adapters.items()},
            prefix_bytes=0,
            n_prefix_hits=self._n_hits,
            plan=self._session.plan,
        )

    def _held(self) -> set[str]:
        return {name for job in self._active.values() for name, _ in job.bound.choice.scales}

    def _next(self) -> Job | None:
        """The request whose prompt is computed now."""
        if not self._waiting or len(self._active) == self._n_rows:
            return None
        if not self._active:
            return self._waiting.pop(0)
        running = next(iter(self._active.values())).bound.choice.scales
        if self._waiting[0].bound.choice.scales != running:
            return None
        return self._waiting.pop(0)

    def _begin(self, job: Job) -> None:
        row = min(set(range(self._n_rows)) - set(self._active))
        start_s = time.perf_counter()
        try:
            sections = job.request.sections()
            self.loaded = frozenset(self._session.loaded_adapters)
            job.growing, job.row = Growing(job.request, job.sampler, start_s), row
            self._active[row] = job
            job.ticket.begun()
            kept = self._rows.prefill(row, job.request.prompt, sections)
        except SlmEdgeError as error:
            self._fail(job, error)
            return
        took_s = time.perf_counter() - start_s
        job.growing.n_kept_tokens, job.growing.prefill_s = kept, took_s
        name = _name(job)
        self._work_s["prompt", name] += took_s
        self._tokens["prompt"][name] += len(job.request.prompt) - kept
        self._tokens["kept"][name] += kept
        self._n_hits += kept > 0
        self._choose(job, -1)

    def _step(self) -> None:
        jobs = [self._active[row] for row in sorted(self._active)]
        growing = [job.growing for job in jobs if job.growing is not None]
        start_s = time.perf_counter()
        try:
            self._rows.step([one.ids[-1] for one in growing], [one.position for one in growing], sorted(self._active))
        except SlmEdgeError as error:
            for job in jobs:
                self._fail(job, error)
            return
        self._work_s["step", _name(jobs[0])] += time.perf_counter() - start_s
        for i, job in enumerate(jobs):
            self._choose(job, i)

    def _choose(self, job: Job, i: int) -> None:
        """Takes the next token from the i-th logits; ends the answer where it is whole."""
        assert job.growing is not None
        try:
            # Before the choice, which moves the rules on
            logits = None if job.n_top is None else job.sampler.masked(self._rows.logits(i))
            token_id = self._rows.sample(job.sampler, i)
        except SlmEdgeError as error:
            self._fail(job, error)
            return
        text = job.growing.take(token_id, self._session.vocab)
        ended = job.growing.reason is not None
        if job.growing.reason != "end":
            job.ticket.add(piece_of(text, token_id, logits, job.n_top, job.growing.thought))
            self._tokens["answer"][_name(job)] += 1
        self._fresh.add(job.ticket)
        if not ended:
            return
        answer, rest = job.growing.finish(job.bound.name)
        if rest or job.growing.thought:
            job.ticket.add(Piece(rest, None, thinking=job.growing.thought))
        self._n_ended["answered"] += 1
        job.ticket.end(answer)
        self._end(job)

    def _fail(self, job: Job, error: SlmEdgeError, kind: str = "failed") -> None:
        self._n_ended[kind] += 1
        job.ticket.end(None, error)
        self._end(job)

    def _end(self, job: Job) -> None:
        """Takes a request out that is done."""
        job.ticket.end(None, EngineError("the request was cancelled"))
        if job in self._waiting:
            self._waiting.remove(job)
        if job.row is not None and self._active.get(job.row) is job:
            del self._active[job.row]
            self._rows.release(job.row)
        job.sampler.close()
        self._fresh.add(job.ticket)
        self._on_end(job)

    def _tell(self) -> None:
        if self._fresh:
            wake(self._fresh)
            self._fresh.clear()


def _name(job: Job) -> str:
    return job.bound.name or "base"
