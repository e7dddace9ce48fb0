"""Fetching a checkpoint by its hub name, against a small server that speaks the hub's protocol."""

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from build_hf import tiny_checkpoint
from slm_edge.export.base import Options, export_base
from slm_edge.export.quantize import TYPES

SHA = "0123456789abcdef0123456789abcdef01234567"
BIG = "model.safetensors"


class Hub(http.server.ThreadingHTTPServer):
    """Serves one folder as tiny/model. With `stall`, the first answer with the weights stops half-way and waits."""

    daemon_threads = True

    def __init__(self, folder, stall=False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.stall = stall
        self.stalled = threading.Event()
        self.ranges = []
        self.fetched = []


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith("/api/models/tiny/model"):
            names = [path.name for path in sorted(self.server.folder.iterdir())]
            info = {"id": "tiny/model", "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
            self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        elif self.path.startswith("/api/models/tiny/gated"):
            self.answer(403, b"{}", X_Error_Code="GatedRepo")
        elif self.path.startswith((f"/tiny/model/resolve/{SHA}/", "/tiny/model/resolve/main/")):
            self.file(self.path.rpartition("/")[2])
        else:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    def file(self, name):
        data = (self.server.folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            self.answer(200, b"", **headers | {"Content_Length": len(data)})
            return
        self.server.fetched.append(name)
        start = 0
        if asked := self.headers.get("Range"):
            if name == BIG:
                self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if name == BIG and self.server.stall:
            self.server.stall = False
            self.send_response(200)
            for key, value in (headers | {"Content_Length": len(data)}).items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            threading.Event().wait(20)
            return
        self.answer(206 if asked else 200, data[start:], **headers)


@contextmanager
def serving(folder, **options):
    server = Hub(folder, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def command(tmp_path, port, name="tiny/model", *more):
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hf_home")}
    environment.pop("HF_HUB_OFFLINE", None)
    words = [sys.executable, "-m", "slm_edge.edge", "export", "base", name, "-o", str(tmp_path / "base.gguf"), *more]
    return {"args": words, "env": environment, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": tmp_path}


def test_stopped_and_taken_up_again_and_offline(tmp_path):
    # 56 MB: half of it is more than what the client writes at once (10 MB) and the sockets hold together
    folder = tiny_checkpoint(tmp_path / "hf", n_embd=512, n_heads=8, n_ff=4096)
    (folder / "consolidated.safetensors").write_bytes(b"not wanted")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    with serving(folder, stall=True) as hub:
        with subprocess.Popen(**command(tmp_path, hub.server_port)) as process:
            assert hub.stalled.wait(60), process.stderr.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130, process.stderr.read()
        assert not (tmp_path / "base.gguf").exists()
        done = subprocess.run(**command(tmp_path, hub.server_port))
        assert done.returncode == 0, done.stderr
        assert len(hub.ranges) == 1
        assert int(hub.ranges[0].removeprefix("bytes=").rstrip("-")) > 0
        assert {"consolidated.safetensors", "pytorch_model.bin"}.isdisjoint(hub.fetched)
        assert hub.fetched.count("config.json") == 1
        port = hub.server_port
    first = (tmp_path / "base.gguf").read_bytes()
    export_base(folder, tmp_path / "local.gguf", TYPES["q8_0"], Options(name="model"))
    assert (tmp_path / "local.gguf").read_bytes() == first
    # the server is gone; the cache has everything
    done = subprocess.run(**command(tmp_path, port, "tiny/model", "--force"))
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
    with serving(tmp_path) as hub:
        done = subprocess.run(**command(tmp_path, hub.server_port, name))
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_hub_that_cannot_be_reached(tmp_path):
    done = subprocess.run(**command(tmp_path, 9, "tiny/model"))
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr.decode()
