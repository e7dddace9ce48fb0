"""What is public: each name can be imported, stands in `__all__` and on its page, costs nothing before it is used,
and type checkers see it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import slm_edge
from build_gguf import tiny_pack
from slm_edge.edge.errors import SlmEdgeError as Error

ROOT = Path(__file__).parent.parent
ERRORS = (
    "SlmEdgeError InputError UnsupportedError DoesNotFitError DamagedError EngineError BusyError ConflictError "
    "UnreachableError"
)
PUBLIC = {
    "slm_edge": "Engine Pack Session SlmEdgeError __version__ open_session",
    "slm_edge.edge": "Answer Decision Engine EngineOptions MemoryPlan Message NewAdapter Pack Pending Piece Router "
    f"Session Settings Stream TaskCard Ticket build_pack open_session plan_memory {ERRORS}",
    "slm_edge.export": "export_base export_lora export_onnx export_onnx_adapter verify",
    "slm_edge.train": "Recipe train",
    "slm_edge.devices": "Target Wish find_device judge",
}
PAGE = ROOT / "docs" / "python-api.md"
NAMES = [(package, name) for package, names in PUBLIC.items() for name in names.split()]


def fresh(code):
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("package", PUBLIC)
def test_all_is_what_is_public(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Sesion'"):
        module.Sesion  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {package} import nothing")


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_each_name_is_what_its_module_defines(package, name):
    found = getattr(importlib.import_module(package), name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+.*", found)
        return
    assert found.__name__ == name
    assert found.__module__.startswith("slm_edge.") and found.__doc__
    if name.endswith("Error"):
        assert issubclass(found, Error)


def test_names_do_not_turn_into_modules():
    """`verify` and `train` are functions, whatever was imported before."""
    code = "import slm_edge.export.proof.verify, slm_edge.train.run.job\n"
    code += "from slm_edge.export import verify; from slm_edge.train import train\n"
    code += "print(verify.__name__, callable(train))"
    assert fresh(code) == ["verify", "True"]


def test_each_name_is_on_the_page():
    if not PAGE.is_file():
        pytest.skip("there is no page yet")
    page = PAGE.read_text(encoding="utf-8")
    missing = [f"{package}.{name}" for package, name in NAMES if not re.search(rf"\b{name}\b", page)]
    assert not missing


def test_importing_costs_nothing():
    """A deterministic stand-in for the bound of 0.25 s: nothing foreign, and none of our modules but these."""
    for package in PUBLIC:
        code = f"import sys; before = set(sys.modules); import {package}\n"
        code += "new = set(sys.modules) - before\n"
        code += "print(*sorted(name for name in new if name.partition('.')[0] not in sys.stdlib_module_names))"
        assert set(fresh(code)) == {"slm_edge", package}


def test_errors_and_choices_need_no_engine():
    code = "import sys; from slm_edge.edge import InputError, EngineOptions, Pack, TaskCard, open_session\n"
    code += "print(*{'numpy', 'llama_cpp', 'jinja2', 'rich', 'onnxruntime', 'torch'} & set(sys.modules))"
    assert fresh(code) == []


def test_the_first_lines_of_the_docstrings_run(tmp_path):
    """Open, ask, stream, choose for one call, and the errors, as a newcomer types them."""
    pack = tiny_pack(tmp_path)
    with slm_edge.open_session(pack, adapter="math", threads=1) as session:
        assert isinstance(session, slm_edge.Session)
        whole = session.ask("the world", max_tokens=5)
        assert "".join(session.stream("the world", max_tokens=5)) == whole.text
        assert session.ask("the world", adapter="code", max_tokens=5).adapter == "code"
    with slm_edge.Session.open(slm_edge.Pack.open(pack), threads=1) as session:
        assert session.ask("the world", max_tokens=5).text == whole.text
    with pytest.raises(slm_edge.SlmEdgeError, match="pack"):
        slm_edge.open_session(tmp_path / "nothing")


# What a user's program may say, and what a type checker must find wrong in it.
PROGRAM = """
import slm_edge
from slm_edge.devices import Target, Wish, find_device, judge
from slm_edge.edge import Answer, EngineOptions, Message, Pack, Session, Settings, SlmEdgeError, open_session
from slm_edge.export import export_base, export_lora, export_onnx, export_onnx_adapter, verify
from slm_edge.train import Recipe, train

options: EngineOptions = {"threads": 1}
settings: Settings = {"max_tokens": 3, "temperature": 0.5}
talk: list[Message] = [{"role": "user", "content": "hello"}]
with open_session("pack", **options) as session:
    answer: Answer = session.ask(talk, adapter="math", **settings)
    text: str = answer.text
with slm_edge.open_session(Pack.open(None), "onnx", adapter={"math": 0.7}) as other:
    other.engine.threads
version: str = slm_edge.__version__
reveal_type(session)
reveal_type(other.submit("hello").result().token_ids)
reveal_type(export_lora("a", "b", "c").sha256)
session.ask("hello", max_token=3)
open_session(None, thread=1)
from slm_edge.edge import Sesion
slm_edge.Sesion
"""
FOUND = """
: note: Revealed type is "slm_edge.edge.session.session.Session"
: note: Revealed type is "tuple[int, ...]"
: note: Revealed type is "str"
: error: Unexpected keyword argument "max_token" for "ask" of "SessionBase"; did you mean "max_tokens"?
: error: Unexpected keyword argument "thread" for overloaded function "open_session"; did you mean "threads"?
: error: Module "slm_edge.edge" has no attribute "Sesion"; maybe "Session"?
: error: Module has no attribute "Sesion"; maybe "Session"?
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git would check out, elsewhere."""
    folder = tmp_path_factory.mktemp("checkout") / "slm-edge"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in listed.stdout.rstrip("\0").split("\0"):
        if (ROOT / name).exists() and not name.startswith(("tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.mark.parametrize("way", ["wheel", "editable"])
def test_type_checkers_see_it_once_installed(checkout, tmp_path, way):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    what = [str(checkout)] if way == "wheel" else ["-e", str(checkout)]
    done = subprocess.run([*install, *what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "program.py").write_text(PROGRAM)
    # Packages that are not in that environment are none of its business here.
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    environment = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run([*command, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = [line.removeprefix("program.py:").partition(": ") for line in done.stdout.splitlines()]
    missing = set(FOUND.strip().splitlines()) - {f": {text.partition('  [')[0]}" for _, _, text in found}
    assert not missing, done.stdout + done.stderr
    # What is meant to be wrong is, and nothing else.
    assert {int(line) for line, _, text in found if text.startswith("error")} == {20, 21, 22, 23}, done.stdout
    ran = subprocess.run(
        [python, "-c", "import slm_edge; print(slm_edge.__version__, slm_edge.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(checkout if way == "editable" else tmp_path) in ran.stdout
