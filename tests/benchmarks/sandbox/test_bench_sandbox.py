"""A right program passes; every way to fail, to cheat or to do harm fails, as root and where namespaces are refused."""

import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from build_container import in_container
from slm_edge.benchmarks.sandbox import child as sandbox_child
from slm_edge.benchmarks.sandbox.sandbox import Limits, missing_layers, run_program
from slm_edge.edge.errors import UnsupportedError

RIGHT = "def f(x):\n    return x + 1\n"
TESTS = ["assert f(1) == 2", "assert f(2) == 3"]
# On a busy machine a second of CPU time takes many of the clock's.
LIMITS = Limits(cpu_s=1, wall_s=60, memory_bytes=256 << 20, file_bytes=1 << 16)


def verdict(program, tests=TESTS, *, wall_s=LIMITS.wall_s, **other):
    return run_program(program, tests, limits=replace(LIMITS, wall_s=wall_s), **other)


@pytest.fixture(autouse=True, scope="module")
def confined():
    """Where code cannot be confined it is refused, and there is nothing else to test."""
    if missing := missing_layers():
        with pytest.raises(UnsupportedError):
            verdict(RIGHT)
        pytest.skip(f"this system confines no code ({', '.join(missing)}); refused, as it must be")


@pytest.fixture(autouse=True)
def own_folder(request, confined):
    """Without a mount namespace no place could be bounded, so a program may write nowhere."""
    program = request.node.callspec.params.get("program", "") if hasattr(request.node, "callspec") else ""
    if "open('own.txt', 'w')" in program and "root" not in run_program("", ["pass"]).layers:
        assert "PermissionError" in verdict(program + RIGHT).reason
        pytest.skip("no mount namespace here: programs write nowhere")


def test_right_program_passes():
    found = verdict(RIGHT)
    assert (found.passed, found.reason) == (True, "")
    assert set(sandbox_child.REQUIRED) <= set(found.layers)


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
        ("import os\nfor fd in (1, 2, 4):\n    os.write(fd, b'ok\\n')\nos._exit(0)\n", "ended before"),
        ("print('ok')\nprint('passed')\ndef f(x):\n    return 0\n", "AssertionError"),
        ("import os, struct\nm = b'[\"ok\"]'\nos.write(4, struct.pack('=I', len(m)) + m)\n", "not an answer"),
        ("import builtins\nbuiltins.exec = lambda *a: None\ndef f(x):\n    return 0\n", "AssertionError"),
        ("import os\nos._exit = os.write = None\ndef f(x):\n    return 0\n", "AssertionError"),
        ("import builtins\nbuiltins.AssertionError = None\ndef f(x):\n    return 0\n", "Error"),
        # Using up
        ("while True:\n    pass\n", "CPU limit"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass\n", "CPU limit"),
        ("import time\ntime.sleep(60)\n", "wall clock"),
        ("a = bytearray(1 << 30)\n" + RIGHT, "MemoryError"),
        ("a = []\nwhile True:\n    a.append(' ' * (1 << 20))\n", "MemoryError"),
        ("open('own.txt', 'w').write(' ' * (1 << 20))\n" + RIGHT, "File too large"),
        ("files = [open('own.txt', 'w') for i in range(100)]\n" + RIGHT, "Too many open files"),
    ],
)  # fmt: skip
def test_wrong_programs_fail(program, reason):
    found = verdict(program, wall_s=3 if reason == "wall clock" else LIMITS.wall_s)
    assert not found.passed
    assert reason in found.reason


