"""A GGUF's header over HTTP, from a real server, without the tensors."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from build_gguf import tiny_base
from slm_edge.devices.catalogue import header
from slm_edge.devices.catalogue.header import open_header
from slm_edge.devices.catalogue.workload import Workload
from slm_edge.edge.errors import DamagedError, InputError
from slm_edge.edge.files.web import DownloadError
from slm_edge.edge.gguf.file import GgufFile


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves ranges, and counts what it sent."""

    ranges = True
    sent = 0

    def do_GET(self):
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not found or not self.ranges:
            super().do_GET()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, end = int(found[1]), min(int(found[2]), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        self.wfile.write(data[start : end + 1])
        type(self).sent += end - start + 1

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    kind = type("Own", (Handler,), {})
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=tmp_path))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", kind
    served.shutdown()
    served.server_close()


def test_the_header_alone_is_fetched(server, tmp_path, monkeypatch):
    url, kind = server
    path = tiny_base(tmp_path / "base.gguf", n_embd=256, n_ff=1024, n_layers=4)
    monkeypatch.setattr(header, "FIRST_BYTES", 512)
    with open_header(f"{url}/base.gguf?download=true") as file:
        here = GgufFile.open(path)
        assert file.tensors == here.tensors
        assert Workload.of_file(file).streamed_bytes == Workload.of_file(here).streamed_bytes
    assert kind.sent < 0.05 * path.stat().st_size


def test_a_server_without_ranges_is_not_downloaded_from(server, tmp_path):
    url, kind = server
    kind.ranges = False
    tiny_base(tmp_path / "base.gguf")
    with pytest.raises(DownloadError, match="ranges"), open_header(f"{url}/base.gguf"):
        pass


def test_what_is_missing_or_no_gguf_is_told(server, tmp_path):
    url, _ = server
    with pytest.raises(DownloadError, match="404"), open_header(f"{url}/no.gguf"):
        pass
    (tmp_path / "page.gguf").write_text("<html>" * 1000)
    with pytest.raises(InputError, match="not a GGUF"), open_header(f"{url}/page.gguf"):
        pass


def test_a_cut_file_is_damaged(server, tmp_path):
    url, _ = server
    data = tiny_base(tmp_path / "base.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) - 1000])
    with pytest.raises(DamagedError, match="cut short"), open_header(f"{url}/cut.gguf"):
        pass


def test_fit_reads_an_address(server, tmp_path):
    url, _ = server
    tiny_base(tmp_path / "base.gguf")
    command = [sys.executable, "-m", "slm_edge.edge", "devices", "fit", "--device", "raspberry-pi-4b-1gb", "--json"]
    result = subprocess.run([*command, "--model", f"{url}/base.gguf"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["fits"] is True
