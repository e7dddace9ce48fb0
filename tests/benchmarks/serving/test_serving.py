"""The short forms of `benchmarks/serving/`: each command over a tiny model, with a server of its own.

Times are not looked at; what is right at any speed is.
"""

import json
import shutil
import subprocess
import sys

import pytest
from build_gguf import tiny_base, tiny_pack
from slm_edge.benchmarks.serving.alone import parts_at


def proof(name, *words):
    """What a command printed; it may have missed bounds of time."""
    command = [sys.executable, "-m", f"slm_edge.benchmarks.serving.{name}", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def held(found, *but):
    """Nothing was missed but what may be."""
    return [row for row in found["bounds"] if not row["holds"] and row["bound"] not in but] == []


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("pack"))


def test_soak(pack):
    found = proof("soak", pack, "--minutes", 0.1, "--every", 2, "--threads", 1)
    assert held(found, "memory, the end over a sixth"), found
    assert found["requests"] > 20 and found["adapter_changes"] and len(found["readings"]) >= 3


def test_overload(pack):
    found = proof("overload", pack, "--factor", 8, "--seconds", 3, "--max-wait", 0.5, "--threads", 1)
    assert held(found, "goodput over capacity"), found
    assert {int(status) for status in found["statuses"]} <= {200, 429, 503} and len(found["statuses"]) > 1


def test_mixed(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    found = proof("mixed", base, "--requests", 80, "--replace-each", 10, "--threads", 1)
    assert held(found), found
    assert found["replaced"] == 8 and found["left_early"] and found["compared"] > 40


def test_drain(pack):
    found = proof("drain", pack, "--tokens", 300, "--threads", 1)
    assert held(found) and len(found["pieces"]) == 8, found


def test_overhead(pack):
    found = proof("overhead", pack, "--runs", 1, "--tokens", 12, "--idle", 1, "--threads", 1)
    slow = ("decode over a session's", "added to the first token, ms", "idle CPU, of a core")
    assert held(found, *slow), found
    assert found["server_bytes"] > found["chat_bytes"] > 1 << 20


def test_beside(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    found = proof("beside", base, "--runs", 1, "--each", 1, "--fair", 1.5, "--rank", 4, "--threads", 1, "--alone")
    assert held(found, "Jain's index of engine seconds", "share of swaps"), found
    assert len(found["tokens_per_s"]) == 7 and 0 <= found["swaps"] < found["jain"] <= 1


@pytest.mark.skipif(shutil.which("slowhttptest") is None, reason="slowhttptest is not installed")
def test_slow(pack):
    found = proof("slow", pack, "--connections", 100, "--seconds", 2, "--threads", 1)
    assert held(found, "first token, over what it was before"), found
    assert all(found[way]["questions"] for way in ("heads", "bodies", "reading"))


def test_where_answers_part():
    assert parts_at([b"a", b"b"], [b"a", b"b"], is_whole=True) is None
    assert parts_at([b"a"], [b"a", b"b"], is_whole=False) is None
    assert parts_at([b"a"], [b"a", b"b"], is_whole=True) == 1
    assert parts_at([b"a", b"c"], [b"a", b"b"], is_whole=False) == 1
