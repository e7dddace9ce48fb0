"""Adapters of a server that runs: tried in a child that may die of it, two changes at once, read again at SIGHUP."""

import json
import signal
import subprocess
import sys
import time

import pytest
from build_gguf import tiny_adapter, tiny_pack
from build_server import serving
from slm_edge.edge.files.read import sha256_file
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.serve.admin import Kept
from slm_edge.edge.store.store import Store

USER = {"messages": [{"role": "user", "content": "How many legs have 3 cats?"}], "max_tokens": 12}


@pytest.fixture
def place(tmp_path, own_runtime, monkeypatch):
    """Sockets, kept adapters and notes of what held, of one test."""
    runtime = own_runtime / str(time.monotonic_ns())
    runtime.mkdir(mode=0o700)
    names = {"XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache"}
    env = {"XDG_RUNTIME_DIR": str(runtime), **{name: str(tmp_path / one) for name, one in names.items()}}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


def asked(server, model):
    """What a model answers, and the digest of what answered."""
    reply = server.post("/v1/chat/completions", {"model": model, **USER})
    if reply.status != 200:
        return reply.error["code"], None
    return reply.json["choices"][0]["message"]["content"], reply.json["slm_edge"]["digest"]


def until(found, wanted):
    """Waits until that is found."""
    deadline_s = time.monotonic() + 60
    while found() != wanted:
        assert time.monotonic() < deadline_s, found()
        time.sleep(0.05)


def at_load_of(adapter, folder, program):
    """The environment of processes that run a program before llama.cpp loads that file, under whatever name."""
    hook = f"""
import os, pathlib, sys, time

def hook(event, arguments):
    if event == "ctypes.dlsym" and arguments[1] == "llama_adapter_lora_init":
        if any(name.endswith("{sha256_file(adapter)}.gguf") for name in sys.argv):
            exec({program!r})

sys.addaudithook(hook)
"""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(hook)
    return {"PYTHONPATH": str(folder / "hook")}


def test_a_file_that_ends_the_process_that_loads_it_ends_a_child_alone(slm_edge, place, tmp_path, monkeypatch):
    pack = tiny_pack(tmp_path)
    bad = tiny_adapter(tmp_path / "bad.gguf", tmp_path / "base.gguf", seed=31)
    good = tiny_adapter(tmp_path / "good.gguf", tmp_path / "base.gguf", seed=32)
    # llama.cpp aborts where it does not expect what a file says; here at that file, in whatever process loads it.
    abort = 'sys.stderr.write("GGML_ASSERT(false) failed"); sys.stderr.flush(); os.abort()'
    env = place | at_load_of(bad, tmp_path, abort)
    with serving(pack, env=env) as server:
        before = asked(server, "math")
        code, _, err = slm_edge("adapter", "add", "math", bad, "--replace")
        assert code != 0 and "SIGABRT" in err and "Traceback" not in err
        assert asked(server, "math") == before
        assert not list((tmp_path / "state").rglob("*.gguf"))
        assert slm_edge("adapter", "add", "math", good, "--replace")[0] == 0
        assert asked(server, "math")[1] == f"sha256:{sha256_file(good)}"
        assert server.end()[0] == 0


