"""All that is shown passes one place: nothing in it steers a terminal, whoever wrote the text."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_gguf import tiny_pack
from slm_edge.edge import console
from slm_edge.edge.files.read import sha256_file
from slm_edge.edge.pack.manifest import PACK_FILE, render

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
C0 = "".join(map(chr, range(32))).replace("\t", "").replace("\n", "")
STEERING = C0 + "\x7f" + "".join(map(chr, range(0x80, 0xA0))) + BIDI + "\udfff\ud800"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202e\r\b"
HARMLESS = "\t\n äß你好🙂\u2028\ufeff\u00ad\u200d"


def on_terminal(*words, said=b""):
    """What a command writes to a pseudo-terminal, and its exit code."""
    pid, handle = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "slm_edge.edge", *map(str, words)])
    if said:
        os.write(handle, said)
    out = b""
    while True:
        try:
            got = os.read(handle, 65536)
        except OSError:
            break
        if not got:
            break
        out += got
    return out.decode("utf-8"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def changed(pack, folder, change=None, card=None):
    """A copy of a pack with other words in it, and a right seal."""
    shutil.copytree(pack, folder)
    data = json.loads((folder / PACK_FILE).read_text())
    if card:
        path = folder / "adapters/math.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | card))
        data["files"]["adapters/math.json"] = sha256_file(path)
    data.pop("seal")
    (folder / PACK_FILE).write_text(render(data | (change or {})))
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("pack"))


def steers(text):
    """What a terminal would obey, but for what a terminal line itself has."""
    return re.findall(f"[{re.escape(STEERING)}]", text.replace("\r\n", "\n"))


def test_what_steers_is_replaced_and_nothing_else():
    assert console.harmless(STEERING) == "\N{REPLACEMENT CHARACTER}" * len(STEERING)
    assert console.harmless(HARMLESS) == HARMLESS


def test_json_has_escapes_for_it():
    data = {"a" + STEERING: [HARMLESS + STEERING]}
    text = console.json_text(data)
    assert json.loads(text) == data
    assert not steers(text)
    text.encode("utf-8")


def test_a_packs_texts_on_a_terminal(pack, tmp_path, monkeypatch):
    # The terminal takes the NUL of /save away and keeps the rest, a name in this folder.
    monkeypatch.chdir(tmp_path)
    texts = {"task": f"t{ESCAPES}", "description": f"d{ESCAPES}", "system": f"s{ESCAPES}", "licence": f"l{ESCAPES}"}
    hostile = changed(pack, tmp_path / "pack", {"name": f"n{ESCAPES}"}, texts)
    for words in (("pack", "show", hostile), ("pack", "verify", hostile), ("router", "show", hostile)):
        out, code = on_terminal(*words)
        # `verify` draws its progress.
        assert not steers(out) or words[1] == "verify"
        assert "\x1b]0;owned" not in out and "\u009b31m" not in out and "\u202e" not in out
        assert "owned" not in out or "\N{REPLACEMENT CHARACTER}" in out
        assert code in (0, 2)
    out, code = on_terminal("pack", "show", hostile, "--json")
    assert code == 0 and not steers(out)
    found = json.loads(out)
    assert found["name"] == f"n{ESCAPES}"
    assert found["adapters"][0]["card"]["description"] == f"d{ESCAPES}"
    out, code = on_terminal("chat", "--pack", hostile, said=b"/adapter list\n/save ~nouser/x\n/save a\0b\n/quit\n")
    assert code == 0
    assert "owned" in out
    # The line editor's own codes are the terminal's; what the pack says has none.
    assert "\x1b]0;owned" not in out and "\u009b31m" not in out and "\u202e" not in out
    assert "no path" in out


def test_errors_on_a_terminal(pack, tmp_path):
    for words in (
        ("pull", tmp_path / f"x{ESCAPES}"),
        ("run", "--pack", pack, "--adapter", f"a{ESCAPES}", "hi"),
        (f"x{ESCAPES}",),
        ("run", f"--{ESCAPES}"),
    ):
        out, code = on_terminal(*words)
        assert code == 2
        assert not steers(out), words


@contextlib.contextmanager
def streams(monkeypatch):
    """Ours over streams in memory: what was written to stdout and to stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with console.own_streams():
        yield out.buffer, err.buffer


def test_stderr_is_cleaned_always_and_stdout_on_a_terminal_alone(monkeypatch):
    with streams(monkeypatch) as (out, err):
        sys.stdout.write(f"a{ESCAPES}")
        sys.stderr.write(f"b{ESCAPES}")
        console.note(f"\rc{ESCAPES}")
    assert out.getvalue().decode() == f"a{ESCAPES}"
    assert not steers(err.getvalue().decode())


def test_a_librarys_progress_line_may_begin_anew(monkeypatch):
    with streams(monkeypatch) as (_, err):
        sys.stderr.write("\r50 %\rforged")
    assert err.getvalue().decode() == "\r50 %\N{REPLACEMENT CHARACTER}forged"


def test_nobody_writes_past_them(monkeypatch):
    with streams(monkeypatch):
        for stream in (sys.stdout, sys.stderr):
            assert not hasattr(stream, "buffer")
            with pytest.raises(TypeError):
                stream.write(b"bytes")


def test_what_is_lost_on_stderr_is_no_error(monkeypatch):
    for lost in (None, Path("/dev/full").open("w", encoding="utf-8")):  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", lost)
        with console.own_streams():
            console.note("lost")
            sys.stderr.flush()


def test_progress_draws_and_its_words_do_not_steer():
    code = (
        "from slm_edge.edge.console import own_streams, progress\n"
        "with own_streams(), progress('a\\x1b]0;owned\\x07[bold]b[/x]', 3) as advance:\n"
        "    advance(1, text='c\\x1b]0;owned\\x07\\x9b[red]')\n"
    )
    pid, handle = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    out = b""
    while True:
        try:
            out += os.read(handle, 65536)
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"\x1b]0;owned" not in out and "\x9b".encode() not in out
    assert b"[bold]b[/x]" in out


def test_closed_streams_do_not_give_their_numbers_to_files(pack):
    """Otherwise the next file that is opened would be descriptor 1 or 2."""
    command = f"exec {sys.executable} -m slm_edge.edge run --pack {pack} --max-tokens 2 hi <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 2
    command = f"{sys.executable} -m slm_edge.edge chat --pack {pack} <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr and "Traceback" not in done.stderr
    command = f"{sys.executable} -m slm_edge.edge pack show {pack} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_byte_order_mark_is_no_part_of_a_prompt(pack):
    def n_tokens(prompt):
        words = [sys.executable, "-m", "slm_edge.edge", "run", "--pack", pack, "--max-tokens", "1", "--json", "-"]
        done = subprocess.run([*map(str, words)], input=prompt, capture_output=True, check=True)
        return json.loads(done.stdout)["n_prompt_tokens"]

    assert n_tokens("\ufeffHello\r\n".encode()) == n_tokens(b"Hello")
