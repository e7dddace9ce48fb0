"""`slm-edge pack` as it is typed: results, exit codes, messages without tracebacks, nothing left by Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from build_gguf import tiny_adapter, tiny_base


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    base = tiny_base(folder / "tiny.gguf")
    tiny_adapter(folder / "math.gguf", base, seed=1)
    tiny_adapter(folder / "code.gguf", base, seed=2)
    tiny_adapter(folder / "foreign.gguf", tiny_base(folder / "other.gguf", seed=5))
    (folder / "math.toml").write_text('task = "math"\nsystem = "Think in steps."\nmax_tokens = 99\n')
    return folder


def test_a_pack_from_nothing_to_verified(slm_edge, made, tmp_path):
    pack = tmp_path / "pack"
    build = ["pack", "build", "-o", pack, "--base", made / "tiny.gguf", "--adapter", f"math={made}/math.gguf"]
    code, out, _ = slm_edge(*build, "--card", f"math={made}/math.toml", "--source", "hub:a/b/tiny.gguf", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["default_adapter"] == "math"
    assert data["base"]["carried"] and data["base"]["sources"] == [{"kind": "hub", "repo": "a/b", "file": "tiny.gguf"}]
    assert data["adapters"][0]["card"]["max_tokens"] == 99

    options = [
        "--task",
        "code",
        "--system",
        "Be brief.",
        "--scale",
        "0.5",
        "--temperature",
        "0.2",
        "--max-tokens",
        "64",
    ]
    more = ["--max-tokens", "64", "--stop", "a", "--stop", "b", "--speculate", "exact"]
    code, out, _ = slm_edge("pack", "add", pack, "code", made / "code.gguf", *options, *more)
    assert code == 0 and "code" in out
    code, out, _ = slm_edge("pack", "show", pack, "--json")
    card = json.loads(out)["adapters"][1]["card"]
    assert (card["task"], card["system"], card["scale"], card["temperature"]) == ("code", "Be brief.", 0.5, 0.2)
    assert (card["max_tokens"], card["stop"], card["speculate"]) == (64, ["a", "b"], "exact")
    code, out, _ = slm_edge("pack", "show", pack)
    assert code == 0 and "* default: math" in out and "Think in steps." in out and "guesses (exact)" in out

    assert slm_edge("pack", "verify", pack)[0] == 0
    code, out, _ = slm_edge("pack", "verify", pack, "--json")
    assert json.loads(out)["ok"] is True
    code, out, err = slm_edge("pack", "remove", pack, "maths")
    assert code == 2 and "no adapter 'maths'; it has math, code" in err
    assert slm_edge("pack", "remove", pack, "math")[0] == 0
    assert slm_edge("pack", "verify", pack)[0] == 0


def test_damage_is_exit_code_5_with_the_list(slm_edge, made, tmp_path):
    pack = tmp_path / "pack"
    slm_edge("pack", "build", "-o", pack, "--base", made / "tiny.gguf", "--adapter", f"math={made}/math.gguf")
    with (pack / "tiny.gguf").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")
    (pack / "note.txt").write_text("x")
    code, out, err = slm_edge("pack", "verify", pack)
    assert code == 5 and "tiny.gguf: changed" in err and "note.txt: not in pack.json" in err
    code, out, err = slm_edge("pack", "verify", pack, "--json")
    assert code == 5 and len(json.loads(out)["error"]["problems"]) == 2


def test_the_default_is_the_first_or_none(slm_edge, made, tmp_path):
    adapters = ["--adapter", f"code={made}/code.gguf", "--adapter", f"math={made}/math.gguf"]
    for option, default in (([], "code"), (["--default", "math"], "math"), (["--default", "none"], None)):
        where = tmp_path / f"pack-{default}"
        code, out, _ = slm_edge(
            "pack", "build", "-o", where, "--base", made / "tiny.gguf", *adapters, *option, "--json"
        )
        assert code == 0 and json.loads(out)["default_adapter"] == default


def test_mistakes_are_exit_code_2(slm_edge, made, tmp_path):
    build = ["pack", "build", "-o", tmp_path / "pack", "--base", made / "tiny.gguf"]
    for args, message in (
        (["--adapter", "math"], "NAME=FILE"),
        (["--adapter", f"a={made}/math.gguf", "--adapter", f"a={made}/code.gguf"], "'a' is given twice"),
        (["--adapter", f"a={made}/math.gguf", "--adapter", f"A={made}/code.gguf"], "two adapters of one name"),
        (["--card", "math=x.toml"], "there is no --adapter math"),
        (["--adapter", f"../a={made}/math.gguf"], "'../a' cannot be the name"),
        (["--adapter", f"x={made}/foreign.gguf"], "made for another base"),
        (["--adapter", f"x={made}/tiny.gguf"], "general.type is 'model'"),
        (["--adapter", f"x={made}/none.gguf"], "no such file"),
        (["--source", "somewhere"], "not a source of a base"),
        (["--default", "x"], "default adapter 'x' is not among"),
    ):
        code, out, err = slm_edge(*build, *args)
        assert code == 2 and message in err and out == ""
        assert not (tmp_path / "pack").exists()
    code, _, err = slm_edge("pack", "verify", tmp_path / "none")
    assert code == 2 and "no such folder" in err
    code, _, err = slm_edge("pack", "add", tmp_path, "x", made / "math.gguf", "--scale", "0")
    assert code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_leaves_nothing(made, tmp_path, number):
    """A big file keeps the copy busy while the signal arrives."""
    big = tmp_path / "big.bin"
    with big.open("wb") as stream:
        stream.truncate(1 << 30)
    command = [sys.executable, "-m", "slm_edge.edge", "pack", "build", "-o", str(tmp_path / "pack")]
    command += ["--base", str(made / "tiny.gguf"), "--adapter", f"math={made}/math.gguf", "--include", str(big)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".pack.*/pack/adapters/math.gguf")) and time.monotonic() < end:
        time.sleep(0.01)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.bin", "made"]


@pytest.mark.parametrize("command", ["build", "add", "remove", "show", "verify"])
def test_help_has_an_example(slm_edge, command):
    code, out, _ = slm_edge("pack", command, "--help")
    assert code == 0 and "Example" in out and "slm-edge pack" in out
