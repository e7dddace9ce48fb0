"""The thread of an engine, and what other threads hand to it: messages in one inbox, read between two units of work."""

import atexit
import contextlib
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..answer.base import SessionBase
from ..answer.settings import AdapterName, Settings
from ..errors import BusyError, EngineError, SlmEdgeError
from ..llama.sampling import Sampler
from ..pack.card import TaskCard
from ..pack.pack import PackedAdapter
from ..written import check_name
from .adapters import Adapters, Bound
from .admission import Expected
from .core import Core
from .front import Front, Prompt, Tools
from .job import Job
from .pace import Pace
from .stats import AdapterFacts, Stats
from .ticket import Ticket, wake

if TYPE_CHECKING:
    from ..router.router import Decision

T = TypeVar("T")

# Requests at once, whatever they would take
MOST_OPEN: Final = 1024


class Host:
    """Starts the thread and waits until the session is open; arguments and errors as of `engine.Engine`.

    Attributes:
        session: what never changes of it may be read from any thread.
        front: see there.
    """

    session: SessionBase[Any]
    front: Front
    _adapters: Adapters
    _core: Core
    _expected: Expected

    def __init__(
        self, open_session: Callable[[], SessionBase[Any]], n_rows: int, *, max_wait_s: float, fast: bool
    ) -> None:
        self._open_session = open_session
        self._n_rows = n_rows
        self._max_wait_s = max_wait_s
        self._fast = fast
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # Guards the names of adapters, the number of requests and the state; never held while anything is computed.
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._numbers = itertools.count(1)
        self._n_unfinished = 0
        self._beat_s = time.monotonic()
        self._open_jobs: dict[Ticket, Job] = {}
        # Files that were to become an adapter and did not, by its name
        self._n_refused: Counter[str] = Counter()
        self._state = "opening"
        self._fault: BaseException | None = None
        opened: Future[None] = Future()
        # llama.cpp must not compute while the interpreter takes itself apart.
        atexit.register(self.close)
        self._thread = threading.Thread(target=self._run, args=(opened,), name="slm-edge-engine", daemon=True)
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self.close()
            raise

    # From any thread

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that can be asked for now."""
        with self._lock:
            return tuple(self._adapters.named)

    @property
    def pace(self) -> Pace:
        """As measured so far."""
        return self._core.pace

    @property
    def silent_s(self) -> float:
        """As `Engine.silent_s`."""
        return time.monotonic() - self._beat_s if self._state != "closed" and self._core.busy else 0.0

    def adapter_facts(self) -> tuple[AdapterFacts, ...]:
        """The adapters as they are now."""
        with self._lock:
            loaded = self._core.loaded
            return tuple(
                AdapterFacts(name, packed.sha256, packed.size_bytes, packed.card, packed.name in loaded)
                for name, packed in self._adapters.named.items()
            )

    def submit(
        self,
        prompt: Prompt,
        adapter: AdapterName,
        *,
        system: str | None,
        key: str,
        salt: str = "",
        n_top: int | None,
        settings: Settings,
        tools: Tools | None = None,
    ) -> Ticket:
        """As `Engine.submit`."""
        bound, decision = self.bound(prompt, adapter, key, hold=True)
        sampler: Sampler | None = None
        try:
            job = self.front.job(
                prompt,
                bound,
                decision,
                next(self._numbers),
                system=system,
                key=key,
                salt=salt,
                n_top=n_top,
                settings=settings,
                cancel=self._cancel,
                tools=tools,
            )
            sampler = job.sampler
            with self._lock:
                self._check_open()
                self._check_wait(job)
                self._open_jobs[job.ticket] = job
                self._inbox.put(lambda: self._core.add(job))
        except BaseException:
            if sampler is not None:
                sampler.close()
            self._inbox.put(lambda: self._let_go(bound))
            raise
        return job.ticket

    def bound(
        self, prompt: Prompt, adapter: AdapterName, key: str = "", *, hold: bool = False
    ) -> "tuple[Bound, Decision | None]":
        """What is to answer a prompt, and the router's decision; with `hold` kept until the request has ended."""
        decision = self.front.choose(prompt, key) if adapter == "auto" else None
        with self._lock:
            self._check_open()
            if decision is not None:
                # One that was taken away is none of the router's any more.
                adapter = decision.adapter if decision.adapter in self._adapters.named else None
            bound = self._adapters.bind(adapter)
            if hold:
                self._adapters.hold(bound.choice)
                self._n_unfinished += 1
        return bound, decision

    def call(self, work: Callable[[], T]) -> T:
        """Does something on the engine's thread, between two units of work."""
        if threading.current_thread() is self._thread:
            return work()
        future: Future[T] = Future()

        def message() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the caller's to see
                future.set_exception(error)

        with self._lock:
            if self._state == "closed":
                self._check_open()
            self._inbox.put(message)
        return future.result()

    def load(
        self, name: str, path: Path, card: TaskCard | None, expect_digest: str | None, *, apart: bool = False
    ) -> str:
        """As `Engine.load`; the file is read here, and loaded and tried on the engine's thread."""
        with self._refusals(name):
            packed = self._loose(name, path, card)
            if apart:
                self._try_apart(packed, expect_digest)
            return self.call(lambda: self._adopt(packed, expect_digest))

    @contextlib.contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        """Counts what is refused within; names that are none here are not told apart."""
        try:
            yield
        except SlmEdgeError:
            with self._lock:
                self._n_refused[name if name in self._adapters.named else "other"] += 1
            raise

    def try_apart(self, name: str, path: Path, card: TaskCard | None, expect_digest: str | None) -> None:
        """As `Engine.try_apart`."""
        with self._refusals(name):
            self._try_apart(self._loose(name, path, card), expect_digest)

    def _loose(self, name: str, path: Path, card: TaskCard | None) -> PackedAdapter:
        session = self.session
        return session.loose(session.base, check_name(name, "an adapter's name"), path, card)

    def _try_apart(self, packed: PackedAdapter, expect_digest: str | None) -> None:
        from .trial import try_apart

        with self._lock:
            # Told before the work, and once more when the name changes hands.
            self._adapters.check_expected(packed.name, expect_digest)
        session = self.session
        try_apart(session.engine_name, session.base_path, session.base.fingerprint, packed)

    def drain(self, timeout_s: float | None) -> int:
        """As `Engine.drain`."""
        with self._lock:
            if self._state == "open":
                self._state = "draining"
            self._idle.wait_for(lambda: not self._n_unfinished or self._state == "closed", timeout_s)
            if self._state == "closed":
                return 0
        return self.call(self._end_all)

    def close(self) -> None:
        """As `Engine.close`."""
        with self._lock:
            self._state = "closed"
            self._inbox.put(lambda: None)
        atexit.unregister(self.close)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._state == "draining":
            raise BusyError("the engine is ending and takes no more requests", wait_s=None)
        if self._state != "open":
            why = f": {self._fault}" if self._fault is not None else ""
            raise EngineError(f"the engine is closed{why}", hint="open another one")

    def _check_wait(self, job: Job) -> None:
        """Raises BusyError if a request would be begun too late."""
        n_open = len(self._open_jobs)
        wait_s = self._expected.wait_s(job, list(self._open_jobs.values())) if n_open >= self._n_rows else 0.0
        if wait_s > self._max_wait_s or n_open >= MOST_OPEN:
            raise BusyError(
                f"{n_open} requests are there already; this one would be begun after {wait_s:.0f} s, "
                f"and {self._max_wait_s:g} s is the most",
                wait_s=wait_s,
                hint="try again later",
            )

    def _cancel(self, ticket: Ticket) -> None:
        self._inbox.put(lambda: self._core.cancel(ticket))

    # On the engine's thread

    def _run(self, opened: Future[None]) -> None:
        try:
            with self._open_session() as session:
                try:
                    self.session, self.front = session, Front(session)
                    self._adapters = Adapters(session.adapters)
                    self._core = Core(session, self._n_rows, self._ended, fast=self._fast)
                    self._expected = Expected(self._core.pace, self._n_rows)
                    self._state = "open"
                    opened.set_result(None)
                    self._serve()
                except BaseException as error:
                    # Before anyone who waits is told
                    self._fault = error
                    raise
                finally:
                    self._end()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits, or asks next
            self._fault = error
            if not opened.done():
                opened.set_exception(error)

    def _serve(self) -> None:
        core = self._core
        while True:
            while not core.busy or not self._inbox.empty():
                self._inbox.get()()
                self._beat_s = time.monotonic()
                if self._state == "closed":
                    return
            core.work()
            self._beat_s = time.monotonic()

    def _end(self) -> None:
        """Nobody is left waiting, whatever ended the thread."""
        with self._lock:
            self._state = "closed"
        try:
            if hasattr(self, "_core"):
                while not self._inbox.empty():
                    self._inbox.get()()
                self._core.close()
            if hasattr(self, "front"):
                self.front.close()
        finally:
            left = list(self._open_jobs)
            for ticket in left:
                ticket.end(None, EngineError("the engine failed before the answer was whole"))
            wake(left)
            with self._lock:
                self._idle.notify_all()

    def _end_all(self) -> int:
        n_cut = self._core.cancel_all()
        self._core.flush()
        return n_cut

    def _ended(self, job: Job) -> None:
        with self._lock:
            del self._open_jobs[job.ticket]
            self._expected.learn(job)
        self.front.ended(job)
        self._let_go(job.bound)

    def _let_go(self, bound: Bound) -> None:
        """A request has ended."""
        with self._lock:
            self._n_unfinished -= 1
            self._forget(self._adapters.let_go(bound.choice))
            if not self._n_unfinished:
                self._idle.notify_all()

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.session.forget(name)
            self._adapters.drop(name)

    def stats(self) -> Stats:
        """As `Engine.stats`."""
        stats = self._core.stats(self._adapters.public_name)
        with self._lock:
            refused = {(name, "refused"): n for name, n in self._n_refused.items()}
        return replace(stats, adapter_loads={**stats.adapter_loads, **refused})

    def _adopt(self, packed: PackedAdapter, expect_digest: str | None) -> str:
        name = packed.name
        with self._lock:
            self._adapters.check_expected(name, expect_digest)
            if self._adapters.moved(packed):
                return packed.sha256
            key = self._adapters.candidate(packed)
        try:
            self.session.choice_of(key)
            self._core.note_loads()
        except BaseException:
            with self._lock:
                self._forget([key])
            raise
        with self._lock:
            self._forget(self._adapters.adopt(name, key))
        return packed.sha256

    def unload(self, name: str, expect_digest: str | None) -> None:
        """As `Engine.unload`."""
        with self._lock:
            self._adapters.check_expected(name, expect_digest)
            self._forget(self._adapters.remove(name))
