"""Programs in the sandbox end with the process that judges them, however that ends, and by a clock of their own."""

import os
import signal
import subprocess
import time

import psutil
import pytest
from build_container import container_command, unshare_number
from slm_edge.benchmarks.sandbox.sandbox import missing_layers

# Ignores what can be ignored, and has a thread
SLEEPER = (
    "import signal, threading, time\n"
    "for s in range(1, 65):\n    try:\n        signal.signal(s, 1)\n    except (OSError, ValueError):\n        pass\n"
    "threading.Thread(target=time.sleep, args=(600,)).start()\nopen('/dev/null')\ntime.sleep(600)\n"
)


def until(true, limit_s=30):
    end = time.monotonic() + limit_s
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture(params=["namespaces", "none"])
def host(request, tmp_path):
    """A process that runs a program which sleeps; three processes of the sandbox below it."""
    if missing := missing_layers():
        pytest.skip(f"this system confines no code ({', '.join(missing)})")
    refused = [unshare_number()] if request.param == "none" else []
    wall_s = getattr(request.function, "wall_s", 300)
    command = container_command(refused, [SLEEPER], wall_s)
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def sandbox_of(host):
    return until(lambda: len(found := psutil.Process(host.pid).children(recursive=True)) == 3 and found)


def ended(processes):
    """Also as a zombie, where nobody asks for the status of orphans."""
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_programs_die_with_the_process_that_judges_them(host, tmp_path, number):
    processes = sandbox_of(host)
    # One at least lies in a session of its own, out of reach of a terminal's signals
    assert any(os.getsid(one.pid) != os.getsid(host.pid) for one in processes)
    assert len(list(tmp_path.iterdir())) == 1
    host.send_signal(number)
    host.wait()
    assert until(lambda: ended(processes))
    assert until(lambda: list(tmp_path.iterdir()) == [])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_whichever_of_its_processes_is_killed_all_end(host, which):
    processes = sandbox_of(host)
    os.kill(sorted(processes, key=lambda one: one.create_time())[which].pid, signal.SIGKILL)
    assert until(lambda: ended(processes))


def test_programs_have_a_clock_of_their_own(host, tmp_path):
    processes = sandbox_of(host)
    host.send_signal(signal.SIGSTOP)
    assert until(lambda: ended(processes))
    assert list(tmp_path.iterdir()) == []


test_programs_have_a_clock_of_their_own.wall_s = 5
