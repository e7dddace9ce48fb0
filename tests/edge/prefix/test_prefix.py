"""Computed prefixes come back bit for bit, from memory and from disk, and nothing wrong ever does."""

import hashlib
import resource
import subprocess
import sys

import numpy as np
import pytest
from build_gguf import tiny_adapters, tiny_base
from slm_edge.edge.errors import InputError
from slm_edge.edge.files.atomic import locked
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.prefix.chunks import AdapterState, PrefixStore, Section, Snapshot, chunks_of
from slm_edge.edge.prefix.disk import DIGEST_BYTES, PrefixDisk
from slm_edge.edge.session.session import Session

SYSTEM = "Answer as the keeper of the light house would, in the words of the sea, and be brief. " * 4
BASE = AdapterState()
PROMPTS = ("the world", "hello", "and again the rest of it")


@pytest.fixture(scope="module")
def adapters(base):
    return tiny_adapters(base, {"a": 0, "b": 1}, TaskCard(task="x", system=SYSTEM, max_tokens=6))


def opened(base, adapters, **options):
    return Session.of_files(base, adapters, **({"threads": 1} | options))


def fresh(base, adapters, name, prompt):
    with opened(base, adapters, prefix_budget_bytes=0) as session:
        answer = session.use(name).ask(prompt)
        return answer.token_ids, session.context.logits()


def assert_as_fresh(session, base, adapters, name, prompt):
    answer = session.use(name).ask(prompt)
    tokens, logits = fresh(base, adapters, name, prompt)
    assert answer.token_ids == tokens
    assert np.array_equal(session.context.logits().view(np.uint32), logits.view(np.uint32))
    return answer.n_kept_tokens


def n_system(session, name):
    return session.rendered("x", None, session.choice_of(name))[1]


def test_system_prefixes_are_computed_once_per_session(base, adapters):
    with opened(base, adapters) as session:
        whole = n_system(session, "a")
        assert whole > 128
        kept = [assert_as_fresh(session, base, adapters, name, prompt) for prompt in PROMPTS for name in "ab"]
        assert kept == [0, 0, whole, whole, whole, whole]
        assert len(session.prefixes.store) == 2
        # The system part is kept without a swap too, whatever follows it.
        assert session.use("b").ask("other").n_kept_tokens == whole


def test_without_a_budget_nothing_is_kept(base, adapters):
    with opened(base, adapters, prefix_budget_bytes=0) as session:
        kept = [session.use(name).ask("hello").n_kept_tokens for name in "abab"]
        assert kept == [0, 0, 0, 0]
        assert len(session.prefixes.store) == 0
    with pytest.raises(InputError, match="budget"):
        opened(base, adapters, prefix_budget_bytes=-1)


def test_the_budget_holds_and_the_oldest_goes(base, adapters):
    with opened(base, adapters) as session:
        for name in "aba":
            session.use(name).ask("hello")
        one_bytes = session.prefixes.store.used_bytes // 2
    with opened(base, adapters, prefix_budget_bytes=int(1.5 * one_bytes)) as session:
        kept = []
        for name in ("a", "b", "a", None, "a"):
            kept.append(assert_as_fresh(session, base, adapters, name, "hello") > 0)
            assert session.prefixes.store.used_bytes <= 1.5 * one_bytes
        # Only one snapshot fits, and none goes that is about to be used.
        assert kept == [False, False, True, False, True]


def snapshot(tokens, state=BASE, size=100):
    return Snapshot(list(tokens), chunks_of([Section(len(tokens), state)]), np.full(size, 7, np.uint8))


def test_the_store_finds_the_longest_and_smallest_and_covers():
    store = PrefixStore(1000)
    a, b = AdapterState((("a" * 64, 1.0),)), AdapterState((("a" * 64, 0.5),))
    tokens = list(range(300))
    store.add(snapshot(tokens[:128], a))
    store.add(snapshot([*tokens[:256], *range(900, 1156)], a, size=400))
    assert len(store) == 1
    wanted = chunks_of([Section(300, a)])[:-1]
    assert store.find(tokens, wanted)[1] == 256
    assert store.find(tokens, wanted, 256) is None
    assert store.find(tokens, chunks_of([Section(300, b)])[:-1]) is None
    store.add(snapshot([*tokens[:256], 1, 2], a, size=300))
    assert store.find(tokens, wanted)[0].size_bytes == 300
    assert store.covers(tokens[:128], chunks_of([Section(128, a)]))
    assert not store.covers(tokens[:100], chunks_of([Section(100, a)]))
    store.add(snapshot([5], b, size=900))
    assert (len(store), store.used_bytes) == (1, 900)
    store.add(snapshot([6], b, size=1001))
    assert len(store) == 1


