"""The store: blobs, versions, names that switch, who uses what, and what is removed; real files and processes."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from slm_edge.edge.errors import DamagedError, InputError
from slm_edge.edge.files.cache import store_folder
from slm_edge.edge.store.prune import prune, unneeded
from slm_edge.edge.store.store import Store
from slm_edge.edge.store.uses import mark_use, uses_of
from slm_edge.edge.store.version import Origin, Ref, Version, is_inside

FROM = Origin("hf:org/tiny", "https://hub/org/tiny", "c" * 40)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def added(store, name, text, **more):
    """A version with one file of its own and one that all share."""
    files = {"pack.json": store.take_bytes(text.encode()), "adapters/a.gguf": store.take_bytes(b"shared" * 100)}
    version = Version(name, files["pack.json"], "pack", files, FROM, **more)
    return version, store.add(version)


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_version_is_linked_from_read_only_blobs(store):
    version, folder = added(store, "tiny", "one")
    assert tree(folder) == ["adapters/a.gguf", "pack.json"]
    for path, sha256 in version.files.items():
        found, blob = (folder / path).stat(), store.blob(sha256).stat()
        assert (found.st_ino, found.st_mode & 0o777) == (blob.st_ino, 0o444)
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == sha256
    other, _ = added(store, "other", "two")
    assert other.files["adapters/a.gguf"] == version.files["adapters/a.gguf"]
    assert len(list((store.folder / "blobs/sha256").iterdir())) == 3
    assert store.version("tiny", version.digest) == version == store.version_of(folder)
    assert store.version_of(store.folder) is None and store.find("tiny") is None


def test_files_are_linked_where_they_are_ours_and_never_changed_where_not(store, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"weights")
    theirs.chmod(0o640)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert store.take_file(theirs, sha256).read_bytes() == b"weights"
    assert theirs.stat().st_mode & 0o777 == 0o640
    with pytest.raises(DamagedError, match="has the sha256"):
        store.take_file(theirs, "0" * 64)
    assert not store.blob("0" * 64).exists() and len(list(store.blob(sha256).parent.iterdir())) == 1


def test_a_name_switches_and_goes_back(store):
    one, _ = added(store, "tiny", "one")
    two, folder = added(store, "tiny", "two")
    assert store.switch("tiny", lambda ref: ref.moved_to(one.digest)) == Ref("tiny", one.digest)
    assert store.switch("tiny", lambda ref: ref.moved_to(two.digest)) == Ref("tiny", two.digest, one.digest)
    assert store.find("tiny") == (two, folder)
    back = store.switch("tiny", lambda ref: dataclasses.replace(ref, current=ref.previous, previous=None, pinned=True))
    assert back == Ref("tiny", one.digest, pinned=True) == store.ref("tiny")
    assert store.names() == ["tiny"]
    with pytest.raises(InputError, match="no version"):
        store.switch("tiny", lambda ref: ref.moved_to("f" * 64))
    assert store.ref("tiny") == back


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "a//b", "a\\b", "C:x", "a/.", "x\n", "", "a" * 300, "n."]
)
def test_no_file_leaves_its_folder(store, path):
    assert not is_inside(path)
    sha256 = store.take_bytes(b"x")
    with pytest.raises(InputError, match="cannot be put into the store"):
        store.add(Version("tiny", sha256, "pack", {path: sha256}, FROM))
    assert not (store.folder / "packs" / "tiny").exists()


@pytest.mark.parametrize("name", ["..", "a/../b", "", "/x", "starter", "x" * 300, "a b", "a/", "\x1b[2J"])
def test_names_that_are_none(store, name):
    with pytest.raises(InputError, match="cannot be a name"):
        store.switch(name, lambda ref: ref)


def test_names_of_places_on_a_hub_lie_flat(store):
    version, folder = added(store, "hf.co/org/Tiny-GGUF:Q4_K_M", "one")
    store.switch(version.name, lambda ref: ref.moved_to(version.digest))
    assert store.names() == [version.name] and folder.parent.parent == store.folder / "packs"


def test_what_says_so_is_checked(store):
    version, _ = added(store, "tiny", "one")
    store.switch("tiny", lambda ref: ref.moved_to(version.digest))
    record = store.folder / "packs" / "tiny" / f"{version.digest}.json"
    record.write_text(record.read_text().replace("adapters/a.gguf", "../../a.gguf"))
    with pytest.raises(DamagedError, match="not what the store writes"):
        store.find("tiny")


def plan(store):
    return unneeded(store, lambda sha256, use: use.who == "needs it")


def test_prune_takes_what_nothing_needs_and_says_what_that_frees(store):
    one, _ = added(store, "tiny", "one")
    two, kept = added(store, "tiny", "two" * 1000, base=store.take_bytes(b"base" * 999))
    gone, _ = added(store, "gone", "three" * 100)
    alone, needed = store.take_bytes(b"alone" * 10), store.take_bytes(b"needed")
    mark_use(needed, "needs it", store=store)
    store.switch("tiny", lambda ref: ref.moved_to(two.digest))
    part = store.part("e" * 64)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"part")
    old_s = time.time() - 30 * 86400
    os.utime(part, (old_s, old_s))
    said = prune(store, lambda: plan(store))
    assert set(said.versions) == {("tiny", one.digest), ("gone", gone.digest)}
    assert set(said.blobs) == {one.digest, gone.digest, alone} and said.parts == (part,)
    assert said.freed_bytes == len("one") + len("three" * 100) + 50 + 4
    assert {path.name for path in (store.folder / "blobs/sha256").iterdir()} == {*two.blobs, needed}
    assert tree(kept) == ["adapters/a.gguf", "pack.json"] and not (store.folder / "packs" / "gone").exists()
    assert plan(store).versions == plan(store).blobs == ()
    store.forget("tiny")
    assert set(prune(store, lambda: plan(store)).blobs) == two.blobs


USE = """
import sys, time
from pathlib import Path
from slm_edge.edge.store.store import Store
from slm_edge.edge.store.uses import mark_use
mark_use(sys.argv[2], "me", "base.gguf", Store(Path(sys.argv[1])))
print("marked", flush=True)
time.sleep(60)
"""


def test_what_a_process_uses_stays_until_it_is_gone(store):
    version, folder = added(store, "tiny", "one")
    sha256 = store.take_bytes(b"used")
    children = []
    for key in (version.digest, sha256):
        command = [sys.executable, "-c", USE, str(store.folder), key]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        assert [child.stdout.readline() for child in children] == ["marked\n"] * 2
        assert [(use.who, use.running) for use in uses_of(store, sha256)] == [("me", True)]
        assert prune(store, lambda: plan(store)).freed_bytes == 0
        assert folder.is_dir() and store.blob(sha256).is_file()
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
    assert [(use.who, use.running) for use in uses_of(store, sha256)] == [("me", False)]
    assert prune(store, lambda: plan(store)).versions == (("tiny", version.digest),)
    assert not store.blob(sha256).exists() and uses_of(store, sha256) == []


def test_nothing_is_pruned_while_something_is_put_together(store):
    code = (
        "import sys, time; from pathlib import Path; from slm_edge.edge.store.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "with store.filling(), store.filling():\n"
        "    store.take_bytes(b'half'); print('filling', flush=True); sys.stdin.read()\n"
        "    sha = store.take_bytes(b'whole')\n"
    )
    command = [sys.executable, "-c", code, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "filling\n"
        with pytest.raises(BlockingIOError):
            prune(store, lambda: plan(store), wait=False)
        child.stdin.close()
    assert len(prune(store, lambda: plan(store), wait=False).blobs) == 2


SWITCH = """
import sys
from pathlib import Path
from slm_edge.edge.store.store import Store
store = Store(Path(sys.argv[1]))
for digest in sys.argv[2:] * 40:
    store.switch("tiny", lambda ref: ref.moved_to(digest))
"""


def test_switched_by_several_at_once_a_name_is_always_one_of_them(store):
    versions = [added(store, "tiny", text)[0] for text in ("one", "two", "three")]
    digests = [version.digest for version in versions]
    store.switch("tiny", lambda ref: ref.moved_to(digests[0]))
    children = [subprocess.Popen([sys.executable, "-c", SWITCH, str(store.folder), *digests]) for _ in range(2)]
    while any(child.poll() is None for child in children):
        ref = store.ref("tiny")
        assert ref.current in digests and ref.previous in (None, *digests) and ref.current != ref.previous
    assert [child.returncode for child in children] == [0, 0]


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    assert store_folder().name == "store"
    monkeypatch.setenv("SLM_EDGE_HOME", str(tmp_path / "home"))
    assert store_folder() == tmp_path / "home" / "store"
    monkeypatch.delenv("SLM_EDGE_HOME")
    monkeypatch.delenv("SLM_EDGE_CACHE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if sys.platform == "linux":
        assert store_folder() == tmp_path / "data" / "slm-edge" / "store"
