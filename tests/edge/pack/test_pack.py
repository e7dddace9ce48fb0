"""Packs: what goes in is there, built and changed whole or not at all."""

import dataclasses
import shutil
import subprocess
import sys
import threading

import pytest
from build_packs import HUB, new, tree
from slm_edge.edge.errors import DamagedError, DoesNotFitError, InputError
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.files.read import sha256_file
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.pack import Pack, starter_folder
from slm_edge.edge.pack.write import NewAdapter, add_adapter, build_pack, remove_adapter
from slm_edge.edge.router.in_pack import open_router, put_router, starter_router


def test_a_pack_has_what_went_into_it(pack, made):
    assert sorted(name for name, data in tree(pack.folder).items() if data is not None) == [
        "adapters/code.gguf",
        "adapters/code.json",
        "adapters/math.gguf",
        "adapters/math.json",
        "licenses/data.txt",
        "pack.json",
        "tiny.gguf",
    ]
    opened = Pack.open(pack.folder, verify=True)
    assert (opened.name, opened.default_adapter, list(opened.adapters)) == ("pack", "math", ["math", "code"])
    assert opened.base.sha256 == sha256_file(made / "tiny.gguf")
    assert opened.base.sources == (HUB,)
    assert opened.base_path() == pack.folder / "tiny.gguf"
    math = opened.adapters["math"]
    assert math.card == TaskCard(task="sums")
    assert math.path.read_bytes() == (made / "math.gguf").read_bytes()
    assert (math.sha256, math.size_bytes) == (sha256_file(math.path), math.path.stat().st_size)


def test_the_base_may_stay_outside(made, tmp_path, own_cache):
    pack = build_pack(tmp_path / "pack", base=made / "tiny.gguf", adapters=new(made, "math"), copy_base=False)
    assert not (pack.folder / "tiny.gguf").exists()
    assert pack.base.sources == ({"kind": "path", "path": str(made / "tiny.gguf")},)
    with pytest.raises(InputError, match="neither in the pack nor in the store") as caught:
        pack.base_path()
    assert f"slm-edge pull {pack.folder}" in caught.value.hint
    assert Pack.open(pack.folder, verify=True).base == pack.base
    assert pack.base_path(allow_pull=True) == base_cache_path(pack.base.sha256)
    assert pack.base_path().read_bytes() == (made / "tiny.gguf").read_bytes()
    base_cache_path(pack.base.sha256).unlink()
    base_cache_path(pack.base.sha256).write_bytes(b"short")
    with pytest.raises(DamagedError, match="has 5 bytes"):
        pack.base_path()
    with pytest.raises(DamagedError, match="not as it was built") as caught:
        Pack.open(pack.folder, verify=True)
    assert "the base in the cache is damaged" in str(caught.value)


def test_packs_move(pack, tmp_path):
    shutil.move(pack.folder, tmp_path / "elsewhere")
    moved = Pack.open(tmp_path / "elsewhere", verify=True)
    assert moved.base_path().parent == tmp_path / "elsewhere"


def test_adding_and_removing(pack, made):
    with pytest.raises(InputError, match="two adapters of one name: Math, math"):
        add_adapter(pack.folder, NewAdapter("Math", made / "math.gguf"))
    again = add_adapter(
        pack.folder, NewAdapter("again", made / "math.gguf", TaskCard(task="t", scale=0.5), {"stop": ("Q:",)})
    )
    assert list(again.adapters) == ["math", "code", "again"]
    assert again.adapters["again"].card == TaskCard(task="t", scale=0.5, stop=("Q:",))
    assert again.default_adapter == "math"
    Pack.open(pack.folder, verify=True)
    assert remove_adapter(pack.folder, "math").default_adapter == "code"
    assert not (pack.folder / "adapters" / "math.gguf").exists()
    remove_adapter(pack.folder, "code")
    with pytest.raises(InputError, match="no adapter 'agian'; it has again"):
        remove_adapter(pack.folder, "agian")
    empty = remove_adapter(pack.folder, "again")
    assert (empty.adapters, empty.default_adapter) == ({}, None)
    Pack.open(pack.folder, verify=True)
    assert add_adapter(pack.folder, NewAdapter("math", made / "math.gguf")).default_adapter == "math"
    Pack.open(pack.folder, verify=True)


