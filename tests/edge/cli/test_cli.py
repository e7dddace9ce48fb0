"""The command line's own promises: one message, an exit code, no traceback."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import STARTER_BASE, STARTER_BASE_SHA256
from slm_edge.edge import errors
from slm_edge.edge.files.cache import base_cache_path, old_base_path

ROOT = Path(__file__).parents[3]


def slm_edge(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "slm_edge.edge", *args], capture_output=True, text=True, timeout=120, **options
    )


def test_help_names_every_command():
    result = slm_edge("--help")
    assert result.returncode == 0
    for name in ("run", "pull", "pack", "export", "train", "bench"):
        assert name in result.stdout


@pytest.mark.parametrize("command", [["run"], ["pull"], ["demo"], ["pack"], ["export"], ["train"], ["bench"]])
def test_every_command_shows_an_example(command):
    result = slm_edge(*command, "--help")
    assert result.returncode == 0, result.stderr
    assert "Example" in result.stdout or "Commands" in result.stdout


def test_an_unknown_command_is_met_with_the_nearest():
    result = slm_edge("exprt")
    assert result.returncode == 2
    assert "did you mean export" in result.stderr
    assert "Traceback" not in result.stderr


OTHERS_WORDS = ["ls", "version", "config", "cache", "completion", "models", "create", "stop"]
OTHERS_WORDS += ["delete", "help"]


@pytest.mark.parametrize("word", OTHERS_WORDS)
def test_others_words_are_met_with_what_to_type(word):
    """Each is a command here, or one line says what to type; no nearest letters."""
    result = slm_edge(word)
    assert "did you mean" not in result.stderr
    if word in ("help", "cache"):
        assert "Usage: " in result.stdout + result.stderr
        return
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert f"There is no command '{word}': " in line and line.endswith((".", ")"))


@pytest.mark.parametrize("words", [[], ["run"], ["pack", "build"], ["help"]])
def test_help_is_a_command_too(words):
    assert slm_edge("help", *words).stdout == slm_edge(*words, "--help").stdout != ""
    assert slm_edge("help", *words, "nonsense").returncode == 2


def test_version_says_what_computes():
    from llama_cpp import llama_print_system_info

    features = {
        part.split(" = ")[0].split()[-1] for part in llama_print_system_info().decode().split("|") if "= 1" in part
    }
    lines = slm_edge("--version").stdout.splitlines()
    assert lines[0] == f"slm-edge, version {metadata.version('slm-edge')}"
    assert metadata.version("llama-cpp-python") in lines[2] and "ggml" in lines[2]
    assert set(lines[3].split()[1:]) == features


def test_doctor_says_what_is_here_and_what_is_to_do(own_cache):
    result = slm_edge("doctor", "--json")
    data = json.loads(result.stdout)
    assert (result.returncode, data["faults"]) == (0, [])
    assert data["cache"] == {"folder": str(own_cache), "files": []}
    assert any("slm-edge pull starter" in line for line in data["advice"])
    assert min(data["memory"]["total_bytes"], data["memory"]["free_bytes"], data["disk_free_bytes"]) > 0
    base = base_cache_path(STARTER_BASE_SHA256)
    base.parent.mkdir(parents=True)
    base.write_bytes(b"x" * 2048)
    kernels = data["llama_cpp"]
    assert kernels["prompt_kernels_missing"] == ("not built" in kernels["prompt_kernels"])
    assert kernels["prompt_kernels_missing"] == any("kernels are not built" in line for line in data["advice"])
    text = slm_edge("doctor").stdout
    assert "pull starter" not in text and f"{own_cache / 'store'}, 2.0 KiB" in text
    assert "hub        http" in text
    broken = slm_edge("doctor", env={**os.environ, "LLAMA_CPP_LIB_PATH": str(own_cache)})
    assert broken.returncode == 1
    assert "FAULT" in broken.stdout and "pip install --force-reinstall" in broken.stdout


def test_the_cache_is_listed_and_cleaned(own_cache):
    kept, other = old_base_path(STARTER_BASE_SHA256), own_cache / "notes.txt"
    for path in (
        kept,
        kept.with_suffix(".gguf.part"),
        kept.with_suffix(".lock"),
        own_cache / "devices/probe.json",
        other,
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 1024)
    listed = slm_edge("cache", "list").stdout
    assert STARTER_BASE in listed and listed.splitlines()[-1].split() == ["4.0", "KiB", str(own_cache)]
    gone = json.loads(slm_edge("cache", "clean", "--json").stdout)["deleted"]
    assert [Path(row["file"]).name for row in gone] == [f"{STARTER_BASE_SHA256}.gguf.part", "probe.json"]
    assert kept.is_file()
    assert slm_edge("cache", "clean", "--bases").stdout.startswith("1 files deleted, 1.0 KiB")
    assert not kept.exists() and other.is_file()


def test_an_error_has_one_message_and_a_code(tmp_path):
    result = slm_edge("pull", str(tmp_path / "no-pack"))
    assert result.returncode == 2
    assert "no-pack" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_as_json(tmp_path):
    result = slm_edge("pull", str(tmp_path / "no-pack"), "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2


def test_a_missing_extra_names_its_installation():
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'rouge_score':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from slm_edge.edge.cli.main import main\n"
        "from slm_edge.edge.cli.lazy import Entry\n"
        "import click, slm_edge.edge.cli.main as c\n"
        "@click.command()\n"
        "def bench():\n"
        "    import rouge_score\n"
        "sys.modules['fake'] = type(sys)('fake')\n"
        "import slm_edge.edge; slm_edge.edge.fake = None\n"
        "import types; m = types.ModuleType('slm_edge.edge.fake'); m.bench = bench\n"
        "sys.modules['slm_edge.edge.fake'] = m\n"
        "c.cli.entries['bench'] = Entry('edge.fake:bench', 'x', 'bench')\n"
        "sys.argv = ['slm-edge', 'bench']; main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert f"pip install -e '{ROOT}[bench]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_exit_codes_are_distinct_and_documented():
    kinds = [
        errors.SlmEdgeError,
        errors.InputError,
        errors.UnsupportedError,
        errors.DoesNotFitError,
        errors.DamagedError,
        errors.EngineError,
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert f"exit {kind.exit_code}" in errors.__doc__
        assert kind.__name__ in errors.__doc__


def test_a_message_has_what_where_and_what_to_do():
    error = errors.InputError("is wrong", where="a.gguf", problems=["one", "two"], hint="do this")
    assert str(error) == "a.gguf: is wrong\n  - one\n  - two\n  do this"