def test_of_changes_at_once_one_is_made_and_the_others_are_told(place, tmp_path):
    pack = tiny_pack(tmp_path)
    files = [tiny_adapter(tmp_path / f"{i}.gguf", tmp_path / "base.gguf", seed=40 + i) for i in range(3)]
    with serving(pack, env=place) as server:
        first = asked(server, "math")[1]
        words = [sys.executable, "-m", "slm_edge.edge", "adapter", "add", "math", "--expect", first]
        running = [subprocess.Popen([*words, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for file in files]
        said = [one.communicate(timeout=120)[1] for one in running]
        codes = [one.returncode for one in running]
        assert sorted(codes) == [0, 2, 2], said
        assert sum(b"stands for" in one for one in said) == 2
        winner = f"sha256:{sha256_file(files[codes.index(0)])}"
        assert asked(server, "math")[1] == winner
        assert server.end()[0] == 0
    with serving(pack, env=place) as server:
        assert asked(server, "math")[1] == winner


def test_a_changed_pack_is_read_again_at_sighup(slm_edge, place, tmp_path):
    pack = tiny_pack(tmp_path)
    base = tmp_path / "base.gguf"
    style = tiny_adapter(tmp_path / "style.gguf", base, seed=51)
    with serving(pack, env=place) as server:
        assert slm_edge("adapter", "add", "style", style)[0] == 0
        before = asked(server, "math")
        seeds = {"math": 52, "sea": 53}
        new = {name: tiny_adapter(tmp_path / f"new-{name}.gguf", base, seed=seed) for name, seed in seeds.items()}
        pack.rename(tmp_path / "old")
        build_pack(pack, base=base, adapters=[NewAdapter(name, file) for name, file in new.items()])
        assert asked(server, "math") == before
        server.process.send_signal(signal.SIGHUP)
        until(lambda: [row["id"] for row in server.get("/v1/models").json["data"][1:]], ["math", "style", "sea"])
        for name, file in new.items():
            assert asked(server, name)[1] == f"sha256:{sha256_file(file)}"
        assert asked(server, "math")[0] != before[0] and asked(server, "code") == ("model_not_found", None)
        # One that is no pack any more changes nothing.
        (pack / "pack.json").write_text("{")
        server.process.send_signal(signal.SIGHUP)
        assert asked(server, "sea")[1] == f"sha256:{sha256_file(new['sea'])}"
        code, err = server.end()
        assert code == 0 and "changed: math, sea, code" in err and "not every adapter was read again" in err


def test_a_changed_adapter_file_is_read_again_at_sighup(place, tmp_path):
    tiny_pack(tmp_path)
    base = tmp_path / "base.gguf"
    style = tiny_adapter(tmp_path / "style.gguf", base, seed=61)
    with serving(base, "--lora", style, env=place) as server:
        before = asked(server, "style")
        tiny_adapter(tmp_path / "other.gguf", base, seed=62).replace(style)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: asked(server, "style")[1], f"sha256:{sha256_file(style)}")
        assert asked(server, "style")[0] != before[0]


def test_versions_of_a_pulled_pack_have_one_record(tmp_path):
    name = Store().folder / "packs" / "hf.co%2Fa%2Fb"
    one, other = (Kept(name / (letter * 64)).folder for letter in "ab")
    assert one == other != Kept(name.with_name("c") / ("a" * 64)).folder
    assert Kept(tmp_path / "a").folder != Kept(tmp_path / "b").folder


def test_while_one_file_is_tried_other_names_change(slm_edge, place, tmp_path):
    pack = tiny_pack(tmp_path)
    slow = tiny_adapter(tmp_path / "slow.gguf", tmp_path / "base.gguf", seed=33)
    begun, go_on = tmp_path / "begun", tmp_path / "go on"
    wait = f"pathlib.Path({str(begun)!r}).touch()\nwhile not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.05)"
    env = place | at_load_of(slow, tmp_path, wait)
    with serving(pack, env=env) as server:
        words = [sys.executable, "-m", "slm_edge.edge", "adapter", "add", "slow", str(slow)]
        adding = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            until(begun.exists, True)
            assert slm_edge("adapter", "remove", "code")[0] == 0
            assert asked(server, "code")[0] == "model_not_found" and adding.poll() is None
            assert asked(server, "slow")[0] == "model_not_found"
        finally:
            go_on.touch()
            said = adding.communicate(timeout=120)[1]
        assert adding.returncode == 0, said
        assert asked(server, "slow")[1] == f"sha256:{sha256_file(slow)}"
        assert server.end()[0] == 0


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"added": [], "removed": []},
        {"added": {"a": {"sha256": "../../x", "card": {}}}, "removed": []},
        {"added": {}, "removed": [1]},
    ],
)
def test_a_record_of_another_shape_is_one_error(slm_edge, place, tmp_path, record):
    pack = tiny_pack(tmp_path)
    folder = Kept(pack).folder
    folder.mkdir(parents=True)
    (folder / "adapters.json").write_text(json.dumps(record))
    code, _, err = slm_edge("serve", pack, "--port", 0, "--threads", 1)
    assert code == 5 and "adapters.json: is no record" in err and "move it away" in err
    assert "Traceback" not in err and (folder / "adapters.json").is_file()
