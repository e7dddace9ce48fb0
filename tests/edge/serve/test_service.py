"""The server as a service: systemd's own tools read the unit, a socket like systemd's hears what the server says."""

import configparser
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from build_gguf import tiny_pack
from slm_edge.edge.serve.supervise import tell, watchdog_s
from slm_edge.edge.serve.unit import Service, unit_text


def slm_edge(*words, code=0, **how):
    command = [sys.executable, "-m", "slm_edge.edge", *map(str, words)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, **how)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("service"))


def read(text):
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(text)
    return unit


def test_the_unit_has_whole_paths_and_hands_the_keys_over(pack):
    (pack.parent / "my keys.txt").write_text("")
    words = ["./pack", "--keys=my keys.txt", "--host", "0.0.0.0", "--alias", "50%=auto", "--drain", "5"]
    unit = read(slm_edge("service", "--print", *words, cwd=pack.parent))
    command = shlex.split(unit["Service"]["ExecStart"].replace("%%", "%"))
    at = command.index("serve")
    assert command[at:] == ["serve", str(pack), "--host", "0.0.0.0", "--alias", "50%=auto", "--drain", "5"]
    assert os.access(command[0], os.X_OK)
    assert unit["Service"]["LoadCredential"] == f"slm-edge-keys:{pack.parent}/my keys.txt"
    assert unit["Service"]["Type"] == "notify" and int(unit["Service"]["WatchdogSec"]) > 0
    assert unit["Service"]["TimeoutStopSec"] == "20"
    mine = read(slm_edge("service", "--user", "--print", pack, "--keys", "my keys.txt", cwd=pack.parent))
    assert f'"{pack.parent}/my keys.txt"' in mine["Service"]["ExecStart"] and "DynamicUser" not in mine["Service"]
    assert mine["Install"]["WantedBy"] == "default.target"


def test_what_cannot_be_a_service_is_told(pack, tmp_path):
    assert "Say install, uninstall or --print" in slm_edge("service", code=2)
    assert "--bogus" in slm_edge("service", "--print", "--bogus", code=2)
    assert "needs a pack by its path" in slm_edge("service", "--print", "nothing-here", code=2)
    assert "name of the service" in slm_edge("service", "--print", "--name", "a/b", pack, code=2)
    assert "no such service" in slm_edge("service", "uninstall", "--root", tmp_path, code=2)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("user", [False, True])
def test_systemd_takes_the_unit(pack, tmp_path, user):
    command = [sys.executable, "serve", str(pack), "--alias", 'a "b" $HOME 50% \\ é=auto']
    path = tmp_path / "slm-edge.service"
    path.write_text(unit_text(Service("slm-edge", command, user, keys=None if user else tmp_path / "keys")))
    done = subprocess.run(
        ["systemd-analyze", "--user" if user else "--system", "verify", path],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "slm-edge.service" in line]
    assert not complaints


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemctl")
def test_it_goes_into_another_root_and_out_again(pack, tmp_path):
    said = json.loads(slm_edge("service", "install", "--root", tmp_path, "--name", "talk", pack, "--json"))
    unit = tmp_path / "etc/systemd/system/talk.service"
    wanted = tmp_path / "etc/systemd/system/multi-user.target.wants/talk.service"
    assert said["path"] == str(unit) and str(pack) in unit.read_text() and wanted.is_symlink()
    assert unit.stat().st_mode & 0o777 == 0o644
    slm_edge("service", "uninstall", "--root", tmp_path, "--name", "talk")
    assert not unit.exists() and not wanted.is_symlink()


def test_the_server_says_that_it_is_ready_works_and_ends(pack, tmp_path):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(60)
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    command = [sys.executable, "-m", "slm_edge.edge", "serve", str(pack), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    try:
        heard = []
        while heard.count("WATCHDOG=1") < 3 or "READY=1" not in heard:
            heard.append(manager.recv(100).decode())
        assert heard.count("READY=1") == 1
        process.send_signal(signal.SIGTERM)
        while heard[-1] != "STOPPING=1":
            heard.append(manager.recv(100).decode())
        assert process.wait(60) == 0
        assert json.loads(process.stdout.read())["addresses"]
    finally:
        process.kill()
        process.communicate()


def test_without_a_manager_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not tell("READY=1")
    for value, pid, limit_s in (("1500000", None, 1.5), ("0", None, None), ("x", None, None), ("5", "1", None)):
        monkeypatch.setenv("WATCHDOG_USEC", value)
        if pid is None:
            monkeypatch.delenv("WATCHDOG_PID", raising=False)
        else:
            monkeypatch.setenv("WATCHDOG_PID", pid)
        assert watchdog_s() == limit_s
    name = f"slm-edge-{os.getpid()}-{time.monotonic_ns()}"
    if sys.platform == "linux":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{name}")
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
            assert tell("READY=1") and manager.recv(20) == b"READY=1"