def test_a_prefix_lasts_on_disk(base, adapters, tmp_path):
    for turn in range(2):
        for options in ({}, {"n_ctx_tokens": 512}):
            with opened(base, adapters, prefix_cache=tmp_path / "kv", **options) as session:
                for name in "ab":
                    kept = assert_as_fresh(session, base, adapters, name, PROMPTS[turn])
                    assert kept == (n_system(session, name) if turn or options else 0)
                assert session.prefixes.disk.fault is None
    assert len(list((tmp_path / "kv").glob("*.kv"))) == 2


def test_another_base_scale_or_kv_type_finds_nothing(base, adapters, tmp_path):
    folder = tmp_path / "kv"
    with opened(base, adapters, prefix_cache=folder) as session:
        session.use("a").ask("hello")
    other = tiny_base(tmp_path / "other.gguf", seed=0, n_layers=2)
    # One byte of a matrix: the fingerprint is the same, the bits are not.
    data = bytearray(other.read_bytes())
    data[-5000] ^= 1
    other.write_bytes(data)
    for how, scale, options in ((base, 0.5, {}), (base, None, {"kv_type": "f32"}), (other, None, {})):
        with opened(how, adapters, prefix_cache=folder, **options) as session:
            assert session.use("a", scale=scale).ask("hello").n_kept_tokens == 0
    with opened(base, adapters, prefix_cache=folder) as session:
        assert session.use("a").ask("hello").n_kept_tokens > 0


