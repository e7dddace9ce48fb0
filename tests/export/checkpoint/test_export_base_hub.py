"""Fetching a checkpoint by its hub name, against a small server that speaks the hub's protocol."""

import os
import signal
import subprocess
import sys

import huggingface_hub
import pytest
from build_hf import tiny_checkpoint
from build_hub import serving
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES

BIG = "model.safetensors"


def command(tmp_path, url, name="tiny/model", *more):
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf_home")}
    environment.pop("HF_HUB_OFFLINE", None)
    words = [sys.executable, "-m", "slm_edge.edge", "export", "base", name, "-o", str(tmp_path / "base.gguf"), *more]
    return {"args": words, "env": environment, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": tmp_path}


def test_stopped_and_taken_up_again_and_offline(tmp_path):
    # 56 MB: half of it is more than what the client writes at once (10 MB) and the sockets hold together
    folder = tiny_checkpoint(tmp_path / "hf", n_embd=512, n_heads=8, n_ff=4096)
    (folder / "consolidated.safetensors").write_bytes(b"not wanted")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    with serving({"tiny/model": folder}, stall=BIG) as hub:
        with subprocess.Popen(**command(tmp_path, hub.url)) as process:
            assert hub.stalled.wait(60), process.stderr.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130, process.stderr.read()
        assert not (tmp_path / "base.gguf").exists()
        done = subprocess.run(**command(tmp_path, hub.url))
        assert done.returncode == 0, done.stderr
        first, second = hub.ranges[BIG]
        assert first is None
        # newer releases of huggingface_hub begin a file anew
        if huggingface_hub.__version__.startswith("0."):
            assert int(second.removeprefix("bytes=").rstrip("-")) > 0
        assert {"consolidated.safetensors", "pytorch_model.bin"}.isdisjoint(hub.ranges)
        assert hub.fetched.count(("GET", "config.json")) == 1
        url = hub.url
    first = (tmp_path / "base.gguf").read_bytes()
    export_base(folder, tmp_path / "local.gguf", TYPES["q8_0"], Options(name="model"))
    assert (tmp_path / "local.gguf").read_bytes() == first
    # the server is gone; the cache has everything
    done = subprocess.run(**command(tmp_path, url, "tiny/model", "--force"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "base.gguf").read_bytes() == first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny/gated", "hf auth login"),
        ("tiny/none", "no such model on the hub"),
        ("tiny/none/deep", "no such file or folder"),
    ],
)
def test_what_cannot_be_fetched(tmp_path, name, said):
    with serving({"tiny/model": tmp_path}, gated="tiny/gated") as hub:
        done = subprocess.run(**command(tmp_path, hub.url, name))
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_hub_that_cannot_be_reached(tmp_path):
    done = subprocess.run(**command(tmp_path, "http://127.0.0.1:9"))
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr.decode()
