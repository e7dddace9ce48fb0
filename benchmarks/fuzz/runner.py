"""Runs cases in a forked worker under limits, and says which of them the readers did not survive.

    for finding in Run(target, seed=1, limits=Limits()).cases(range(1000), folder): ...

A case is made from (kind, seed, number) alone, so that any can be repeated. Right is that a reader returns, or raises a
SlmEdgeError. Found is a signal or any other end of the process, no end within the limit, memory beyond the bound, and
every other exception. The worker goes on with the next case after an exception; after its end another is forked.
"""

import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from errno import ENOMEM
from pathlib import Path
from typing import Any, Final, Protocol

import psutil

from ...edge.errors import SlmEdgeError

# A machine that does other work gives a case less than a core: its wall clock may run so many times longer.
WALL_FACTOR: Final = 6
_LAST_WORDS: Final = 3000
_POLL_S: Final = 0.1


class Target(Protocol):
    """One kind of file, how it is damaged and who reads it."""

    kind: str

    def prepare(self, folder: Path) -> None:
        """Makes the valid files that cases start from, once, the same ones each time."""

    def make(self, draw: random.Random, folder: Path) -> None:
        """Writes a case into an empty folder; everything that is random comes from `draw`."""

    def use(self, folder: Path) -> object:
        """Lets the product read the case."""

    def run(self, folder: Path) -> object:
        """What more can be done with a case that was read: on llama.cpp, where it goes there."""


@dataclass(frozen=True)
class Limits:
    """What a case may take.

    Attributes:
        seconds: of processor time; `WALL_FACTOR` times as much by the clock.
        memory_bytes: address space beside the case's files, beyond what the worker had before.
        run_bytes: the same for `Target.run`, which loads a model.
    """

    seconds: float = 10.0
    memory_bytes: int = 100 << 20
    run_bytes: int = 2 << 30


@dataclass(frozen=True)
class Finding:
    """A case that was not survived, with the kind of end ("signal", "hang", "memory", "exception") and last words."""

    kind: str
    seed: int
    case: int
    end: str
    text: str

    def __str__(self) -> str:
        last = self.text.strip().splitlines()[-1:] or [""]
        return f"{self.kind} --seed {self.seed} --case {self.case}: {self.end}: {last[0][:200]}"


@dataclass
class Run:
    """A run over one kind.

    Attributes:
        run_every: of so many cases one that was read goes through `Target.run`; 0 for none.
        deadline: `time.monotonic()` at which no further case begins; None for no end.
        counts: what became of the cases: "passed", "passed and ran", names of errors, ends that were found.
    """

    target: Target
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    run_every: int = 0
    deadline: float | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def draw(self, case: int) -> random.Random:
        """The source of all that is random in a case."""
        return random.Random(f"{self.target.kind}/{self.seed}/{case}")

    def cases(self, cases: Sequence[int], folder: Path) -> Generator[Finding, None, None]:
        """Runs the cases; what is found comes as it is found."""
        self.target.prepare(folder)
        at = 0
        while at < len(cases) and not self._is_over():
            worker = _Worker(self, cases[at:], folder)
            try:
                for verdict in worker.verdicts():
                    at += 1
                    self.counts[verdict["end"]] += 1
                    if "text" in verdict:
                        yield Finding(self.target.kind, self.seed, verdict["case"], verdict["end"], verdict["text"])
            finally:
                worker.stop()

    @property
    def n_cases(self) -> int:
        """How many cases have been run."""
        return self.counts.total()

    def _is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def serve(self, cases: Sequence[int], folder: Path, out: int) -> None:
        """What the worker does: each case, with a line when it begins and one when it ends."""
        place = folder / "case"
        for case in cases:
            if self._is_over():
                return
            _empty(place)
            self.target.make(self.draw(case), place)
            tell(out, {"case": case, "cpu_s": _cpu_s(os.getpid())})
            tell(out, {"case": case, **self._verdict(case, place)})

    def _verdict(self, case: int, place: Path) -> dict[str, Any]:
        size_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        try:
            with _memory(size_bytes + self.limits.memory_bytes):
                self.target.use(place)
            if not self.run_every or case % self.run_every:
                return {"end": "passed"}
            with _memory(size_bytes + self.limits.run_bytes):
                self.target.run(place)
            return {"end": "passed and ran"}
        except SlmEdgeError as error:
            # A message has to be made, too.
            json.dumps([str(error), error.as_dict()])
            if not _wants_memory(error):
                return {"end": type(error).__name__}
            end, text = "memory", traceback.format_exc()
        except BaseException as error:  # noqa: BLE001
            end, text = "memory" if _wants_memory(error) else "exception", traceback.format_exc()
        return {"end": end, "text": text[-_LAST_WORDS:]}


