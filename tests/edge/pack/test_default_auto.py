"""A pack whose default is `auto`: built, opened, answered from, and changed until nothing is left to choose by."""

import json
import subprocess
import sys

import pytest
from build_gguf import tiny_pack
from slm_edge.edge.errors import InputError
from slm_edge.edge.pack.manifest import ROUTER_FILE
from slm_edge.edge.pack.pack import Pack, starter_folder
from slm_edge.edge.pack.write import NewAdapter, add_files, build_pack, remove_adapter
from slm_edge.edge.session.session import Session

SUM, CODE, HELLO = "What is 17 + 25?", "Write a Python function that adds two numbers.", "Write a haiku about rain."


def build(folder, default, router=True):
    pack = Pack.open(tiny_pack(folder))
    adapters = [NewAdapter(name, packed.path) for name, packed in pack.adapters.items()]
    given = starter_folder() / ROUTER_FILE if router else None
    return build_pack(folder / "auto", base=pack.base_path(), adapters=adapters, default_adapter=default, router=given)


def test_the_router_chooses_for_each_prompt_until_an_adapter_is_named(tmp_path):
    pack = build(tmp_path, "auto")
    with Session.open(pack, threads=1) as session:
        chosen = [session.ask(prompt, max_tokens=1).adapter for prompt in (SUM, CODE, HELLO)]
        assert chosen == ["math", "code", None]
        assert session.ask(SUM, adapter="none", max_tokens=1).adapter is None
        assert session.submit(SUM, max_tokens=1).result().adapter == "math"
        session.use("code")
        assert session.ask(SUM, max_tokens=1).adapter == "code"
    command = [sys.executable, "-m", "slm_edge.edge", "run", str(pack.folder), "--json", "-n", "1", "--explain"]
    done = subprocess.run([*command, CODE], capture_output=True, encoding="utf-8", check=True)
    data = json.loads(done.stdout)
    assert data["adapter"] == data["router"]["adapter"] == "code"


def test_auto_needs_a_router(tmp_path):
    with pytest.raises(InputError) as told:
        build(tmp_path, "auto", router=False)
    assert "default adapter 'auto'" in told.value.problems[0]
    (tmp_path / "again").mkdir()
    pack = build(tmp_path / "again", "auto")
    assert remove_adapter(pack.folder, "math").default_adapter == "auto"
    # Without the router the first adapter left is the default; the pack still opens.
    assert add_files(pack.folder, {}, lambda name: name == ROUTER_FILE).default_adapter == "code"


def test_the_starter_chooses_by_itself():
    pack = Pack.open(None, verify=True)
    assert pack.default_adapter == "auto"
    assert list(pack.adapters) == ["math", "code", "summarize"]
