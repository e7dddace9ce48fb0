"""Adapters that come and go while a server runs, over its admin socket; what `ps`, `top` and `adapter` show."""

import json
import threading
import time

import pytest
from build_gguf import tiny_adapter, tiny_pack
from build_server import serving
from slm_edge.edge.files.read import sha256_file
from slm_edge.edge.serve.keys import new_key
from slm_edge.edge.serve.running import servers

USER = {"messages": [{"role": "user", "content": "How many legs have 3 cats?"}], "max_tokens": 12}


@pytest.fixture
def place(tmp_path, own_runtime, monkeypatch):
    """Sockets and kept adapters of one test."""
    runtime = own_runtime / str(time.monotonic_ns())
    runtime.mkdir(mode=0o700)
    env = {"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(tmp_path / "state")}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


@pytest.fixture
def pack(tmp_path):
    return tiny_pack(tmp_path)


def text_of(server, model):
    reply = server.post("/v1/chat/completions", {"model": model, **USER})
    return reply.json["choices"][0]["message"]["content"] if reply.status == 200 else reply.error["code"]


def test_adapters_are_added_replaced_removed_and_kept(slm_edge, pack, place, tmp_path):
    style = tiny_adapter(tmp_path / "style.gguf", tmp_path / "base.gguf", seed=11)
    other = tiny_adapter(tmp_path / "other.gguf", tmp_path / "base.gguf", seed=12)
    with serving(pack, env=place) as server:
        base = text_of(server, "base")
        code, out, _ = slm_edge("adapter", "add", "style", style)
        assert code == 0 and out == f"style is sha256:{sha256_file(style)}\n"
        first = text_of(server, "style")
        assert first not in (base, "model_not_found")
        entry = server.get("/v1/models/style").json
        assert entry["slm_edge"]["digest"] == f"sha256:{sha256_file(style)}"
        # The name is taken; a digest that it does not stand for is not replaced.
        code, _, err = slm_edge("adapter", "add", "style", other)
        assert code == 2 and "stands for" in err
        code, _, err = slm_edge("adapter", "add", "style", other, "--expect", f"sha256:{'0' * 64}")
        assert code == 2 and text_of(server, "style") == first
        code, out, _ = slm_edge("adapter", "add", "style", other, "--expect", f"sha256:{sha256_file(style)}", "--json")
        assert code == 0 and json.loads(out)["digest"] == f"sha256:{sha256_file(other)}"
        second = text_of(server, "style")
        assert second not in (base, first)
        assert slm_edge("adapter", "remove", "code")[0] == 0
        assert text_of(server, "code") == "model_not_found"
        assert server.end()[0] == 0
    # The originals are not needed any more.
    other.unlink()
    with serving(pack, env=place) as server:
        assert [row["id"] for row in server.get("/v1/models").json["data"]] == ["base", "math", "style"]
        assert text_of(server, "style") == second
        code, out, _ = slm_edge("adapter", "list", "--json")
        assert [row["name"] for row in json.loads(out)] == ["math", "style"]
        assert slm_edge("adapter", "remove", "nobody")[0] == 2


def test_an_adapter_of_another_pack_comes_with_its_card(slm_edge, pack, place, tmp_path):
    (tmp_path / "more").mkdir()
    more = tiny_pack(tmp_path / "more")
    with serving(pack, env=place) as server:
        assert slm_edge("adapter", "add", "math", more, "--replace")[0] == 0
        assert slm_edge("adapter", "add", "nobody", more)[0] == 2
        assert text_of(server, "math")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 200, b"not at all" * 1000])
def test_a_file_that_is_no_adapter_changes_nothing(slm_edge, pack, place, tmp_path, content):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    with serving(pack, env=place) as server:
        before = text_of(server, "math")
        code, _, err = slm_edge("adapter", "add", "math", bad, "--replace")
        assert code == 2 and err and "Traceback" not in err
        assert text_of(server, "math") == before
        assert not list((tmp_path / "state").rglob("*.gguf"))


def test_answers_keep_the_adapter_that_they_began_with(slm_edge, pack, place, tmp_path):
    """Replaced in the middle of long answers, all of them are the old one's, and the next is the new one's."""
    new = tiny_adapter(tmp_path / "new.gguf", tmp_path / "base.gguf", seed=21)
    long = {"model": "math", "messages": USER["messages"], "max_tokens": 400}
    with serving(pack, "--parallel", 4, env=place) as server:
        right = server.post("/v1/chat/completions", long).json
        found = []
        ask = lambda: found.append(server.post("/v1/chat/completions", long).json)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for one in threads:
            one.start()
        assert slm_edge("adapter", "add", "math", new, "--replace")[0] == 0
        for one in threads:
            one.join()
        after = server.post("/v1/chat/completions", long).json
        digests = {right["slm_edge"]["digest"]: right, after["slm_edge"]["digest"]: after}
        assert len(digests) == 2
        for one in found:
            same = digests[one["slm_edge"]["digest"]]
            assert one["choices"][0]["message"] == same["choices"][0]["message"]


def test_over_the_network_only_an_admins_key_and_no_paths(pack, place, tmp_path):
    path = tmp_path / "keys.txt"
    keys = {name: new_key(path, name, scopes) for name, scopes in (("alice", []), ("ops", ["admin", "models:math"]))}
    body = {"lora_name": "x", "lora_path": "/etc/passwd"}
    with serving(pack, "--keys", path, key=keys["alice"], env=place) as server:
        assert server.get("/v1/lora_adapters").status == 403
        assert server.post("/v1/load_lora_adapter", body).status == 403
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "code"}).status == 403
        server.key = keys["ops"]
        assert [row["name"] for row in server.get("/v1/lora_adapters").json["adapters"]] == ["math", "code"]
        refused = server.post("/v1/load_lora_adapter", body)
        assert refused.status == 403 and "admin socket" in refused.error["message"]
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "code"}).status == 200
        assert len(server.get("/v1/lora_adapters").json["adapters"]) == 1
    with serving(pack, env=place) as server:
        assert server.get("/v1/lora_adapters").status == 403


def test_ps_and_top(slm_edge, pack, place):
    assert slm_edge("ps")[:2] == (0, "no server runs here\n")
    assert slm_edge("top", "--once")[0] == 2
    with serving(pack, env=place) as server:
        ((path, facts),) = servers()
        assert path.stat().st_mode & 0o777 == 0o600 and facts["pid"] == server.process.pid
        code, out, _ = slm_edge("ps")
        assert code == 0 and str(server.process.pid) in out and server.url in out and "math, code" in out
        (row,) = json.loads(slm_edge("ps", "--json")[1])
        assert row["state"] == "ready" and row["doing"]["places"] == 4
        for words in ([], ["--server", server.port], ["--server", server.process.pid]):
            code, out, _ = slm_edge("top", "--once", *words)
            assert code == 0 and "math" in out and "running" in out
        assert slm_edge("adapter", "list", "--server", "1")[0] == 2
        with serving(pack, env=place):
            assert slm_edge("adapter", "list")[0] == 2 and slm_edge("adapter", "list", "--server", server.port)[0] == 0
        server.process.kill()
        server.process.wait()
        # What a killed one left is taken away.
        assert servers() == [] and not path.exists()
