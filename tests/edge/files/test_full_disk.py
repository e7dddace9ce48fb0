"""A disk that is full for real: a small file system where one can be mounted, a limit on a file's size everywhere."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_hub import serving
from build_peft import pair, written_adapter
from slm_edge.edge.errors import DoesNotFitError
from slm_edge.edge.files.aside import SUFFIX
from slm_edge.edge.files.atomic import write_json
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.session.session import Session
from slm_edge.edge.store.store import Store

SLM_EDGE = (sys.executable, "-m", "slm_edge.edge")
SMALL_BYTES = 64 << 10
# Mounts a file system of SMALL_BYTES on $1, runs the rest there, and tells what the folder holds then.
IN_SMALL = (
    f'mount -t tmpfs -o size={SMALL_BYTES} none "$0" || exit 99; folder=$0; '
    '"$@"; code=$?; echo "left:" $(ls -A "$folder"); exit $code'
)
SYSTEM = "Answer as the keeper of the light house would, in the words of the sea. " * 6


@pytest.fixture
def made(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", n_embd=128, n_ff=256)
    return base, tiny_adapter(tmp_path / "a.gguf", base)


@pytest.fixture
def small(tmp_path):
    """Runs a command with a small disk at `small.folder`: exit code, what is left there, stdout before, stderr."""
    folder = tmp_path / "small"
    folder.mkdir()

    def run(*command):
        words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_SMALL, folder, *command]
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
        if done.returncode == 99 or "unshare" in done.stderr:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        out, _, left = done.stdout.rpartition("left:")
        return done.returncode, left.split(), out, done.stderr

    run.folder = folder
    return run


@contextmanager
def files_of_at_most(n_bytes):
    """Writing more than that to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def peft_folder(folder):
    tensors = {}
    for name in ("q_proj", "o_proj"):
        for layer in range(2):
            tensors |= pair(f"model.layers.{layer}.self_attn.{name}", 128, 128, rank=64)
    return written_adapter(folder, tensors, r=64, target_modules=["q_proj", "o_proj"])


@pytest.mark.parametrize("what", ["lora", "onnx", "pack", "base"])
def test_exports_and_packs_on_a_full_disk(small, made, tmp_path, what):
    base, adapter = made
    out = small.folder / "out.gguf"
    words = {
        "lora": ("export", "lora", peft_folder(tmp_path / "peft"), "--base", base, "-o", out, "--type", "f32"),
        "onnx": ("export", "onnx", base, "-o", out),
        "pack": ("pack", "build", "-o", out, "--base", base, "--adapter", f"a={adapter}"),
        "base": ("export", "base", base, "-o", out, "--type", "q8_0"),
    }[what]
    code, left, _, said = small(*SLM_EDGE, *words)
    assert (code, left) == (4, []), said
    assert " free" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("what", ["base", "pack"])
def test_a_disk_that_fills_up_after_it_had_room(slm_edge, made, tmp_path, what):
    base, adapter = made
    words = {
        "base": ("export", "base", base, "-o", tmp_path / "out", "--type", "q4_0", "--threads", 1),
        "pack": ("pack", "build", "-o", tmp_path / "out", "--base", base, "--adapter", f"a={adapter}"),
    }[what]
    before = sorted(tmp_path.iterdir())
    with files_of_at_most(SMALL_BYTES):
        code, _, said = slm_edge(*words)
    assert code == 4, said
    assert f"{tmp_path / 'out'}: cannot be written" in said
    assert sorted(tmp_path.iterdir()) == before


def test_pull(small, slm_edge, made, tmp_path, monkeypatch):
    base, adapter = made
    (tmp_path / "served").mkdir()
    os.link(base, tmp_path / "served" / "base.gguf")
    with serving({"org/tiny": tmp_path / "served"}) as hub:
        sources = [{"kind": "url", "url": hub.file_url("org/tiny", "base.gguf")}]
        adapters = [NewAdapter("a", adapter)]
        pack = build_pack(tmp_path / "pack", base=base, adapters=adapters, copy_base=False, sources=sources)
        command = ("env", f"SLM_EDGE_CACHE={small.folder}", *SLM_EDGE, "pull", tmp_path / "pack")
        code, _, _, said = small(*command)
        assert code == 4, said
        assert "are needed for base.gguf, 64.0 KiB are free" in said
        assert "SLM_EDGE_HOME" in said
        out = base_cache_path(pack.base.sha256)
        with files_of_at_most(SMALL_BYTES):
            code, _, said = slm_edge("pull", tmp_path / "pack")
            assert code == 4, said
            assert "to go on from" in said
            code, _, said = slm_edge("pull", tmp_path / "pack", "--file", base)
            assert code == 4, said
        assert not [*out.parent.iterdir()]
        part = Store().part(pack.base.sha256)
        assert sorted(part.parent.iterdir()) == [part, part.with_name(part.name + ".json")]
        assert slm_edge("pull", tmp_path / "pack")[0] == 0
        assert out.read_bytes() == base.read_bytes()
        assert hub.ranges["base.gguf"] == [None, f"bytes={SMALL_BYTES}-"]


ASK = """
import json, sys
from slm_edge.edge.files.aside import SUFFIX
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session
base, adapter, folder, system = sys.argv[1:]
files = {"a": (adapter, TaskCard(task="a", system=system))}
with Session.of_files(base, files, threads=1, prefix_cache=folder) as session:
    ids = [session.use(name).ask("hello", max_tokens=4).token_ids for name in ("a", None, "a")]
    disk = session.prefixes.disk
print(json.dumps([ids, disk.fault, disk.n_written]))
"""


def test_a_session_goes_on_without_its_prefix_cache(small, made):
    base, adapter = made
    code, left, out, said = small(sys.executable, "-c", ASK, base, adapter, small.folder, SYSTEM)
    assert code == 0, said
    ids, fault, n_written = json.loads(out)
    with Session.of_files(base, {"a": (adapter, TaskCard(task="a", system=SYSTEM))}, threads=1) as session:
        assert ids == [list(session.use(name).ask("hello", max_tokens=4).token_ids) for name in ("a", None, "a")]
    assert "No space left on device" in fault
    assert n_written == 0
    assert not [name for name in left if name.endswith((".kv", SUFFIX))], left


def test_any_file(tmp_path):
    with files_of_at_most(100), pytest.raises(DoesNotFitError, match="cannot be written") as caught:
        write_json(tmp_path / "x.json", "long" * 100)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())
