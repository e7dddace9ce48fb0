"""What those with a key cannot learn of each other, and what the machine's other users cannot find of anyone."""

from pathlib import Path

import pytest
from build_gguf import tiny_pack
from build_server import TOOLS, serving
from slm_edge.edge.serve.keys import new_key

SECRET = "the second word of my secret is a river and the third is a gate, " * 5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    keys = {name: new_key(folder / "keys", name) for name in ("alice", "bob")}
    with serving(tiny_pack(folder), "--keys", folder / "keys", key=keys["alice"]) as server:
        server.keys = keys
        yield server


def kept(server, who, **fields):
    server.key = server.keys[who]
    reply = server.chat(SECRET, max_tokens=2, **fields)
    assert reply.status == 200
    return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_no_answer_is_quicker_for_what_another_key_asked(server):
    assert kept(server, "alice") == 0
    assert kept(server, "alice") > 100
    # Nothing that a request says makes it another's; each is asked for the first time by this key and adapter.
    assert kept(server, "bob", user="alice", prompt_cache_key="alice") == 0
    assert kept(server, "alice", model="math") == 0
    assert kept(server, "bob", model="math", user="alice") == 0
    assert kept(server, "bob") > 100
    # A salt parts what one key keeps, and opens nothing of another's.
    assert kept(server, "bob", cache_salt="alice") == 0
    assert kept(server, "bob", cache_salt="alice") > 100
    assert kept(server, "alice", cache_salt="alice") == 0


def test_no_file_of_a_crash_would_hold_what_was_said(server):
    (row,) = [
        line
        for line in Path(f"/proc/{server.process.pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    ]
    assert row.split()[4] == "0"


def test_one_request_cannot_take_everything(server):
    server.key = server.keys["alice"]
    many = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]
    big = [{"type": "function", "function": {"name": "f", "description": "x" * (1 << 20)}}]
    fields = [{"n": 65}, {"n": 1 << 40}, {"tools": many}, {"tools": big}, {"stop": ["x"] * 17}, {"max_tokens": 1 << 40}]
    for one in (*fields, {"top_logprobs": 21, "logprobs": True}, {"tools": TOOLS * 65}):
        assert server.chat(**one).status in (400, 413), one
    assert server.chat(max_tokens=1).status == 200