class _Worker:
    """A forked process that runs cases, as its parent sees it."""

    def __init__(self, run: Run, cases: Sequence[int], folder: Path) -> None:
        self._run = run
        self._words = folder / "worker.err"
        self._in, out = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid:
            os.close(out)
            return
        code = 1
        try:
            os.close(self._in)
            os.setpgrp()
            words = os.open(self._words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(words, 1)
            os.dup2(words, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # Without it ggml starts a debugger when it aborts.
            os.environ |= {"GGML_NO_BACKTRACE": "1", "SLM_EDGE_CACHE": str(folder / "cache")}
            run.serve(cases, folder, out)
            code = 0
        except BaseException:  # noqa: BLE001
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            os._exit(code)

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """One for each case that ended, and one for the case that ended the worker."""
        begun: dict[str, Any] | None = None
        since, rest = time.monotonic(), b""
        while True:
            ready = select.select([self._in], [], [], _POLL_S)[0]
            data = os.read(self._in, 1 << 16) if ready else None
            if data == b"":
                break
            *lines, rest = (rest + (data or b"")).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "end" in told:
                    begun = None
                    yield told
                else:
                    begun, since = told, time.monotonic()
            if begun and not ready and self._hangs(begun["cpu_s"], since):
                self.stop()
                yield {"case": begun["case"], "end": "hang", "text": f"no end within {self._run.limits.seconds:g} s"}
                return
        code = self.stop()
        words = self._words.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]
        if begun:
            how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
            yield {"case": begun["case"], "end": "signal" if code < 0 else "exit", "text": f"{words}\n{how}"}
        elif code:
            raise RuntimeError(f"the worker itself failed: {words}")

    def _hangs(self, began_cpu_s: float, since: float) -> bool:
        most_s = self._run.limits.seconds
        if time.monotonic() - since > WALL_FACTOR * most_s:
            return True
        with contextlib.suppress(psutil.Error):
            return _cpu_s(self._pid) - began_cpu_s > most_s
        return False

    def stop(self) -> int:
        """Ends it with all that it started; its exit code, less than zero for a signal."""
        if self._pid:
            with contextlib.suppress(OSError):
                if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and not self._ended():
                    os.killpg(self._pid, signal.SIGKILL)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            os.close(self._in)
            self._pid = 0
        return self._code

    def _ended(self) -> bool:
        """Whether the pipe is at its end: then the process is about to end by itself."""
        return bool(select.select([self._in], [], [], 0)[0]) and os.read(self._in, 1) == b""


def tell(out: int, told: dict[str, Any]) -> None:
    """Writes a line to the parent."""
    os.write(out, json.dumps(told).encode() + b"\n")


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _empty(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@contextlib.contextmanager
def _memory(more_bytes: int) -> Iterator[None]:
    """Bounds this process's address space at what it has and `more_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    has_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has_bytes + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _wants_memory(error: BaseException | None) -> bool:
    """Whether want of memory is behind an error, also where it was made into another."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == ENOMEM):
            return True
        error = error.__cause__ or error.__context__
    return False