@pytest.mark.parametrize("damage", ["cut", "grown", "header", "middle", "end", "empty", "folder", "other"])
def test_a_damaged_file_is_removed_and_computed_anew(base, adapters, tmp_path, damage):
    folder = tmp_path / "kv"
    with opened(base, adapters, prefix_cache=folder) as session:
        session.use("a").ask("hello")
    (file,) = folder.glob("*.kv")
    data = bytearray(file.read_bytes())
    if damage in ("header", "middle", "end"):
        data[{"header": 20, "middle": len(data) // 2, "end": -1}[damage]] ^= 1
    elif damage == "other":
        # Whole, but of other tokens: put under this name by a program gone wrong.
        with opened(base, adapters, prefix_cache=tmp_path / "kv2") as session:
            session.use("b").ask("hello")
        (other,) = (tmp_path / "kv2").glob("*.kv")
        data = other.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes({"cut": data[:-10], "grown": data + b"x", "empty": b""}.get(damage, data))
    with opened(base, adapters, prefix_cache=folder) as session:
        assert assert_as_fresh(session, base, adapters, "a", "hello") == 0
        assert str(file) in session.prefixes.disk.fault
    if damage != "folder":
        with opened(base, adapters, prefix_cache=folder) as session:
            assert assert_as_fresh(session, base, adapters, "a", "hello") > 0
            assert session.prefixes.disk.fault is None


def test_the_cap_holds_and_the_longest_unused_goes(tmp_path):
    disk = PrefixDisk(tmp_path, "d", cap_bytes=3500)
    parts = [snapshot(range(i, i + 40), size=500) for i in range(8)]
    for i, part in enumerate(parts):
        disk.offer(part)
        disk.flush()
        assert sum(file.stat().st_size for file in tmp_path.glob("*.kv")) <= 3500
        if i == 3:
            oldest = disk.load(parts[0].tokens, parts[0].chunks)
            assert oldest is not None
    there = [disk.load(part.tokens, part.chunks) is not None for part in parts]
    assert there[-1]
    assert not there[1]
    assert disk.n_written == 8
    disk.offer(snapshot(range(50), size=5000))
    disk.flush()
    assert disk.n_written == 8


def test_short_and_passing_prefixes_earn_no_file(tmp_path):
    disk = PrefixDisk(tmp_path, "d", cap_bytes=1 << 20)
    passing = AdapterState((("a" * 64, 1.0), ("b" * 64, 1.0)), (1, 2))
    assert not disk.wants(range(31), chunks_of([Section(31)]))
    assert disk.wants(range(32), chunks_of([Section(32)]))
    assert not disk.wants(range(32), chunks_of([Section(32, passing)]))


def test_a_taken_lock_puts_the_writing_off(tmp_path):
    disk = PrefixDisk(tmp_path, "d", cap_bytes=1 << 20)
    part = snapshot(range(40))
    disk.offer(part)
    with locked(tmp_path / ".lock"):
        disk.flush()
        assert disk.n_written == 0
        assert disk.load(part.tokens, part.chunks) is part
    disk.flush()
    assert disk.n_written == 1
    assert disk.fault is None


def test_what_killed_writers_left_is_removed(tmp_path):
    left = tmp_path / ".0123.kv.abc"
    left.mkdir()
    (left / "0123.kv").write_bytes(b"half")
    disk = PrefixDisk(tmp_path, "d", cap_bytes=1 << 20)
    disk.offer(snapshot(range(40)))
    disk.flush()
    assert not left.exists()
    assert len(list(tmp_path.glob("*.kv"))) == 1


def test_a_full_disk_costs_the_prefix_and_nothing_else(tmp_path):
    disk = PrefixDisk(tmp_path, "d", cap_bytes=1 << 30)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        disk.offer(snapshot(range(40), size=1 << 20))
        disk.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written" in disk.fault
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    disk.offer(snapshot(range(40), size=1 << 20))
    disk.flush()
    assert disk.n_written == 1


def test_two_processes_share_a_folder(base, adapters, tmp_path):
    """Both write and read at once, many times, with a cap that makes each remove what the other wrote."""
    program = """
import sys
import numpy as np
from pathlib import Path
from slm_edge.edge.prefix.chunks import Section, chunks_of
from slm_edge.edge.prefix.disk import DIGEST_BYTES, PrefixDisk
from slm_edge.edge.prefix.chunks import Snapshot
disk = PrefixDisk(Path(sys.argv[1]), "d", cap_bytes=60_000)
rng = np.random.default_rng(int(sys.argv[2]))
hits = 0
for _ in range(60):
    i = int(rng.integers(8))
    tokens = list(range(i, i + 40))
    chunks = chunks_of([Section(40)])
    found = disk.load(tokens, chunks)
    if found is not None:
        hits += 1
        assert (found.blob == i).all() and found.blob.size == 10_000
    elif disk.wants(tokens, chunks):
        disk.offer(Snapshot(tokens, chunks, np.full(10_000, i, np.uint8)))
    disk.flush()
assert disk.fault is None, disk.fault
print(hits)
"""
    children = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    results = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(map(int, results)) > 0
    assert sum(file.stat().st_size for file in tmp_path.glob("*.kv")) <= 60_000
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_unwritable_folder_is_no_reason_not_to_answer(base, adapters, tmp_path):
    folder = tmp_path / "kv"
    folder.mkdir()
    (folder / ".lock").mkdir()
    with opened(base, adapters, prefix_cache=folder) as session:
        assert_as_fresh(session, base, adapters, "a", "hello")
        assert "could not be written" in session.prefixes.disk.fault
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        opened(base, adapters, prefix_cache=tmp_path / "file")


def test_a_limit_of_memory_binds_what_is_kept(base, adapters, tmp_path):
    folder = tmp_path / "kv"
    with opened(base, adapters, prefix_cache=folder) as session:
        session.use("a").ask("hello")
    (file,) = folder.glob("*.kv")
    with opened(base, adapters, prefix_budget_bytes=0) as session:
        least_bytes = session.plan.total_bytes
    spare_bytes = file.stat().st_size // 2
    with opened(base, adapters, prefix_cache=folder, ram_bytes=least_bytes + spare_bytes) as session:
        assert session.plan.snapshots_bytes == session.prefixes.store.budget_bytes == spare_bytes
        # There is no memory for it: it is neither read nor taken for damaged, and the answer is right.
        assert assert_as_fresh(session, base, adapters, "a", "hello") == 0
        assert file.exists()
        assert_as_fresh(session, base, adapters, "b", "hello")
        assert session.prefixes.store.used_bytes <= spare_bytes
    assert [path.name for path in folder.glob("*.kv")] == [file.name]
    with opened(base, adapters, prefix_cache=folder, ram_bytes=least_bytes + 2 * file.stat().st_size) as session:
        assert assert_as_fresh(session, base, adapters, "a", "hello") == n_system(session, "a")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_llama_cpp_cannot_go_on_from_fails_no_answer(share, base, adapters, tmp_path):
    """Another content with a right digest, which has no key: refused, or not a number; it is computed anew."""
    folder = tmp_path / "kv"
    with opened(base, adapters, prefix_cache=folder) as session:
        right = session.use("a").ask("hello", max_tokens=4).token_ids
    (file,) = folder.glob("*.kv")
    whole = file.read_bytes()
    start = int(len(whole) * share)
    body = whole[:start] + b"\x7e" * (len(whole) - start - DIGEST_BYTES)
    file.write_bytes(body + hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest())
    with opened(base, adapters, prefix_cache=folder) as session:
        assert session.use("a").ask("hello", max_tokens=4).token_ids == right
        assert "could not go on from it" in session.prefixes.disk.fault
    with opened(base, adapters, prefix_cache=folder) as session:
        assert session.use("a").ask("hello", max_tokens=4).token_ids == right
        assert session.prefixes.disk.fault is None
    assert file.read_bytes() == whole
