"""A right program passes; every way to fail or to cheat that the sandbox claims to cover fails."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from slm_edge.benchmarks.code_sandbox import Limits, run_program

RIGHT = "def f(x):\n    return x + 1\n"
TESTS = ["assert f(1) == 2", "assert f(2) == 3"]
# On a busy machine a second of CPU time takes many of the clock's.
LIMITS = Limits(cpu_s=1, wall_s=60, memory_bytes=256 << 20, file_bytes=1 << 16)


def verdict(program, tests=TESTS, *, wall_s=LIMITS.wall_s, **other):
    return run_program(program, tests, limits=replace(LIMITS, wall_s=wall_s), **other)


@pytest.fixture(scope="module")
def layers():
    return verdict(RIGHT).layers


def test_right_program_passes():
    found = verdict(RIGHT)
    assert (found.passed, found.reason) == (True, "")
    assert "rlimits" in found.layers


@pytest.mark.parametrize(
    "program",
    [
        "import array, asyncio, cmath, collections, dataclasses, datetime, decimal, heapq, itertools, json, math, re\n",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)\n",
        "import threading\nthread = threading.Thread(target=print)\nthread.start()\nthread.join()\n",
        "with open('own.txt', 'w') as out:\n    out.write('x')\nassert open('own.txt').read() == 'x'\n",
        "if __name__ == '__main__':\n    print('a lot ' * 10000)\n",
    ],
)
def test_what_honest_programs_do_is_possible(program):
    found = verdict(program + RIGHT)
    assert found.passed, found.reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x):\n    return 2\n", "test: AssertionError"),
        ("def f(:", "program: SyntaxError"),
        ("def f(x):\n    return f(x)\n", "RecursionError"),
        ("x = input()\n" + RIGHT, "EOFError"),
        ("import numpy\n" + RIGHT, "ModuleNotFoundError"),
        ("", "NameError"),
        # Leaving early, and forging
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("import os\nos._exit(0)\n", "ended before"),
        ("def f(x):\n    raise SystemExit(0)\n", "SystemExit"),
        ("import atexit, os\natexit.register(os._exit, 0)\nraise KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("import os\nfor fd in (0, 1, 2, 3):\n    os.write(fd, b'ok 00\\n')\nos._exit(0)\n", "ended before"),
        ("import builtins\nbuiltins.exec = lambda *a: None\ndef f(x):\n    return 0\n", "AssertionError"),
        ("import os\nos._exit = os.write = None\ndef f(x):\n    return 0\n", "AssertionError"),
        ("import builtins\nbuiltins.AssertionError = None\ndef f(x):\n    return 0\n", "Error"),
        # Using up
        ("while True:\n    pass\n", "CPU limit"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass\n", "CPU limit"),
        ("import time\ntime.sleep(60)\n", "wall clock"),
        ("a = bytearray(1 << 30)\n" + RIGHT, "MemoryError"),
        ("a = []\nwhile True:\n    a.append(' ' * (1 << 20))\n", "MemoryError"),
        ("open('big', 'wb').write(bytes(1 << 20))\n" + RIGHT, "File too large"),
        ("files = [open(f'f{i}', 'w') for i in range(100)]\n" + RIGHT, "Too many open files"),
    ],
)  # fmt: skip
def test_wrong_programs_fail(program, reason):
    found = verdict(program, wall_s=3 if reason == "wall clock" else LIMITS.wall_s)
    assert not found.passed
    assert reason in found.reason


def test_fork_bomb_is_bounded(layers, tmp_path):
    if "syscalls" not in layers and os.getuid() == 0:
        pytest.skip("no seccomp here and root has no process limit: nothing would bound it")
    found = verdict("import os\nfor _ in range(12):\n    os.fork()\n" + RIGHT)
    assert not found.passed
    assert "OSError" in found.reason or "PermissionError" in found.reason or "BlockingIOError" in found.reason


@pytest.mark.parametrize(
    ("layer", "program"),
    [
        ("syscalls", "import subprocess\nsubprocess.run(['true'])\n"),
        ("syscalls", "import os\nos.execv('/bin/true', ['true'])\n"),
        ("syscalls", "import os\nos.kill(os.getppid(), 9)\n"),
        ("syscalls", "import socket\nsocket.socket()\n"),
        ("files", "open('/etc/passwd').read()\n"),
        ("files", "import os\nos.listdir('/home')\n"),
        ("files", "import sys\nopen(sys._getframe(1).f_code.co_filename, 'a')\n"),
        ("files", "open('/tmp/slm-edge-outside', 'w')\n"),
        ("files", "import os\nos.mkdir('/tmp/slm-edge-outside')\n"),
        ("files", "open('/proc/self/environ').read()\n"),
    ],
)
def test_reaching_out_fails(layers, layer, program):
    if layer not in layers:
        pytest.skip(f"this kernel gives no {layer!r} confinement")
    found = verdict(program + RIGHT)
    assert not found.passed
    assert "PermissionError" in found.reason
    assert not Path("/tmp/slm-edge-outside").exists()


def test_nothing_of_ours_is_seen(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    program = (
        "import os, sys\n"
        "assert 'SECRET_TOKEN' not in os.environ and sys.argv == ['program.py']\n"
        "open_files = []\n"
        "for fd in range(32):\n    try:\n        os.fstat(fd)\n    except OSError:\n        continue\n"
        "    open_files.append(fd)\n"
        "assert open_files == [0, 1, 2, 3], open_files\n"
    )
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        found = verdict(program + RIGHT)
    finally:
        os.close(read)
        os.close(write)
    assert found.passed, found.reason


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    begun = time.monotonic()
    assert not verdict("open('x', 'w').write('x')\nimport time\ntime.sleep(60)\n", wall_s=3).passed
    assert time.monotonic() - begun < 30
    assert list(tmp_path.iterdir()) == []


def test_same_verdict_each_time():
    program = "def f(x):\n    return list({'a', 'b', 'c', 'd'}) \n"
    order = verdict(program, ["assert False, f(0)"]).reason
    assert all(verdict(program, ["assert False, f(0)"]).reason == order for _ in range(3))


def test_setup_comes_after_the_program():
    assert verdict("class A:\n    pass\n", ["assert a is not None"], setup="a = A()").passed
    assert "setup: NameError" in verdict("", ["assert True"], setup="a = A()").reason


def test_surrogates_and_null_are_a_failure_not_a_crash():
    assert not verdict("x = '\ud800'\nprint(x).y\n").passed
    assert not verdict("\0").passed
