"""Writing whole or not at all, and locks between processes."""

import signal
import subprocess
import sys
import time

import pytest
from slm_edge.edge.errors import InputError
from slm_edge.edge.files.atomic import atomic_file, atomic_folder, locked, write_json
from slm_edge.edge.files.read import read_json, sha256_file


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces(tmp_path):
    dest = tmp_path / "a.bin"
    dest.write_bytes(b"old")
    with atomic_file(dest) as aside:
        aside.write_bytes(b"new")
        assert dest.read_bytes() == b"old"
    assert dest.read_bytes() == b"new"
    assert names_in(tmp_path) == ["a.bin"]


def test_a_failed_write_leaves_what_was(tmp_path):
    dest = tmp_path / "a.bin"
    dest.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(dest) as aside:
        aside.write_bytes(b"half")
        raise RuntimeError
    assert dest.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_nothing(tmp_path, number):
    """A real process, stopped in the middle of a write, through the command line's own signal handling."""
    code = (
        "import sys, time, click\n"
        "from slm_edge.edge.cli import main as cli\n"
        "from slm_edge.edge.files.atomic import atomic_file\n"
        "@click.command()\n"
        "def hang():\n"
        "    with atomic_file(sys.argv[1] + '/x.gguf') as aside:\n"
        "        aside.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)\n"
        "cli.cli = hang\n"
        "folder = sys.argv[1]; sys.argv = ['x', folder]\n"
        "hang.params = [click.Argument(['folder'])]; hang.callback = (lambda f: lambda folder: f())(hang.callback)\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert names_in(tmp_path) == []


def test_folder_whole_or_not(tmp_path):
    dest = tmp_path / "pack"
    with pytest.raises(RuntimeError), atomic_folder(dest) as aside:
        (aside / "f").write_text("x")
        raise RuntimeError
    assert names_in(tmp_path) == []
    with atomic_folder(dest) as aside:
        (aside / "f").write_text("x")
    assert (dest / "f").read_text() == "x"
    with pytest.raises(InputError, match="exists already"), atomic_folder(dest):
        pass
    with atomic_folder(dest, replace=True) as aside:
        (aside / "g").write_text("y")
    assert names_in(dest) == ["g"]
    assert names_in(tmp_path) == ["pack"]


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="mkdir -p"), atomic_file(tmp_path / "no" / "a"):
        pass


def test_json_round_trip_and_faults(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, 2.5, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InputError, match=r"c\.json"):
        read_json(tmp_path / "c.json")


def test_sha256_of_the_standards_example(tmp_path):
    # FIPS 180-4's example message.
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_holds_between_processes(tmp_path):
    code = (
        "import sys, time\n"
        "from slm_edge.edge.files.atomic import locked\n"
        "with locked(sys.argv[1]):\n"
        "    print('held', flush=True); sys.stdin.readline(); print('left', flush=True)\n"
    )
    lock = tmp_path / "x.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    waited = []

    def on_wait():
        waited.append(time.monotonic())
        process.stdin.write("go\n")
        process.stdin.flush()

    with locked(lock, on_wait=on_wait):
        assert process.stdout.readline() == "left\n"
    assert len(waited) == 1
    process.wait(timeout=10)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    code = (
        "import sys, time\n"
        "from slm_edge.edge.files.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1]) as aside:\n"
        "    aside.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)\n"
    )
    dest = tmp_path / "a.gguf"
    command = [sys.executable, "-c", code, str(dest)]
    dead, alive = (subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2))
    try:
        assert dead.stdout.readline() == alive.stdout.readline() == b"ready\n"
        dead.kill()
        dead.wait()
        others = [".a.gguf.old", ".a.gguf.k3j2h1g0", ".b.gguf.k3j2h1g0.aside", "a.gguf.k3j2h1g0.aside"]
        for name in others:
            (tmp_path / name).mkdir()
        with atomic_file(dest) as aside:
            aside.write_bytes(b"whole")
        left = [name for name in names_in(tmp_path) if name not in others]
        assert len(left) == 2, left
        assert (tmp_path / left[0] / "a.gguf").read_bytes() == b"half"
    finally:
        alive.terminate()
        alive.wait()
        dead.stdout.close()
        alive.stdout.close()
    # Ended by a signal that nobody handled: a dead one's now.
    write_json(dest, {})
    assert names_in(tmp_path) == sorted([*others, "a.gguf"])


def test_a_folder_that_was_about_to_be_replaced_is_put_back(tmp_path):
    """Where a file system cannot exchange folders, a kill may come between the two renames."""
    aside = tmp_path / ".pack.k3j2h1g0.aside"
    (aside / "pack.replaced").mkdir(parents=True)
    (aside / "pack.replaced" / "f").write_text("old")
    (aside / "pack").mkdir()
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path / "pack"):
        pass
    assert (tmp_path / "pack" / "f").read_text() == "old"
    assert names_in(tmp_path) == ["pack"]
