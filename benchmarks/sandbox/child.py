"""The inside of the sandbox, run in a fresh interpreter by `sandbox`; it imports nothing else of slm_edge.

Three processes. This one enters new namespaces and waits. Its child, the judge, builds a root of its own, becomes
nobody, forks the worker and then confines itself as the worker does. The worker runs the program and answers calls.
The judge reads the job only after the fork, so that no test is in the worker's memory; it runs the tests with
stand-ins for the program's functions and compares what comes back itself.
"""

import ast
import builtins
import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .confine import become_nobody, confine, die_with_parent, enter_namespaces, libc, private_root
from .wire import Failed, Held, WireError, receive, send
from .worker import serve

# Without these nothing is run, unless the job says so
REQUIRED = ("rlimits", "network", "files", "processes", "syscalls")
# Imported by many tests; the judge must have them before it is confined
_PRELOADED = ("math", "random", "copy", "string", "collections", "datetime", "decimal", "fractions", "re")


def tested_names(tests: Sequence[str]) -> list[str]:
    """The names in `tests` that the program must define: what is neither built in nor made by the tests.

    Where a test names nothing but builtins (a task may ask for a function called `sum`), the builtins that it calls.
    """
    if free := _free_names(tests):
        return sorted(free)
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    return sorted({node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)})


def _free_names(sources: Sequence[str]) -> set[str]:
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    loads = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {alias.asname or alias.name.partition(".")[0] for node in nodes for alias in _aliases(node)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in loads - made if not hasattr(builtins, name)}


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


class _Worker:
    """The judge's end of the worker.

    Attributes:
        failure: how it failed, "" while it has not. A test that catches what `ask` raises changes nothing about it.
    """

    def __init__(self, commands: int, answers: int, pid: int) -> None:
        self._commands, self._answers, self._pid = commands, answers, pid
        self.failure = ""

    def failed(self, reason: str) -> Failed:
        self.failure = self.failure or reason
        return Failed(self.failure)

    def too_late(self, *_: object) -> None:
        """The handler of the clock's signal. The judge's end is the worker's too."""
        raise self.failed("time: clock limit")

    def ask(self, *message: Any) -> list[Any]:
        if self.failure:
            raise Failed(self.failure)
        try:
            send(self._commands, *message)
            answer = receive(self._answers)
        except (EOFError, BrokenPipeError):
            raise self.failed(self._how_it_ended()) from None
        except WireError as error:
            raise self.failed(f"test: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever a forged frame leads to
            raise self.failed(f"test: {type(error).__name__}") from None
        match answer:
            case ["failed", str(reason)]:
                raise self.failed(reason)
            case ["value", _] | ["error", [*_], str()] | ["ready", [*_], [*_]]:
                return answer
        raise self.failed("test: not an answer")

    def _how_it_ended(self) -> str:
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            limit = number in (signal.SIGXCPU, signal.SIGKILL)
            return "time: CPU limit" if limit else f"killed by signal {number}"
        return "ended before its tests were done"

    def call(self, name: str) -> Callable[..., Any]:
        """A stand-in for the program's function `name`."""

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            kind, *parts = self.ask("call", name, list(args), kwargs)
            if kind == "value":
                return parts[0]
            if kind == "error":
                raise self._raised(*parts)
            raise self.failed("test: not an answer")

        return stand_in

    def _raised(self, names: list[Any], text: str) -> BaseException:
        """What the program raised, for tests that expect it: as the builtin class that it is or derives from.

        Not what ends a loop or a program: `map` over a stand-in would end early and quietly.
        """
        for name in names:
            kind = getattr(builtins, name, None) if isinstance(name, str) else None
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                continue
            if not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
                break
            with contextlib.suppress(TypeError):
                return kind(text)
        return self.failed(f"test: {names[0] if names else ''}: {text}")


def _judge(worker: _Worker, job: dict[str, Any]) -> None:
    """Returns when every test holds; raises whatever goes wrong."""
    tests, setup = job["tests"], job["setup"]
    names = job["names"] or tested_names(tests)
    kind, *parts = worker.ask("program", job["program"], setup, names)
    if kind != "ready":
        raise worker.failed("test: not an answer")
    functions, variables = parts
    # Else a builtin of the name, which tests may ask for, would be judged in its place
    if names and not any(name in [*functions, *variables] for name in names):
        raise worker.failed(f"test: NameError: not defined: {', '.join(names)}")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(job["given"], "<given>", "exec"), space)
    for name in names:
        space.pop(name, None)
        if name in functions:
            space[name] = worker.call(name)
        elif name in variables:
            space[name] = Held(variables.index(name))
    if setup and not _free_names([setup]):
        # It needs nothing of the program: the tests see what it makes, not what the program says that it is
        exec(compile(setup, "<setup>", "exec"), space)
    for test in tests:
        exec(compile(test, "<test>", "exec"), space)
    if worker.failure:
        raise Failed(worker.failure)


