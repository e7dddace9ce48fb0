"""Messages name packs, models and bases; no path with a sha256 in it is shown to people, while JSON has it."""

import json

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.store.named import named
from slm_edge.edge.store.store import Store
from slm_edge.edge.written import meant_hint


@pytest.fixture
def pack(tmp_path):
    base = tiny_base(tmp_path / "tiny-base.gguf")
    adapter = NewAdapter("math", tiny_adapter(tmp_path / "math.gguf", base))
    return build_pack(tmp_path / "house", base=base, adapters=[adapter], copy_base=False)


def test_a_base_in_the_store_is_called_by_its_name(pack, slm_edge):
    code, out, _ = slm_edge("pull", pack.folder)
    assert code == 0 and f'slm-edge run --pack {pack.folder} "Hello"' in out and "blobs" not in out
    code, out, err = slm_edge("run", "--pack", pack.folder, "--ram", "100", "hi", "--json")
    assert code == 4 and "tiny-base.gguf: does not fit into 100 B" in err and "blobs" not in err
    assert "100 are bytes: did you mean 100M?" in err
    blob = Pack.open(pack.folder).base_path()
    assert json.loads(out)["error"]["where"] == str(blob)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1])
    code, _, err = slm_edge("run", "--pack", pack.folder, "hi")
    assert code == 5 and "tiny-base.gguf: has " in err and "blobs" not in err


def test_what_was_pulled_is_called_by_its_name():
    folder = Store().folder
    text = f"{folder}/packs/hf.co%2Fa%2Fb/{'ab' * 32}/adapters/math.gguf: its bytes changed"
    assert named(text) == "hf.co/a/b/adapters/math.gguf: its bytes changed"
    assert named(f"{folder}/blobs/sha256/{'cd' * 32}") == "cdcdcdcdcdcd (in the store)"
    assert named("/elsewhere/blobs/sha256/x") == "/elsewhere/blobs/sha256/x"


def test_a_pack_without_adapters_shows_no_empty_table(tmp_path, slm_edge):
    build_pack(tmp_path / "bare", base=tiny_base(tmp_path / "tiny.gguf"))
    out = slm_edge("pack", "show", tmp_path / "bare")[1]
    assert "no adapters; slm-edge pack add" in out and "answers" not in out


def test_a_limit_that_may_be_meant_so_gets_no_other():
    assert meant_hint(100) and meant_hint(0) is meant_hint(1 << 16) is meant_hint(-1) is None
