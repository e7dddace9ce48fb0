"""A small server that speaks the Hugging Face hub's protocol, for models and data sets of any name.

with serving({"datasets/tiny/rows": folder}) as hub:
    environment = hub.environment(tmp_path)      # HF_ENDPOINT and a cache of its own
"""

import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories: "tiny/model" or "datasets/tiny/rows" -> folder."""

    daemon_threads = True

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.fetched = []

    def environment(self, folder):
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HOME": str(folder / "hf_home")}


class _Handler(http.server.BaseHTTPRequestHandler):
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
        for name, folder in self.server.repositories.items():
            kind = name if name.startswith("datasets/") else f"models/{name}"
            if self.path.startswith(f"/api/{kind}"):
                siblings = [
                    {"rfilename": path.relative_to(folder).as_posix()} for path in folder.rglob("*") if path.is_file()
                ]
                body = {"id": name.removeprefix("datasets/"), "sha": SHA, "siblings": siblings}
                self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
                return
            if self.path.startswith(f"/{name}/resolve/"):
                file = folder / self.path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                if file.is_file():
                    data = file.read_bytes()
                    tag = hashlib.sha256(data).hexdigest()
                    self.server.fetched.append((self.command, file.name))
                    self.answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=SHA, Accept_Ranges="bytes")
                    return
        self.answer(404, b"{}", X_Error_Code="RepoNotFound")


@contextmanager
def serving(repositories):
    server = Hub(repositories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
