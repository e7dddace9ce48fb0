"""Runs a program that a model wrote, with its tests, in a confined subprocess.

    run_program("def f(x):\\n    return x + 1", ["assert f(1) == 2"])   ->   Verdict(passed=True, ...)

A program passes when the child has run every test, has written a nonce that only its harness was told, and has ended
with status 0. Leaving early with status 0, or printing anything, is no pass.

Covered: its own interpreter (no site packages, empty environment, nothing inherited but the result), a temporary
folder as working directory, limits on CPU time, memory, file size, open files and wall clock (the whole process group
is killed). On Linux moreover, where the kernel grants it: no network (user and network namespaces), no file outside
that folder but the standard library (Landlock), no new process, program, socket, signal to others or tracing (seccomp).
`Verdict.layers` names what was in force.

Not covered: a program that walks the harness's frames for the nonce, or returns objects that equal everything, can
cheat the tests (not harm the machine); many small files can fill the disk of the temporary folder within the time
limit; elsewhere than on Linux (x86_64, aarch64) files and network are open, and what leaves the group lives on.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CHILD = Path(__file__).with_name("sandbox_child.py")
_RESULT_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What one program may use. Wall clock is generous: CPU time decides, so that a busy machine changes no score."""

    cpu_s: int = 5
    wall_s: float = 20.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    files: int = 32


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
        passed: every test ran and held.
        reason: "" when passed, else what went wrong in a few words. It may come from the program: never trust it.
        layers: what confined it: of "rlimits", "network", "files", "syscalls".
        wall_s: how long it took.
    """

    passed: bool
    reason: str
    layers: tuple[str, ...]
    wall_s: float


def run_program(program: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None) -> Verdict:
    """Runs `program`, then `setup`, then each of `tests`, in a confined subprocess.

    Args:
        program: Python source that nobody has read.
        tests: statements that raise when the program is wrong (asserts).
        setup: source that the tests need, run after the program, whose names it may use.
        limits: what the program may use.
    """
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="slm-edge-code-") as folder, contextlib.ExitStack() as files:
        job = files.enter_context(tempfile.TemporaryFile())
        result = files.enter_context(tempfile.TemporaryFile())
        job.write(
            json.dumps(
                {
                    "nonce": nonce,
                    "program": program,
                    "setup": setup,
                    "tests": list(tests),
                    "folder": folder,
                    "limits": {
                        "cpu_s": limits.cpu_s,
                        "memory_bytes": limits.memory_bytes,
                        "file_bytes": limits.file_bytes,
                        "files": limits.files,
                    },
                }
            ).encode("ascii")
        )
        job.seek(0)
        begun = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(_CHILD)],
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
        return _verdict(result.read(_RESULT_BYTES), child.returncode, nonce, late, wall_s)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    # Also after a normal end: something that it started may be left in the group
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _verdict(written: bytes, status: int, nonce: str, late: bool, wall_s: float) -> Verdict:
    first, _, rest = written.partition(b"\n")
    layers = tuple(first.decode("ascii", "replace").split()[1:]) if first.startswith(b"layers ") else ()
    if status == 0 and not late and layers and rest == f"ok {nonce}\n".encode():
        return Verdict(True, "", layers, wall_s)
    if late:
        reason = "time: wall clock limit"
    elif status in (-signal.SIGXCPU, -signal.SIGKILL):
        reason = "time: CPU limit"
    elif status < 0:
        reason = f"killed by signal {-status}"
    elif not layers:
        reason = "the sandbox did not start"
    elif status == 0:
        reason = "ended before its tests were done"
    else:
        reason = rest.decode("utf-8", "replace").strip()[:300] or f"exit status {status}"
    return Verdict(False, reason, layers, wall_s)