def test_an_adapter_is_replaced_in_one_step(pack, made):
    """Its place and card stay, its bytes are the new ones; who opens the pack meanwhile finds one of the two."""
    with pytest.raises(InputError, match="it has a 'math' already\n  --replace puts this one"):
        add_adapter(pack.folder, NewAdapter("math", made / "code.gguf"))
    found, opened, stop = set(), [], threading.Event()

    def look():
        while not stop.is_set():
            opened.append(Pack.open(pack.folder))
            found.add(opened[-1].adapters["math"].sha256)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for file in ("code.gguf", "math.gguf") * 10:
            again = add_adapter(pack.folder, NewAdapter("math", made / file), replace=True)
            assert again.adapters["math"].sha256 == sha256_file(made / file)
    finally:
        stop.set()
        watcher.join()
    assert found == {sha256_file(made / "code.gguf"), sha256_file(made / "math.gguf")}
    assert all(list(each.adapters) == ["math", "code"] for each in opened)
    assert again.adapters["math"].card == pack.adapters["math"].card and again.default_adapter == "math"
    other = NewAdapter("math", made / "code.gguf", TaskCard(task="new"))
    assert add_adapter(pack.folder, other, replace=True).adapters["math"].card.task == "new"
    add_adapter(pack.folder, NewAdapter("math.2", made / "math.gguf"), replace=True)
    assert len(list((pack.folder / "adapters").iterdir())) == 6
    Pack.open(pack.folder, verify=True)


def test_an_adapter_of_another_base_is_refused(pack, made, tmp_path):
    before = tree(pack.folder)
    with pytest.raises(InputError) as caught:
        add_adapter(pack.folder, NewAdapter("foreign", made / "foreign.gguf"))
    text = str(caught.value)
    assert "made for another base: its fingerprint is" in text
    assert pack.base.fingerprint in text
    assert text.count("fingerprint is") == 1 and len(caught.value.problems) == 1
    assert tree(pack.folder) == before
    with pytest.raises(InputError, match="made for another base"):
        build_pack(tmp_path / "new", base=made / "tiny.gguf", adapters=new(made, "math", "foreign"))
    assert not (tmp_path / "new").exists()