def _run_judge(result: int, held: set[str], alive: int) -> None:
    c = libc()
    head = json.loads(sys.argv[1])
    limits, folder = head["limits"], head["folder"]
    for name in _PRELOADED:
        __import__(name)
    holds: list[str] = [name for name in ("network", "processes") if name in held]
    place: str | None = None
    if "mounts" in held and private_root(c, folder, limits["disk_bytes"]):
        holds.append("root")
        place = "/tmp"
    if os.geteuid() == 0 and "root" in holds:
        become_nobody()
    die_with_parent(c)
    # Its end closes the pipe, also where process 1 of new namespaces cannot ask for its parent
    if select.select([alive], [], [], 0)[0]:
        os._exit(3)
    commands, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_worker(commands[0], answers[1], limits, place, holds)
    os.close(commands[0])
    os.close(answers[1])
    confine(c, limits, None, holds)
    worker = _Worker(commands[1], answers[0], pid)
    try:
        # Written before the program was there
        layers = [str(name) for name in receive(answers[0])[1]]
    except (EOFError, WireError):
        os._exit(3)
    os.write(result, f"layers {' '.join(layers)}\n".encode())
    if not head["allow_unsafe"] and any(name not in layers for name in REQUIRED):
        os._exit(2)
    job = json.loads(sys.stdin.read())
    if limits["run_s"] is not None:
        signal.signal(signal.SIGALRM, worker.too_late)
        signal.setitimer(signal.ITIMER_REAL, limits["run_s"])
    try:
        _judge(worker, job)
        os.write(result, b"ok\n")
    except BaseException as error:  # noqa: BLE001 - SystemExit in a test included
        text = worker.failure or (f"{error}" if isinstance(error, Failed) else f"test: {_said(error)}")
        os.write(result, text[:300].replace("\n", " ").encode("utf-8", "replace"))
        os._exit(1)
    os._exit(0)


def _said(error: BaseException) -> str:
    # An assert's message may hold a number too long to be written down
    try:
        return f"{type(error).__name__}: {error}"
    except ValueError:
        return type(error).__name__


def _run_worker(commands: int, answers: int, limits: dict[str, int], place: str | None, held: Sequence[str]) -> None:
    try:
        c = libc()
        die_with_parent(c)
        nothing = os.open("/dev/null", os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(nothing, handle)
        os.dup2(commands, 10)
        os.dup2(answers, 11)
        os.closerange(3, 10)
        os.dup2(10, 3)
        os.dup2(11, 4)
        os.closerange(5, 64)
        layers = confine(c, limits, place, held)
        send(4, "layers", layers)
        serve(3, 4)
    finally:
        os._exit(1)


def main() -> None:
    """Enters namespaces, runs the judge and ends as it did; ends with the process that started it, or by its clock."""
    head = json.loads(sys.argv[1])
    judge = 0
    # The folder by its parent, which stays in reach when this process's root changes
    above, name = os.open(os.path.dirname(head["folder"]), os.O_RDONLY), os.path.basename(head["folder"])  # noqa: PTH119, PTH120

    def end(number: int, _: object) -> None:
        # Nobody is left to do it, or nobody does
        if judge:
            os.kill(judge, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=above)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    # The host's clock comes first; this is for a host that has stopped
    signal.setitimer(signal.ITIMER_REAL, 1.2 * head["limits"]["wall_s"] + 2)
    c = libc() if sys.platform == "linux" else None
    held = enter_namespaces(c) if c is not None else set()
    die_with_parent(c, signal.SIGTERM)
    if os.getppid() != head["host"]:
        end(signal.SIGTERM, None)
    result, (alive, hold) = os.dup(1), os.pipe()
    judge = os.fork()
    if judge == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.close(above)
            os.close(hold)
            _run_judge(result, held, alive)
        finally:
            os._exit(3)
    _, status = os.waitpid(judge, 0)
    with contextlib.suppress(OSError):
        os.close(result)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
