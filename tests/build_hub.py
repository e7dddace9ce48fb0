"""A small server that speaks the Hugging Face hub's protocol, for models, data sets and plain downloads.

with serving({"datasets/tiny/rows": folder}) as hub:
    environment = hub.environment(tmp_path)      # HF_ENDPOINT and a cache of its own
    hub.file_url("datasets/tiny/rows", "train.jsonl")

with serving({"org/tiny": folder}, large="xet") as hub:     # large files lie on another host, as on the real one
    hub.script["/tiny.gguf"] = [(429, {"Retry-After": "0"}), (200, {})]
"""

import base64
import hashlib
import http.server
import json
import socket
import struct
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 1 << 16
# Suffixes of the files that the hub keeps by their sha256
LARGE = (".gguf", ".safetensors", ".bin")


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories, "tiny/model" or "datasets/tiny/rows" -> folder; Range is honoured.

    Args:
        gated: a repository that asks for its terms to be accepted.
        stall: the first answer with the file of this name stops half-way and waits; `stalled` is set then.
        cuts: so many answers with a file break off in the middle.
        pause_s: between two pieces of 64 KiB.
        large: "lfs" or "xet": large files are answered by a redirect to another host, `cdn`; None: by themselves.
        token: what private repositories (all of them, then) ask for.
        made: folder for repositories that are made.

    Attributes:
        fetched: (HTTP method, file name) of every request for a file.
        ranges: file name -> the Range headers that it was asked with, None for those without.
        tokens: the Authorization headers of requests for files.
        script: end of a path -> answers to give first: (status, headers), or 200 for the real one, "reset" for an RST
            after half of what was asked, "cut" for a connection that ends there.
        asked: (host, path, Authorization, Range) of every request, of the other host too.
        sent_bytes: file name -> bytes of it that were sent.
        sums: whether the sha256 of large files is told, as some mirrors do not.
    """

    daemon_threads = True

    def __init__(
        self, repositories, *, gated="", stall="", cuts=0, pause_s=0.0, large=None, token=None, hub=None, made=None
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.gated, self.stall, self.cuts, self.pause_s = gated, stall, cuts, pause_s
        self.large, self.token, self.is_cdn = large, token, hub is not None
        self.state = hub or self
        self.stalled = threading.Event()
        self.fetched, self.tokens, self.asked = [], [], []
        self.ranges, self.script = defaultdict(list), defaultdict(list)
        self.sent_bytes = defaultdict(int)
        self.put, self.made, self.sums = {}, made, True
        self.cdn = Hub({}, hub=self) if large and hub is None else None

    @property
    def url(self):
        return f"http://{'localhost' if self.is_cdn else '127.0.0.1'}:{self.server_port}"

    def file_url(self, name, file):
        return f"{self.url}/{name}/resolve/main/{file}"

    def environment(self, folder):
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hf_home")}

    def handle_error(self, request, client_address):
        """A client that was killed is no fault of the server."""

    def server_bind(self):
        # Little waits in the kernel, so that what was sent is nearly what was received.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)
        super().server_bind()


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
        hub, here = self.server.state, self.server
        hub.asked.append(
            (here.url.partition("//")[2], self.path, self.headers.get("Authorization"), self.headers.get("Range"))
        )
        self.how = 200
        for end, answers in hub.script.items():
            if answers and self.path.partition("?")[0].endswith(end):
                self.how = answers.pop(0)
                break
        if isinstance(self.how, tuple):
            status, headers = self.how
            self.answer(status, b"{}", **{name.replace("-", "_"): value for name, value in headers.items()})
            return
        if here.is_cdn:
            self.from_cdn(hub)
            return
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer(401, b"{}", X_Error_Code="RepoNotFound")
            return
        if hub.gated and self.path.startswith(f"/api/models/{hub.gated}"):
            self.answer(403, b"{}", X_Error_Code="GatedRepo")
            return
        for name, folder in hub.repositories.items():
            kind = name if name.startswith("datasets/") else f"models/{name}"
            if self.path.partition("?")[0] == f"/api/{kind}" or self.path.startswith(f"/api/{kind}/"):
                self.listing(name, folder)
                return
            if self.path.startswith(f"/{name}/resolve/"):
                file = folder / self.path.removeprefix(f"/{name}/resolve/").partition("/")[2]
                if file.is_file():
                    if hub.large and file.suffix in LARGE:
                        self.redirect(hub, file)
                    else:
                        self.file(file)
                    return
        self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    # What is pushed: a repository is made, large files are put first, one commit names all.

    def do_POST(self):
        hub = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append((hub.url.partition("//")[2], self.path, self.headers.get("Authorization"), None))
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.answer_json({"error": "Unauthorized"}, 401)
        elif self.path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            exists = name in hub.repositories
            if not exists:
                hub.repositories[name] = hub.made / name
                (hub.made / name).mkdir(parents=True)
            self.answer_json({"url": f"{hub.url}/{name}", "id": name}, 409 if exists else 200)
        elif self.path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            rows = [
                {
                    "path": row["path"],
                    "uploadMode": "lfs" if row["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for row in json.loads(body)["files"]
            ]
            self.answer_json({"files": rows})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": row["oid"], "size": row["size"], "actions": {"upload": {"href": f"{hub.url}/put/{row['oid']}"}}}
                for row in json.loads(body)["objects"]
            ]
            self.answer_json({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            self.commit(hub.repositories[name], body)
            self.answer_json({"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA})
        else:
            self.answer_json({}, 404)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/put/{hashlib.sha256(data).hexdigest()}"
        self.server.state.put[self.path.rpartition("/")[2]] = data
        self.answer_json({})

    def commit(self, folder, body):
        for line in body.splitlines():
            row = json.loads(line)
            said = row["value"]
            if row["key"] == "file":
                data = base64.b64decode(said["content"])
            elif row["key"] == "lfsFile":
                data = self.server.state.put[said["oid"]]
            elif row["key"] == "deletedFile":
                (folder / said["path"]).unlink()
                continue
            else:
                continue
            (folder / said["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / said["path"]).write_bytes(data)

    def answer_json(self, data, status=200):
        body = json.dumps(data).encode()
        self.head(status, len(body), Content_Type="application/json")
        self.wfile.write(body)

    def listing(self, name, folder):
        """What api/models/NAME[/revision/REV] says; sizes and sums where they are asked for."""
        revision = self.path.partition("?")[0].rpartition("/revision/")[2] if "/revision/" in self.path else "main"
        if revision not in ("main", SHA, "v1"):
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        siblings = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            row = {"rfilename": path.relative_to(folder).as_posix()}
            if "blobs=" in self.path:
                data = path.read_bytes()
                row |= {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
                if path.suffix in LARGE and self.server.state.sums:
                    sha256 = hashlib.sha256(data).hexdigest()
                    row["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 134}
            siblings.append(row)
        body = {"id": name.removeprefix("datasets/"), "sha": SHA, "siblings": siblings}
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def redirect(self, hub, file):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        hub.cdn.repositories[sha256] = file
        headers = {"X_Linked_Etag": f'"{sha256}"', "X_Linked_Size": file.stat().st_size, "X_Repo_Commit": SHA}
        if hub.large == "xet":
            headers |= {"X_Xet_Hash": sha256, "Link": f'<{hub.url}/api/xet>; rel="xet-auth"'}
        self.answer(302, Location=f"{hub.cdn.url}/{hub.large}/{sha256}/{file.name}?X-Amz-Signature=abc", **headers)

    def from_cdn(self, hub):
        file = self.server.repositories.get(self.path.split("/")[2])
        if file is None or self.headers.get("Authorization"):
            # A signed address and a token at once are refused by the real one.
            self.answer(400, b"{}")
            return
        self.file(file)

    def file(self, file):
        hub, data, asked = self.server.state, file.read_bytes(), self.headers.get("Range")
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        hub.fetched.append((self.command, file.name))
        headers = {"ETag": etag, "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            self.head(200, len(data), **headers)
            return
        hub.ranges[file.name].append(asked)
        hub.tokens.append(self.headers.get("Authorization"))
        if self.headers.get("If-Range") not in (None, etag):
            asked = None
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked and start >= len(data):
            self.answer(416, Content_Range=f"bytes */{len(data)}")
            return
        if asked:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.head(206 if asked else 200, len(body), **headers)
        stall = hub.stall == file.name
        if stall or hub.cuts or self.how in ("cut", "reset"):
            hub.stall, hub.cuts = "" if stall else hub.stall, max(0, hub.cuts - 1)
            self.send(hub, file, body[: len(body) // 2])
            self.close_connection = True
            if stall:
                hub.stalled.set()
                threading.Event().wait(20)
            if self.how == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            return
        self.send(hub, file, body)

    def send(self, hub, file, body):
        for at in range(0, len(body), PIECE_BYTES):
            piece = body[at : at + PIECE_BYTES]
            self.wfile.write(piece)
            hub.sent_bytes[file.name] += len(piece)
            time.sleep(hub.pause_s)


@contextmanager
def serving(repositories, **options):
    hub = Hub(repositories, **options)
    servers = [one for one in (hub, hub.cdn) if one is not None]
    for one in servers:
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        for one in servers:
            one.shutdown()
            one.server_close()