def test_building_names_every_fault_and_leaves_nothing(made, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        build_pack(
            tmp_path / "pack",
            base=made / "tiny.gguf",
            adapters=[NewAdapter(name, made / "math.gguf") for name in ("a", "A", "none", "../x", "", "con")],
            default_adapter="b",
            sources=[{"kind": "ftp"}],
        )
    assert len(caught.value.problems) == 7
    with pytest.raises(InputError, match="several adapters") as caught:
        build_pack(
            tmp_path / "pack",
            base=made / "tiny.gguf",
            adapters=[*new(made, "foreign"), NewAdapter("gone", made / "gone.gguf")],
        )
    assert "no such file" in str(caught.value) and "another base" in str(caught.value)
    with pytest.raises(InputError, match="not a GGUF file"):
        build_pack(tmp_path / "pack", base=_text(tmp_path), adapters=[])
    (tmp_path / "bad.gguf").unlink()
    assert tree(tmp_path) == before


def _text(tmp_path):
    (tmp_path / "bad.gguf").write_text("no model")
    return tmp_path / "bad.gguf"


def test_an_existing_folder_is_not_overwritten(pack, made):
    before = tree(pack.folder)
    with pytest.raises(InputError, match="something is already there"):
        build_pack(pack.folder, base=made / "tiny.gguf", adapters=[])
    with pytest.raises(InputError, match="another base"):
        build_pack(pack.folder, base=made / "tiny.gguf", adapters=new(made, "foreign"), replace=True)
    assert tree(pack.folder) == before


def test_only_a_pack_is_replaced(pack, made, tmp_path):
    keep = [pack.folder / "licenses"]
    built = build_pack(pack.folder, base=made / "tiny.gguf", adapters=new(made, "code"), include=keep, replace=True)
    assert list(Pack.open(pack.folder, verify=True).adapters) == list(built.adapters) == ["code"]
    assert (pack.folder / "licenses" / "data.txt").read_text() == "MIT"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="something that is not a pack"):
        build_pack(tmp_path / "home", base=made / "tiny.gguf", adapters=[], replace=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_interrupted_build_or_addition_leaves_nothing(pack, made, tmp_path, monkeypatch, stop_at):
    from slm_edge.edge.pack import write as pack_write

    calls = []
    real = pack_write.sha256_file

    def interrupted(path, *rest):
        calls.append(path)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(pack_write, "sha256_file", interrupted)
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build_pack(tmp_path / "new", base=made / "tiny.gguf", adapters=new(made, "math", "code"))
    assert tree(tmp_path) == before
    calls.clear()
    if stop_at < 3:
        with pytest.raises(KeyboardInterrupt):
            add_adapter(pack.folder, NewAdapter("third", made / "math.gguf"))
        assert tree(tmp_path) == before
    Pack.open(pack.folder, verify=True)


def test_two_additions_at_once_both_arrive(pack, made):
    code = (
        "import sys; from pathlib import Path; from slm_edge.edge.pack.write import NewAdapter, add_adapter\n"
        "add_adapter(Path(sys.argv[1]), NewAdapter(sys.argv[2], Path(sys.argv[3])))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(pack.folder), name, str(made / "math.gguf")])
        for name in ("one", "two", "three")
    ]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert {"one", "two", "three"} < set(Pack.open(pack.folder, verify=True).adapters)


def test_a_full_disk_is_told_before(made, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DoesNotFitError, match="1000 B free"):
        build_pack(tmp_path / "pack", base=made / "tiny.gguf", adapters=[])
    assert not (tmp_path / "pack").exists()


def test_the_starter_folder_lies_in_the_package():
    assert starter_folder().parts[-2:] == ("edge", "starter")


def test_a_pack_that_still_holds_a_second_stage_of_its_router_works(made, tmp_path):
    """Packs of before may list `router_second.npz`; nothing reads it, so it is a plain file."""
    old = tmp_path / "router_second.npz"
    old.write_bytes(b"PK of a former version")
    router = starter_folder() / "router.npz"
    adapters = {"base": made / "tiny.gguf", "adapters": new(made, "math")}
    folder = build_pack(tmp_path / "pack", **adapters, router=router, include=[old]).folder
    assert Pack.open(folder, verify=True).manifest.files[old.name] == sha256_file(old)
    assert put_router(folder, starter_router()).manifest.files[old.name] == sha256_file(old)
    assert open_router(Pack.open(folder, verify=True)).choose("What is 12 * 4?").adapter == "math"


def test_what_is_included_is_plain(made, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / ".hidden").write_text("x")
    (odd / "link").symlink_to("/etc/hosts")
    for include in ([odd], [tmp_path / "none"], [made / "tiny.gguf"], [_text(tmp_path), _text(tmp_path)]):
        with pytest.raises(InputError):
            build_pack(tmp_path / "pack", base=made / "tiny.gguf", adapters=[], include=include)
    assert not (tmp_path / "pack").exists()


def test_cards_are_frozen_into_the_pack(pack, made, tmp_path):
    card = dataclasses.replace(TaskCard(task="x"), system="Be brief.", scores={"gsm8k": {"exact": 0.07, "n": 1319}})
    built = build_pack(
        tmp_path / "two", base=made / "tiny.gguf", adapters=[NewAdapter("math", made / "math.gguf", card)]
    )
    assert built.adapters["math"].card == card
    assert built.default_adapter is None