@pytest.mark.parametrize(
    "program",
    [
        # Patch the asserts, or what stands behind them
        "import sys\nframe = sys._getframe()\nwhile frame:\n    for v in list(frame.f_locals.values()):\n"
        "        if isinstance(v, list):\n            v.clear()\n    frame = frame.f_back\ndef f(x):\n    return 0\n",
        "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'tests' in o:\n        o['tests'] = []\n"
        "def f(x):\n    return 0\n",
        "import builtins\nbuiltins.compile = lambda *a, **k: (lambda: None).__code__\ndef f(x):\n    return 0\n",
        "class Yes:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Yes()\n",
        "class Yes(int):\n    def __eq__(self, other):\n        return True\n    def __reduce__(self):\n"
        "        return eval, ('2',)\ndef f(x):\n    return Yes()\n",
        "import os\nclass R:\n    def __reduce__(self):\n        return os._exit, (0,)\ndef f(x):\n    return R()\n",
        # Leave the tests without having passed them
        "def f(x):\n    raise StopIteration\n",
        "import threading, os\nthreading.Timer(0.1, os._exit, (0,)).start()\ndef f(x):\n    while 1:\n        pass\n",
        "import signal, os\nsignal.signal(signal.SIGTERM, lambda *a: os._exit(0))\ndef f(x):\n    return 0\n",
    ],
)
def test_no_way_round_the_tests(program):
    found = verdict(program)
    assert not found.passed
    assert found.reason


def test_no_test_is_in_the_programs_memory():
    program = (
        "import gc\ndef f(x):\n    seen = []\n    for o in gc.get_objects():\n"
        "        if isinstance(o, (list, tuple, dict)):\n            seen.append(repr(o)[:100000])\n"
        "    raise Exception((chr(110) + 'eedle7') in ' '.join(seen))\n"
    )
    found = verdict(program, ["assert f('') == 'needle7'"])
    assert "Exception: False" in found.reason, found.reason


HARM = [
    "import os\nwhile True:\n    os.fork()\n",
    "import subprocess\nsubprocess.run(['true'])\n",
    "import os\nos.execv('/bin/true', ['true'])\n",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n",
    "import os, signal\nos.kill(-1, signal.SIGKILL)\n",
    "import os, signal\nos.killpg(0, signal.SIGKILL)\n",
    "import os\nos.setsid()\n",
    "import ctypes\nif ctypes.CDLL(None).prctl(1, 0) != 0:\n    raise PermissionError\n",
    "import ctypes\nif ctypes.CDLL(None).ptrace(16, 1, 0, 0) != 0:\n    raise PermissionError\n",
    "import os\nos.memfd_create('x')\n",
    "import socket\nsocket.socket()\n",
    "import socket\nsocket.socketpair()\n",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT', timeout=5)\n",
    "open('/etc/shadow').read()\n",
    "open('/etc/passwd').read()\n",
    "import os\nos.listdir('/root')\n",
    "import os\nos.listdir('/home')\n",
    "open('HARNESS', 'a')\n",
    "open('HARNESS').read()\n",
    "import sys\nopen(sys._getframe(1).f_code.co_filename, 'a')\n",
    "open('OUTSIDE/x', 'w')\n",
    "import os\nos.mkdir('OUTSIDE/y')\n",
    "import os\nos.chroot('/tmp')\n",
    "open('/proc/self/environ').read()\n",
    "open('/proc/1/mem', 'wb')\n",
    # What Landlock does not ask about
    "import os\nos.chmod('OUTSIDE', 0)\n",
    "import os\nos.utime('OUTSIDE/kept', (0, 0))\n",
    "import os\nos.setxattr('OUTSIDE/kept', 'user.x', b'x')\n",
    "import os\nos.truncate('OUTSIDE/kept', 0)\n",
    "import os\nos.open('/dev/null', os.O_RDONLY | os.O_TRUNC)\n",
    # A file may send any signal to any process of the same user
    "import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, 1)\n",
    "import fcntl, signal\nfcntl.fcntl(0, 10, signal.SIGKILL)\n",
    "import os\nos.setpriority(os.PRIO_PROCESS, 0, 19)\n",
    "import ctypes\nc = ctypes.CDLL(None, use_errno=True)\n"
    "c.shmget(0, 4096, 1023)\nraise OSError(ctypes.get_errno(), 'x')\n",
]


