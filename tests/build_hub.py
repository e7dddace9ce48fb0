"""A small server that speaks the Hugging Face hub's protocol, for models, data sets and plain downloads.

with serving({"datasets/tiny/rows": folder}) as hub:
    environment = hub.environment(tmp_path)      # HF_ENDPOINT and a cache of its own
    hub.file_url("datasets/tiny/rows", "train.jsonl")
"""

import hashlib
import http.server
import json
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 1 << 16


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories, "tiny/model" or "datasets/tiny/rows" -> folder; Range is honoured.

    Args:
        gated: a repository that asks for its terms to be accepted.
        stall: the first answer with the file of this name stops half-way and waits; `stalled` is set then.
        cuts: so many answers with a file break off in the middle.
        pause_s: between two pieces of 64 KiB.

    Attributes:
        fetched: (HTTP method, file name) of every request for a file.
        ranges: file name -> the Range headers that it was asked with, None for those without.
        tokens: the Authorization headers of requests for files.
    """

    daemon_threads = True

    def __init__(self, repositories, *, gated="", stall="", cuts=0, pause_s=0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.gated, self.stall, self.cuts, self.pause_s = gated, stall, cuts, pause_s
        self.stalled = threading.Event()
        self.fetched, self.tokens = [], []
        self.ranges = defaultdict(list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def file_url(self, name, file):
        return f"{self.url}/{name}/resolve/main/{file}"

    def environment(self, folder):
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hf_home")}

    def handle_error(self, request, client_address):
        """A client that was killed is no fault of the server."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def head(self, status, n_bytes, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": n_bytes} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def answer(self, status, body=b"", **headers):
        self.head(status, len(body), **headers)
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server
        if hub.gated and self.path.startswith(f"/api/models/{hub.gated}"):
            self.answer(403, b"{}", X_Error_Code="GatedRepo")
            return
        for name, folder in hub.repositories.items():
            kind = name if name.startswith("datasets/") else f"models/{name}"
            if self.path.startswith(f"/api/{kind}"):
                names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
                siblings = [{"rfilename": file} for file in names]
                body = {"id": name.removeprefix("datasets/"), "sha": SHA, "siblings": siblings}
                self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
                return
            if self.path.startswith(f"/{name}/resolve/"):
                file = folder / self.path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                if file.is_file():
                    self.file(file)
                    return
        self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    def file(self, file):
        hub, data, asked = self.server, file.read_bytes(), self.headers.get("Range")
        hub.fetched.append((self.command, file.name))
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            self.head(200, len(data), **headers)
            return
        hub.ranges[file.name].append(asked)
        hub.tokens.append(self.headers.get("Authorization"))
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.head(206 if asked else 200, len(body), **headers)
        stall = hub.stall == file.name
        if stall or hub.cuts:
            hub.stall, hub.cuts = "" if stall else hub.stall, max(0, hub.cuts - 1)
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            if stall:
                hub.stalled.set()
                threading.Event().wait(20)
            return
        for at in range(0, len(body), PIECE_BYTES):
            self.wfile.write(body[at : at + PIECE_BYTES])
            time.sleep(hub.pause_s)


@contextmanager
def serving(repositories, **options):
    hub = Hub(repositories, **options)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
