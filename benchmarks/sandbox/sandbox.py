"""Runs a program that a model wrote, with its tests, in a confined subprocess.

    run_program("def f(x):\\n    return x + 1", ["assert f(1) == 2"])   ->   Verdict(passed=True, ...)

The program runs in one process, its tests in another: the tests call stand-ins for the program's functions, arguments
go over a pipe, and what comes back is rebuilt from tagged values and compared where the program cannot reach. So it can
neither see nor patch an assert, nor print or forge a pass; leaving early with status 0 is no pass either. What it may
write to the pipe itself are answers, which any program gives. Arguments are copies: a function that changes its own
changes none of the tests'. Objects of its own classes stay with it; the tests can hand them back, not compare them.

What confines both, where the kernel grants it (`Verdict.layers` names what was in force): limits on CPU time, memory,
file size, open files and wall clock ("rlimits"); network, process, IPC and mount namespaces, a read-only root of its
own ("root") with nothing but Python's and the system's libraries, and a /tmp in memory of 16 MiB; Landlock ("files");
seccomp ("syscalls": no process, program, socket, signal to others, tracing, mount). Root becomes nobody. Works as root
and as a user, in containers with or without namespaces; where a file or system call would stay open, nothing is run:
`UnsupportedError`, unless `allow_unsafe()` was called.

Not covered: a program may recognise a test's arguments and answer by heart, as where a benchmark is contaminated.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...edge.errors import UnsupportedError
from .child import REQUIRED

# The sandbox's modules as a package of their own, without anything else of slm_edge
_BOOT = """
import sys, types
package = types.ModuleType("sandbox")
package.__path__ = [sys.argv.pop(1)]
sys.modules["sandbox"] = package
from sandbox.child import main
main()
"""
_RESULT_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What one program may use. Wall clock is generous: CPU time decides, so that a busy machine changes no score."""

    cpu_s: int = 5
    wall_s: float = 60.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    files: int = 32
    disk_bytes: int = 16 << 20
    # By the clock, from the program's start to its last test; None: until `wall_s`, which counts the sandbox's start
    run_s: float | None = None


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
        passed: every test ran and held.
        reason: "" when passed, else what went wrong in a few words. It may come from the program: never trust it.
        layers: what confined it: of "rlimits", "network", "processes", "files", "root", "syscalls".
        wall_s: how long it took.
    """

    passed: bool
    reason: str
    layers: tuple[str, ...]
    wall_s: float


_policy = {"allow_unsafe": False}


def allow_unsafe(allowed: bool = True) -> None:
    """Runs programs although this system cannot confine them. For machines that may be lost."""
    _policy["allow_unsafe"] = allowed


def missing_layers() -> list[str]:
    """What of `child.REQUIRED` this system does not grant: empty if programs can be run safely."""
    verdict = _run("", ["pass"], names=[], given="", setup="", limits=Limits(), unsafe=False)
    return [name for name in REQUIRED if name not in verdict.layers]


def run_program(
    program: str,
    tests: Sequence[str],
    *,
    names: Sequence[str] = (),
    given: str = "",
    setup: str = "",
    limits: Limits | None = None,
) -> Verdict:
    """Runs `program` in one confined process and each of `tests` in another.

    Args:
        program: Python source that nobody has read.
        tests: statements that raise when the program is wrong (asserts).
        names: functions of the program that the tests call; by default what the tests name and don't define.
        given: trusted source that the tests need beside these, such as helpers that the task states.
        setup: trusted source that runs after the program, beside it. Where it uses the program's classes, the tests can
            hand the variables that it makes to functions and do nothing else with them.
        limits: what the program may use, and its tests.

    Raises:
        UnsupportedError: this system cannot confine it; nothing was run.
    """
    unsafe = _policy["allow_unsafe"]
    verdict = _run(program, tests, names=names, given=given, setup=setup, limits=limits or Limits(), unsafe=unsafe)
    missing = [name for name in REQUIRED if name not in verdict.layers]
    if missing and not unsafe:
        raise UnsupportedError(
            "this system cannot confine code that a model wrote, so it was not run",
            problems=[f"not confined: {name}" for name in missing],
            hint="use Linux with Landlock and seccomp; --allow-unsafe runs it with your rights, at your risk",
        )
    return verdict


def _run(
    program: str,
    tests: Sequence[str],
    *,
    names: Sequence[str],
    given: str,
    setup: str,
    limits: Limits,
    unsafe: bool,
) -> Verdict:
    job_data = {"program": program, "tests": list(tests), "names": list(names), "given": given, "setup": setup}
    with tempfile.TemporaryDirectory(prefix="slm-edge-code-") as folder, contextlib.ExitStack() as files:
        job = files.enter_context(tempfile.TemporaryFile())
        result = files.enter_context(tempfile.TemporaryFile())
        job.write(json.dumps(job_data).encode("ascii"))
        job.seek(0)
        head = {"limits": dataclasses.asdict(limits), "folder": folder, "allow_unsafe": unsafe, "host": os.getpid()}
        begun = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", "-c", _BOOT, str(Path(__file__).parent), json.dumps(head)],
            stdin=job,
            stdout=result,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            # Sets and dicts of strings in the same order each time: the same program, the same verdict
            env={"PYTHONHASHSEED": "0"},
            close_fds=True,
            start_new_session=True,
        )
        late = False
        try:
            child.wait(limits.wall_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _end_group(child)
        wall_s = time.monotonic() - begun
        result.seek(0)
        return _verdict(result.read(_RESULT_BYTES), child.returncode, late, wall_s)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    # Also after a normal end: something that it started may be left in the group
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _verdict(written: bytes, status: int, late: bool, wall_s: float) -> Verdict:
    first, _, rest = written.partition(b"\n")
    layers = tuple(first.decode("ascii", "replace").split()[1:]) if first.startswith(b"layers ") else ()
    if status == 0 and not late and layers and rest == b"ok\n":
        return Verdict(True, "", layers, wall_s)
    if late:
        reason = "time: wall clock limit"
    elif not layers:
        reason = "the sandbox did not start"
    elif status > 128 or status < 0:
        reason = "its tests went beyond a limit"
    else:
        reason = rest.decode("utf-8", "replace").strip()[:300] or f"exit status {status}"
    return Verdict(False, reason, layers, wall_s)