def with_places(program, tmp_path, port):
    harness = str(Path(sandbox_child.__file__))
    return program.replace("HARNESS", harness).replace("OUTSIDE", str(tmp_path)).replace("PORT", str(port))


REFUSED = ("PermissionError", "FileNotFoundError", "Read-only file system", "URLError")


@pytest.fixture
def outside(tmp_path):
    """A folder that no program may change; looked at afterwards."""
    folder = tmp_path / "outside"
    folder.mkdir()
    kept = folder / "kept"
    kept.write_text("kept")
    before = folder.stat().st_mode, kept.stat().st_mtime_ns
    yield folder
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert (folder.stat().st_mode, kept.stat().st_mtime_ns) == before
    assert kept.read_text() == "kept"
    assert os.listxattr(kept) == []


@pytest.mark.parametrize("program", HARM)
def test_reaching_out_fails(program, outside):
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = verdict(with_places(program, outside, server.getsockname()[1]) + RIGHT)
    assert not found.passed
    assert any(word in found.reason for word in REFUSED), found.reason


@pytest.mark.parametrize(
    "program",
    [
        "for i in range(1 << 20):\n    open(f'{i}', 'w').write('x' * 60000)\n",
        "import os\nfor i in range(1 << 20):\n    os.mkdir(f'{i}')\n",
    ],
)
def test_disk_cannot_be_filled(program):
    found = verdict(program + RIGHT)
    assert not found.passed
    assert "No space left" in found.reason or "PermissionError" in found.reason


def left_over(mark):
    return [one.pid for one in psutil.process_iter(["cmdline"]) if mark in " ".join(one.info["cmdline"] or [])]


