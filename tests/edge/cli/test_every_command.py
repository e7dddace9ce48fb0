"""Every command where output or disk fail: the right exit code, one message, no traceback."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from build_commands import command_lines, filled, leaves, make_files
from slm_edge.edge.cli.main import main

NUMBERS = itertools.count()
# What cannot say it on stdout does on stderr.
CLOSED, FULL = 2, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def run(files, monkeypatch):
    """Runs a command in this process with a stdout of its own: exit code and stderr."""
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]

    def run(name, stdout, *more):
        words = filled(command_lines(files)[name], files / "own", files / "own" / "pack", next(NUMBERS))
        err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        monkeypatch.setattr(sys, "argv", ["slm-edge", *words, *more])
        monkeypatch.setattr(sys, "stdin", io.StringIO("Grüße 你好\n/adapter list\n"))
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main()
        said = err.buffer.getvalue().decode()
        assert "Traceback" not in said
        return ended.value.code, said

    yield run
    for number, handler in handlers:
        signal.signal(number, handler)


def text_stream(encoding="utf-8"):
    return io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)


def test_the_table_has_every_command(files):
    assert sorted(command_lines(files)) == sorted(leaves())


@pytest.mark.parametrize("name", list(leaves()))
def test_outputs(files, run, name):
    plain = text_stream()
    right, said = run(name, plain)
    out = plain.buffer.getvalue().decode()
    # Exit 1 is the verdict of `devices fit`; every refusal has a message.
    assert right in (0, 1, 2, 3), said
    assert said if right > 1 else out

    narrow = text_stream("latin-1")
    assert run(name, narrow)[0] == right
    assert narrow.buffer.getvalue()[:1] == out.encode("latin-1", "replace")[:1]
    as_json = text_stream("ascii")
    more = [] if name in ("chat", "help") else ["--json"]
    assert run(name, as_json, *more)[0] == right
    if more:
        found = json.loads(as_json.buffer.getvalue().decode("ascii"))
        assert ("error" in found) == (right > 1)

    code, said = run(name, None, *more)
    assert code == (CLOSED if right < 2 else right)
    assert "closed" in said if right < 2 else said
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        code, said = run(name, full, *more)
        assert code == (FULL if right < 2 else right)
        assert "No space left" in said if right < 2 else said
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as gone:
        assert run(name, gone, *more)[0] == (0 if right < 2 else right)


@pytest.mark.parametrize("name", list(leaves()))
def test_help_everywhere(monkeypatch, name):
    def code_with(stdout):
        monkeypatch.setattr(sys, "argv", ["slm-edge", *name.split(), "--help"])
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", text_stream())
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    assert code_with(text_stream("ascii")) == 0
    assert code_with(None) == CLOSED
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        assert code_with(full) == FULL


# In namespaces of its own: mounts a small file system, lets `fill` or a remount end writing, and runs the lines in this
# one process.
CHILD = """
import contextlib, io, json, os, shutil, subprocess, sys
from pathlib import Path
job = json.loads(sys.stdin.read())
place = Path(job["place"])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True).returncode:
    sys.exit(99)
shutil.copytree(job["pack"], place / "pack")
if job["kind"] == "full":
    with open(place / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
else:
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
from slm_edge.edge.cli.main import main
results = {}
for name, words in job["lines"].items():
    sys.argv = ["slm-edge", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            code = repr(error)
    results[name] = [code, err.getvalue()]
left = sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))
print(json.dumps([results, left]))
"""
# What writes into a folder that it is given, and fails for no other reason before.
WRITERS = (
    *("push", "pack add", "pack build", "router examples", "router put", "export base", "export lora", "export merge"),
    "bench perplexity",
)


@pytest.mark.parametrize(("kind", "code"), [("full", 4), ("read-only", 2)])
def test_disks(files, tmp_path, kind, code):
    place = tmp_path / "disk"
    place.mkdir()
    lines = command_lines(files)
    job = {
        "place": str(place),
        "pack": str(files / "pack"),
        "kind": kind,
        "lines": {name: filled(lines[name], place, place / "pack", 0) for name in WRITERS},
    }
    words = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", CHILD]
    done = subprocess.run(words, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    results, left = json.loads(done.stdout)
    for name, (found, said) in results.items():
        assert found == code, (name, found, said)
        assert "slm-edge: " in said and "Traceback" not in said, name
        assert str(place) in said, (name, said)
    whole = {path.relative_to(files / "pack").as_posix() for path in (files / "pack").rglob("*")}
    # A folder of answers stays, to go on from.
    left = {name for name in left if not name.startswith("ppl0")}
    assert left == {"pack", *(f"pack/{name}" for name in whole), *({"filler"} if kind == "full" else ())}
