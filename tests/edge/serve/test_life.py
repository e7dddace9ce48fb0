"""How a server begins and ends: probes while it loads, answers that are not cut, signals, what is printed."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from build_gguf import tiny_adapter, tiny_base, tiny_pack
from build_server import serving
from slm_edge.edge.serve.keys import Keys

LONG = {"model": "base", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1900, "stream": True}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("pack"))


def begun(server, n):
    """Threads that stream long answers, all of them begun."""
    replies, events = {}, [threading.Event() for _ in range(n)]

    def ask(i):
        events[i].set()
        with contextlib.suppress(http.client.IncompleteRead):
            replies[i] = server.post("/v1/chat/completions", LONG)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(n)]
    for one in threads:
        one.start()
    for event in events:
        event.wait()
    time.sleep(0.3)
    return threads, replies


def test_sigterm_cuts_no_answer(pack):
    with serving(pack, "--parallel", 8, "--drain", 60) as server:
        threads, replies = begun(server, 8)
        server.process.send_signal(signal.SIGTERM)
        # While they end, others are told so, and the probe that asks whether it takes requests too.
        ready = server.get("/health/ready")
        if ready.status != 200:
            assert ready.json == {"status": "draining"}
            refused = server.chat()
            assert refused.status == 503 and refused.error["code"] == "draining" and refused.headers["retry-after"]
            assert server.get("/health/live").status == 200
        for one in threads:
            one.join()
        assert server.process.wait(30) == 0
        assert len(replies) == 8
        for reply in replies.values():
            events = reply.events()
            assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] in ("length", "stop")


def test_after_the_grace_answers_end_with_an_error(pack):
    with serving(pack, "--parallel", 4, "--drain", 0) as server:
        threads, replies = begun(server, 4)
        code, err = server.end()
        for one in threads:
            one.join()
        assert code == 0 and "Traceback" not in err
        for reply in replies.values():
            last = reply.events()[-1]
            assert last == "[DONE]" or last["error"]["code"]


def test_a_second_signal_ends_at_once(pack):
    with serving(pack, "--drain", 600) as server:
        threads, _ = begun(server, 4)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        for one in threads:
            one.join()


def test_what_it_prints(pack):
    words = [sys.executable, "-m", "slm_edge.edge", "serve", str(pack), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        rows = {}
        while "ready" not in rows:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            name, _, value = line.strip().partition(" ")
            rows[name] = value.strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "KV" in rows["memory"] and rows["models"] == "base, math, code"
        assert rows["listening"].startswith("http://127.0.0.1:") and rows["keys"] == "none are asked for"


def test_a_model_file_with_adapters(tmp_path):
    base = tiny_base(tmp_path / "Tiny-1M.Q4_0.gguf")
    tiny_adapter(tmp_path / "style.gguf", base)
    with serving(base, "--lora", tmp_path / "style.gguf", "--alias", "mine=tiny llama") as server:
        # By the file's name, as `run` and `ps` have it; what the file calls itself and "base" are it, too.
        assert [row["id"] for row in server.get("/v1/models").json["data"]] == ["Tiny-1M.Q4_0", "style", "mine"]
        assert server.get("/v1/models/mine").json["root"] == "Tiny-1M.Q4_0"
        assert server.get("/v1/slm/state").json["base"] == "Tiny-1M.Q4_0"
        answered = [server.chat(model=one).json["model"] for one in ("Tiny-1M.Q4_0", "base", "tiny llama", "mine")]
        assert answered == ["Tiny-1M.Q4_0"] * 4
        assert server.chat(model="style").headers["x-slm-adapter"] == "style"
        half = server.chat(adapter={"style": 0.5})
        assert half.status == 200 and half.json["slm_edge"]["adapter"] == "style"
        assert half.json["slm_edge"]["scale"] == 0.5 and server.chat(model="style").json["slm_edge"]["scale"] == 1.0
        assert server.chat().json["slm_edge"]["scale"] is None


def test_a_model_that_cannot_be_opened_ends_it(slm_edge, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    code, out, err = slm_edge("serve", tmp_path / "bad.gguf", "--port", 0)
    assert code in (2, 3, 5) and "bad.gguf" in err and not out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--new-key", "alice"], "--new-key needs --keys"),
        (["--scope", "metrics"], "--scope goes with --new-key"),
        (["--alias", "x"], "no alias"),
        (["--alias", "x=nobody"], "no model here"),
        (["--alias", "math=code"], "is the name of a model"),
        (["--max-wait", "0"], "0"),
        (["nonsense"], "is no GGUF file, no pack"),
    ],
)
def test_wrong_words(slm_edge, pack, words, said):
    first = [] if words[0] == "nonsense" else [pack]
    code, _, err = slm_edge("serve", *first, *words, "--port", 0)
    assert code == 2 and said in err


def test_a_file_of_options(slm_edge, pack, tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text(f'model = "{pack}"\nparallel = 2\nalias = ["mine=math", "other=code"]\nstrict = true\n')
    words = [sys.executable, "-m", "slm_edge.edge", "serve", "--config", str(config), "--port", "0", "--json"]
    with subprocess.Popen([*words, "--alias", "told=math"], stdout=subprocess.PIPE, text=True) as process:
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line
            text += line
        said = json.loads(text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    # The command line goes before the file, option by option.
    assert said["models"] == ["base", "math", "code", "told"]
    config.write_text("paralel = 2\n")
    code, _, err = slm_edge("serve", "--config", config)
    assert code == 2 and "'paralel'" in err and "did you mean parallel?" in err
    config.write_text("parallel = 'many'\n")
    assert slm_edge("serve", "--config", config)[0] == 2
    assert slm_edge("serve", "--config", tmp_path / "missing.toml")[0] == 2


def test_a_key_is_shown_once(slm_edge, tmp_path):
    path = tmp_path / "keys.txt"
    code, out, err = slm_edge("serve", "--keys", path, "--new-key", "alice")
    assert code == 0 and Keys.open(path).find(out.strip()).name == "alice" and "SIGHUP" in err
    code, out, _ = slm_edge("serve", "--keys", path, "--new-key", "bob", "--scope", "metrics", "--json")
    assert code == 0 and Keys.open(path).find(json.loads(out)["key"]).metrics
    code, _, err = slm_edge("serve", "--keys", path, "--new-key", "carol", "--scope", "everything")
    assert code == 2 and "no scope" in err


def test_without_the_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "msgspec.py").write_text("raise ModuleNotFoundError('No module named msgspec', name='msgspec')")
    words = [sys.executable, "-m", "slm_edge.edge", "serve", "starter"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 1 and "[serve]" in done.stderr and "Traceback" not in done.stderr


def test_a_wait_that_is_too_long_is_refused_with_a_time(pack):
    with serving(pack, "--parallel", 1, "--max-wait", "0.001") as server:
        # How fast it is, it knows from answers that it gave.
        for _ in range(3):
            server.chat(max_tokens=100)
        threads, replies = begun(server, 6)
        for one in threads:
            one.join()
        found = sorted(reply.status for reply in replies.values())
        assert found[0] == 200 and found[-1] == 429
        refused = next(reply for reply in replies.values() if reply.status == 429)
        assert refused.error["code"] == "queue_full" and 1 <= int(refused.headers["retry-after"]) <= 60