def test_nothing_survives_the_timeout(tmp_path, monkeypatch):
    """Neither ignored signals nor threads keep it; all processes of the sandbox carry its folder in their arguments."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = (
        "import signal, threading, time\n"
        "for s in range(1, 65):\n    try:\n        signal.signal(s, 1)\n    except (OSError, ValueError):\n"
        "        pass\nthreading.Thread(target=time.sleep, args=(600,)).start()\ntime.sleep(600)\n"
    )
    found = verdict(program, wall_s=3)
    assert found.reason == "time: wall clock limit"
    until = time.monotonic() + 10
    while left_over(str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left_over(str(tmp_path)) == []


def test_no_daemon_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    assert verdict(program + RIGHT).passed
    until = time.monotonic() + 10
    while left_over(str(tmp_path)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left_over(str(tmp_path)) == []


LANDLOCK = 444


def test_without_namespaces_every_attack_still_fails(outside):
    """As in a container that refuses them: Landlock and seccomp alone."""
    programs = [RIGHT, *(with_places(program, outside, 9) + RIGHT for program in HARM)]
    programs.append("open('x', 'w')\n" + RIGHT)
    *found, unsafe = in_container([], programs)
    assert found[0][:2] == [True, ""], found[0]
    assert "root" not in found[0][2]
    for program, (passed, reason, _) in zip(programs[1:], found[1:], strict=True):
        assert passed is False, program
        assert any(word in reason for word in REFUSED), (program, reason)
    assert unsafe is True


@pytest.mark.parametrize("steps", ["fcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, 8, PID)\n", "fcntl.fcntl(r, 8, PID)\n"])
def test_no_signal_by_way_of_a_file(steps):
    """A pipe that may signal its owner was a way to kill any process of the user, where none is hidden."""
    victim = subprocess.Popen(["sleep", "60"])
    program = f"import fcntl, os\nr, w = os.pipe()\n{steps.replace('PID', str(victim.pid))}"
    program += "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\n"
    try:
        [[passed, reason, _], _] = in_container([], [program + RIGHT])
        assert (passed, "PermissionError" in reason) == (False, True), reason
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_where_files_stay_open_nothing_is_run(tmp_path):
    *found, unsafe = in_container([LANDLOCK], [RIGHT, f"open({str(tmp_path / 'x')!r}, 'w')\n" + RIGHT])
    for passed, message, _ in found:
        assert passed is None
        assert "not confined: files" in message
        assert "--allow-unsafe" in message
    assert list(tmp_path.iterdir()) == []
    assert unsafe is True


def test_nothing_of_ours_is_seen(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    program = (
        "import os, sys\n"
        "assert 'SECRET_TOKEN' not in os.environ and sys.argv == ['program.py']\n"
        "open_files = []\n"
        "for fd in range(32):\n    try:\n        os.fstat(fd)\n    except OSError:\n        continue\n"
        "    open_files.append(fd)\n"
        "assert open_files == [0, 1, 2, 3, 4], open_files\n"
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
    assert not verdict("class A:\n    pass\n", ["assert a is None"], setup="a = A()").passed
    assert not verdict("import os\nos._exit(0)\n", ["assert a is not None"], setup="a = A()").passed
    assert "setup: NameError" in verdict("", ["assert True"], setup="a = A()").reason


def test_surrogates_and_null_are_a_failure_not_a_crash():
    assert not verdict("x = '\ud800'\nprint(x).y\n").passed
    assert not verdict("\0").passed


def test_results_come_back_as_they_were():
    program = (
        "from collections import Counter, OrderedDict, deque, namedtuple\nfrom decimal import Decimal\n"
        "P = namedtuple('P', 'a b')\nclass L(list):\n    pass\n"
        "def gen(n):\n    yield from range(n)\ndef lazy(n):\n    return map(str, range(n))\n"
        "def views(which):\n    return getattr({'b': 1, 'a': 2}, which)()\n"
        "def many():\n    return [P(1, 2), L([1]), {1, 2}, frozenset([3]), Counter('aab'), None, 1.5,"
        " 2j, b'x', True, -1]\n"
        "def exact():\n    return Decimal('0.1'), OrderedDict(a=1), deque([1]), range(3), float('inf')\n"
    )
    tests = [
        "assert list(gen(3)) == [0, 1, 2] and gen(3) != [0, 1, 2]",
        "assert ','.join(lazy(3)) == '0,1,2'",
        "assert list(views('keys')) == ['b', 'a'] and views('keys') == {'a', 'b'}",
        "assert list(views('values')) == [1, 2] and sorted(views('items')) == [('a', 2), ('b', 1)]",
        "assert many() == [(1, 2), [1], {1, 2}, {3}, {'a': 2, 'b': 1}, None, 1.5, 2j, b'x', True, -1]",
        "from decimal import Decimal\nassert exact()[0] == Decimal('0.1') and exact()[1] == {'a': 1}",
        "assert list(exact()[2]) == [1] and exact()[3] == range(3) and exact()[4] == float('inf')",
    ]
    found = verdict(program, tests)
    assert found.passed, found.reason


def test_names_that_the_tests_call():
    assert sandbox_child.tested_names(["assert f(1, len([2])) == [x for x in g(y)]"]) == ["f", "g", "y"]
    assert sandbox_child.tested_names(["assert sum(10, 15) == 6"]) == ["sum"]
    assert sandbox_child.tested_names(["import math\nassert math.isclose(area(2), 3)"]) == ["area"]
    assert verdict("def sum(a, b):\n    return 6\n", ["assert sum(10, 15) == 6"]).passed
    # A builtin that a test uses beside the program's own function stays the real one
    program = "def f(x):\n    return 0\ndef set(x):\n    return 1\n"
    assert not verdict(program, ["assert set(f([1])) == set([1])"]).passed


def test_what_the_task_gives_is_trusted_and_the_program_is_what_is_tested():
    given = "def double(x):\n    return 2 * x\ndef f(x):\n    'To be written.'\n"
    test = ["def check(candidate):\n    assert double(candidate(1)) == 4\ncheck(f)"]
    assert verdict(given + RIGHT, test, names=["f"], given=given).passed
    forged = given + "def double(x):\n    return 4\ndef f(x):\n    return 0\n"
    assert not verdict(forged, test, names=["f"], given=given).passed
    assert not verdict(given, test, names=["f"], given=given).passed
