"""The command line's own promises: one message, an exit code, no traceback."""

import json
import subprocess
import sys

import pytest
from slm_edge.edge import errors


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
    assert "pip install 'slm-edge[bench]'" in result.stderr
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
