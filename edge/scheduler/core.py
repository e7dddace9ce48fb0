"""What the engine's thread does: takes requests in, computes one unit of work at a time, hands pieces of text out.

A unit is a chunk of one prompt, or one token for each answer of the same adapters; between two units requests join,
leave and are cancelled, and the adapters change where `flows.py` says so. All of it belongs to one thread.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from ..answer.base import SessionBase
from ..answer.growing import Growing
from ..errors import DoesNotFitError, EngineError, SlmEdgeError
from .flows import Flow, Turns
from .job import Group, Job, piece_of
from .pace import Pace
from .places import Places
from .stats import Stats
from .ticket import Piece, Ticket, wake


class Core:
    """Requests over the rows of one session.

    Args:
        n_rows: answers computed side by side.
        on_end: told of each request that has ended.
        fast: keep all that was computed in a row, also answers and short beginnings; else what is bit for bit what
            computing anew would give.
        clock: seconds; what is shared between flows.

    Attributes:
        loaded: names of the adapters in memory, for other threads.
        pace: how fast it all goes.

    Raises:
        DoesNotFitError: there is no memory for the rows.
    """

    def __init__(
        self,
        session: SessionBase[Any],
        n_rows: int,
        on_end: Callable[[Job], object],
        *,
        fast: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._session = session
        self._on_end = on_end
        self._n_rows = n_rows
        self._fast = fast
        self._clock = clock
        self._rows = session.row_maker()(n_rows, session.n_ctx_tokens)
        session.held = self._held
        self.loaded = frozenset(session.loaded_adapters)
        self.pace = Pace()
        self._turns = Turns(self.pace)
        self._places = Places(self._rows, n_rows, self._turns, fast=fast)
        self._jobs: dict[Ticket, Job] = {}
        self._fresh: set[Ticket] = set()
        # The adapters that computed last, and seconds of laying aside and putting back since then
        self._computed: Group | None = None
        self._moving_s = 0.0
        # Seconds of prompts for which answers of the same adapters stood still
        self._owed_s = 0.0
        self._n_ended: Counter[str] = Counter()
        self._tokens: dict[str, Counter[str]] = {kind: Counter() for kind in ("prompt", "answer", "kept")}
        self._work_s: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._n_swaps = 0
        self._n_hits = 0
        self._n_loads: Counter[str] = Counter()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        """A request that was admitted."""
        self._jobs[job.ticket] = job
        self._turns.add(job)

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request, wherever it is."""
        job = self._jobs.get(ticket)
        if job is not None:
            self._cancelled(job)
        self._tell()

    def cancel_all(self) -> int:
        """Ends every request; how many there were."""
        jobs = list(self._jobs.values())
        for job in jobs:
            self._fail(job, EngineError("the engine was closed before the answer was whole"), "cancelled")
        self._tell()
        return len(jobs)

    def work(self) -> None:
        """Computes one unit and tells whoever waits for it."""
        group = self._turns.choose(self._able, self._next_s)
        if group is not None:
            for flow in self._turns.of(group):
                while not flow.stuck and self._places.can_have(flow):
                    self._begin(flow, flow.waiting[0])
            self._unit(group)
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
        jobs = self._jobs.values()
        return Stats(
            n_rows=self._n_rows,
            running=Counter(job.name for job in jobs if job.row is not None),
            waiting=Counter(job.name for job in jobs if job.row is None),
            n_answered=self._n_ended["answered"],
            n_cancelled=self._n_ended["cancelled"],
            n_failed=self._n_ended["failed"],
            prompt_tokens=Counter(self._tokens["prompt"]),
            answer_tokens=Counter(self._tokens["answer"]),
            kept_tokens=Counter(self._tokens["kept"]),
            work_s=dict(self._work_s),
            n_swaps=self._n_swaps,
            swap_s=self.pace.swap_s,
            n_parked=self._places.n_parked,
            n_aside=sum(job.aside is not None for job in jobs),
            parked_bytes=self._places.aside_bytes,
            adapter_loads=self._loads(adapter_name),
            loaded_bytes={adapter_name(name): n for name, n in self._session.loaded_adapters.items()},
            prefix_bytes=self._rows.beginnings_bytes,
            n_prefix_hits=self._n_hits,
            n_prefix_evictions=self._rows.n_evicted,
            held_tokens=self._rows.held_tokens,
            room_tokens=self._n_rows * self._session.n_ctx_tokens,
            plan=self._session.plan,
        )

    def _loads(self, adapter_name: Callable[[str], str]) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for name, n in self._n_loads.items():
            found[adapter_name(name), "loaded"] += n
        return found

    def note_loads(self) -> bool:
        """Counts the adapters that are in memory since the last time; whether there are any."""
        before, self.loaded = self.loaded, frozenset(self._session.loaded_adapters)
        self._n_loads.update(self.loaded - before)
        return not self.loaded <= before

    # Which unit is next

    def _held(self) -> set[str]:
        return {name for job in self._jobs.values() if job.growing is not None for name, _ in job.group}

    def _able(self, flow: Flow) -> bool:
        return bool(flow.running) or self._places.can_have(flow)

    def _next_s(self, group: Group) -> float:
        """How long the next unit of these adapters takes."""
        filling, ready = self._split(group)
        chunk = self._next_chunk(group, filling, ready)
        return self.pace.step_s(len(ready)) if chunk is None else self.pace.chunk_s(chunk.next_tokens)

    def _split(self, group: Group) -> tuple[list[Job], list[Job]]:
        """Requests in rows whose prompts are being computed, and those that a step is for."""
        jobs = [job for job in self._places.jobs if job.group == group]
        return [job for job in jobs if job.filling is not None], [job for job in jobs if job.filling is None]

    def _next_chunk(self, group: Group, filling: list[Job], ready: list[Job]) -> Job | None:
        """Whose prompt the next unit is a chunk of; None for a step.

        While answers wait for it, prompts get half of the time, and never more at once than one whole chunk takes.
        """
        if not filling:
            return None
        first = min(filling, key=lambda job: (self._turns.flow(job).spent_s, job.arrived_s))
        if ready and self._owed_s > 0 and self._owed_s + self.pace.chunk_s(first.next_tokens) > self.pace.chunk_s():
            return None
        return first

    def _unit(self, group: Group) -> None:
        filling, ready = self._split(group)
        job = self._next_chunk(group, filling, ready)
        if job is not None:
            self._chunk(job, others_wait=bool(ready))
        elif ready:
            self._step(ready)

    # Units of work

    def _begin(self, flow: Flow, job: Job) -> None:
        """Gives a request a row, with its adapters in memory and what is known of its prompt in place."""
        start_s = self._clock()
        try:
            sections = job.request.sections()
            moved_s = self._clock()
            if self.note_loads():
                self._work_s["load", job.name] += moved_s - start_s
            self._places.give(job, sections)
            self._moving_s += self._clock() - moved_s
            if job.growing is None:
                job.growing = Growing(job.request, job.sampler, job.arrived_s)
                job.ticket.begun()
            if not job.growing.ids:
                assert job.row is not None
                job.filling = self._rows.fill(job.row, job.request.prompt, sections, self._fast, job.flag)
                job.n_filled = next(job.filling)
                job.growing.n_kept_tokens = job.n_filled
                self._tokens["kept"][job.name] += job.n_filled
                self._n_hits += job.n_filled > 0
        except DoesNotFitError as error:
            if any(other.group != flow.group for other in self._places.jobs):
                # There is room for its adapters once others are done.
                flow.stuck = True
            else:
                self._fail(job, error)
        except SlmEdgeError as error:
            self._broken_off(job, error)
        self._turns.charge([job] if job.ticket in self._jobs else [], self._clock() - start_s)

    def _chunk(self, job: Job, *, others_wait: bool) -> None:
        assert job.filling is not None and job.growing is not None
        before = job.n_filled
        self._swap(job.group)
        start_s = self._clock()
        try:
            job.n_filled = next(job.filling)
        except SlmEdgeError as error:
            self._broken_off(job, error)
            return
        took_s = self._clock() - start_s
        job.growing.prefill_s += took_s
        self._owed_s = self._owed_s + took_s if others_wait else 0.0
        self.pace.add_chunk(max(1, job.n_filled - before), took_s)
        self._spend("prompt", [job], took_s)
        self._tokens["prompt"][job.name] += max(0, job.n_filled - before)
        if job.n_filled == len(job.request.prompt):
            job.filling = None
            self._choose(job, -1)

    def _step(self, jobs: list[Job]) -> None:
        swapped = self._swap(jobs[0].group)
        usual_s = self.pace.step_s(len(jobs))
        start_s = self._clock()
        try:
            self._compute(jobs)
        except SlmEdgeError as error:
            self._one_by_one(jobs, error)
            return
        took_s = self._clock() - start_s
        over_s = 0.0
        if not swapped or not usual_s:
            self.pace.add_step(len(jobs), took_s)
        else:
            self.pace.add_swap(took_s - usual_s + self._moving_s)
            over_s = min(took_s, self.pace.swap_s)
        self._moving_s = 0.0
        self._owed_s = max(0.0, self._owed_s - took_s)
        self._work_s["swap", jobs[0].name] += over_s
        self._work_s["step", jobs[0].name] -= over_s
        self._spend("step", jobs, took_s)
        for i, job in enumerate(jobs):
            self._choose(job, i)

    def _compute(self, jobs: list[Job]) -> None:
        rows = [job.row for job in jobs if job.row is not None]
        # Others in the same step are not to be broken off.
        flag = jobs[0].flag if len(jobs) == 1 else None
        self._rows.step([job.growing.ids[-1] for job in jobs if job.growing is not None], rows, flag)

    def _one_by_one(self, jobs: list[Job], error: SlmEdgeError) -> None:
        """A step failed: whoever fails alone too has failed, the others go on."""
        for job in jobs:
            try:
                if len(jobs) == 1:
                    raise error
                self._compute([job])
            except SlmEdgeError as own:
                self._broken_off(job, own)
            else:
                self._choose(job, 0)

    def _swap(self, group: Group) -> bool:
        """Notes which adapters compute now; whether they changed."""
        swapped = group != self._computed
        if swapped and self._computed is not None:
            self._n_swaps += 1
        self._computed = group
        return swapped

    def _spend(self, kind: str, jobs: list[Job], took_s: float) -> None:
        self._turns.charge(jobs, took_s)
        self._work_s[kind, jobs[0].name] += took_s

    # What comes of them

    def _choose(self, job: Job, i: int) -> None:
        """Takes the next token from the i-th logits; ends the answer where it is whole."""
        assert job.growing is not None
        try:
            token_id = self._rows.sample(job.sampler, i)
        except SlmEdgeError as error:
            self._fail(job, error)
            return
        text = job.growing.take(token_id, self._session.vocab)
        if job.growing.reason != "end":
            job.ticket.add(piece_of(text, token_id, job.sampler.chosen_from, job.n_top, job.growing.thought))
            self._tokens["answer"][job.name] += 1
        self._fresh.add(job.ticket)
        if job.growing.reason is None:
            return
        answer, rest = job.growing.finish(job.bound.name)
        if rest or job.growing.thought:
            job.ticket.add(Piece(rest, None, thinking=job.growing.thought))
        self._n_ended["answered"] += 1
        job.ticket.end(answer)
        self._end(job)

    def _broken_off(self, job: Job, error: SlmEdgeError) -> None:
        """An error while a request was computed: its own, or what came of its being cancelled."""
        if job.flag.is_set:
            self._cancelled(job)
        else:
            self._fail(job, error)

    def _cancelled(self, job: Job) -> None:
        self._fail(job, EngineError("the request was cancelled"), "cancelled", clean=False)

    def _fail(self, job: Job, error: SlmEdgeError, kind: str = "failed", *, clean: bool = True) -> None:
        self._n_ended[kind] += 1
        job.ticket.end(None, error)
        self._end(job, clean=clean)

    def _end(self, job: Job, *, clean: bool = False) -> None:
        """Takes a request out that is done; what its row holds may serve others, unless it is to be clean."""
        del self._jobs[job.ticket]
        self._turns.remove(job)
        self._places.leave(job, clean=clean)
        job.filling = None
        job.sampler.close()
        self._fresh.add(job.ticket)
        self._on_end(job)

    def _tell(self) -> None:
        if self._fresh:
            wake(self._fresh)
            self._fresh.clear()
