"""Pulls that are cut: connections that break, processes that are killed, disks that are full. What is here afterwards?

    python -m slm_edge.benchmarks.delivery.broken_pulls --cuts 200

A server on this machine speaks the hub's protocol; its large file lies on another host, as on the real one. One pull
after the other is cut at random places: by an RST, by kill -9, by a disk that takes no more (RLIMIT_FSIZE), by 429.
After each cut no half file may stand where a whole one is expected. A cut is charged with what the server sent beyond
the place where the next request goes on. Prints one JSON document; exits with 1 if a bound does not hold.
"""

import contextlib
import hashlib
import http.server
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

REPO: Final = "org/model"
FILE: Final = "model-Q4_K_M.gguf"
COMMIT: Final = "c" * 40
MOST_TWICE_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 32 << 10
KINDS: Final = ("reset", "kill", "full", "busy")


@dataclass
class Sent:
    """One answer with bytes of the file: from where, and how many were handed to the system."""

    start_bytes: int
    n_bytes: int = 0


class Server(http.server.ThreadingHTTPServer):
    """A hub with one repository and one file.

    Attributes:
        answers: every answer with bytes of the file, in order.
        cut_after_bytes, how: the next answer is cut there: "reset"; "kill": `reached` is set and it goes on; None: not.
        n_busy: so many requests for the file are answered by 429 first.
    """

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.sha256 = data, hashlib.sha256(data).hexdigest()
        self.answers: list[Sent] = []
        self.cut_after_bytes, self.n_busy = 0, 0
        self.how: str | None = None
        self.reached = threading.Event()

    def server_bind(self) -> None:
        # Little waits in the kernel: what was handed over is nearly what arrived.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE_BYTES)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}"):
            size = len(self.server.data)
            row = {"rfilename": FILE, "size": size, "blobId": "b" * 40}
            row["lfs"] = {"sha256": self.server.sha256, "size": size, "pointerSize": 134}
            self.say(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": [row]}).encode())
        elif path == f"/{REPO}/resolve/{COMMIT}/{FILE}":
            if self.server.n_busy:
                self.server.n_busy -= 1
                self.say(429, b"", {"Retry-After": "0"})
                return
            where = f"http://localhost:{self.server.server_port}/cas/{self.server.sha256}?signature=x"
            headers = {
                "Location": where,
                "X-Linked-Etag": f'"{self.server.sha256}"',
                "X-Linked-Size": str(len(self.server.data)),
            }
            self.say(302, b"", headers)
        elif path == f"/cas/{self.server.sha256}":
            self.send_file()
        else:
            self.say(404, b"")

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_file(self) -> None:
        server, data, asked = self.server, self.server.data, self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{server.sha256}"')
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        sent = Sent(start)
        server.answers.append(sent)
        how, cut_bytes = server.how, server.cut_after_bytes
        for at in range(start, len(data), _PIECE_BYTES):
            if how is not None and sent.n_bytes >= cut_bytes:
                server.how = None
                if how == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                how = None
                server.reached.set()
            piece = data[at : at + _PIECE_BYTES]
            self.wfile.write(piece)
            sent.n_bytes += len(piece)
            # Slow enough that a kill lands within the file
            time.sleep(0.0005)


@dataclass
class Found:
    """What was seen.

    Attributes:
        twice_bytes: of each cut.
        faults: what must not be.
    """

    cuts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    twice_bytes: list[int] = field(default_factory=list)
    n_files: int = 0
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cuts": self.cuts,
            "n_cuts": sum(self.cuts.values()),
            "n_files": self.n_files,
            "most_twice_bytes": max(self.twice_bytes, default=0),
            "mean_twice_bytes": round(sum(self.twice_bytes) / max(1, len(self.twice_bytes))),
            "faults": self.faults,
        }


def measure(n_cuts: int, size_bytes: int, seed: int, folder: Path) -> Found:
    """Pulls the file again and again, into a new store each time, until so many cuts were made."""
    rng, found = random.Random(seed), Found()
    data = rng.randbytes(size_bytes)
    with serving(data) as server:
        while sum(found.cuts.values()) < n_cuts:
            store = folder / f"store-{found.n_files}"
            server.answers.clear()
            _one_file(server, rng, found, store, n_cuts)
            found.n_files += 1
            shutil.rmtree(store, ignore_errors=True)
        _at_once(server, found, folder / "at-once")
    return found


@contextlib.contextmanager
def serving(data: bytes) -> Iterator[Server]:
    """The server, while the block lasts."""
    with Server(data) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def _one_file(server: Server, rng: random.Random, found: Found, home: Path, n_cuts: int) -> None:
    blob = home / "store" / "blobs" / "sha256" / server.sha256
    while True:
        # The kind that there are fewest of, so that all come to be as many
        fewest = [kind for kind in KINDS if found.cuts[kind] == min(found.cuts.values())]
        kind = rng.choice(fewest) if sum(found.cuts.values()) < n_cuts else None
        server.how, server.n_busy = None, 0
        server.reached.clear()
        server.cut_after_bytes = rng.randrange(100_000, 1 + len(server.data) // 3)
        limit_bytes = None
        if kind in ("reset", "kill"):
            server.how = kind
        elif kind == "busy":
            server.n_busy = 2
        elif kind == "full":
            limit_bytes = _part_bytes(home, server) + server.cut_after_bytes
        n_before = len(server.answers)
        process = _pull(server, home, limit_bytes)
        killed = kind == "kill" and _kill(process, server)
        code, said = process.wait(), process.stderr.read() if process.stderr else ""
        if process.stderr is not None:
            process.stderr.close()
        # An answer to a process that is gone ends when the server notices.
        time.sleep(0.05)
        cut = killed or (kind == "full" and code == 4) or (kind == "reset" and server.how is None) or kind == "busy"
        if kind is not None and cut:
            found.cuts[kind] += 1
        expected = (-9,) if killed else (4,) if kind == "full" and code == 4 else (0,)
        if code not in expected:
            found.faults.append(f"{kind}: exit code {code}: {said[-300:]}")
            return
        for before, after in zip(server.answers[max(0, n_before - 1) :], server.answers[n_before or 1 :], strict=False):
            found.twice_bytes.append(max(0, before.start_bytes + before.n_bytes - after.start_bytes))
        _look(home, blob, server, code == 0, found)
        if code == 0:
            return


def _part_bytes(home: Path, server: Server) -> int:
    part = home / "store" / "state" / "downloads" / f"{server.sha256}.part"
    return part.stat().st_size if part.exists() else 0


def _pull(server: Server, home: Path, limit_bytes: int | None) -> subprocess.Popen[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    command = [sys.executable, "-m", "slm_edge.edge", "pull", f"hf:{REPO}"]
    return subprocess.Popen(
        command,
        env=_environment(server, home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def _environment(server: Server, home: Path) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SLM_EDGE_"))}
    # No other program's cache may have the file.
    return plain | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "SLM_EDGE_HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HOME": str(home),
    }


def _kill(process: subprocess.Popen[str], server: Server) -> bool:
    """Kills once the server has come so far; False if the pull was faster."""
    while process.poll() is None:
        if server.reached.wait(0.01):
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
    return False


def _look(home: Path, blob: Path, server: Server, whole: bool, found: Found) -> None:
    """No half file where a whole one is expected; and a whole one only when the pull said so."""
    if blob.exists() and hashlib.sha256(blob.read_bytes()).hexdigest() != server.sha256:
        found.faults.append("a half file in the store")
    if any((home / "store" / "refs").glob("*.json")) and not blob.exists():
        found.faults.append("a name without its file")
    if whole:
        command = [sys.executable, "-m", "slm_edge.edge", "verify", "--json"]
        offline = _environment(server, home) | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
        if done.returncode or not json.loads(done.stdout)["ok"]:
            found.faults.append(f"the store does not verify: {done.stdout[-300:]}{done.stderr[-300:]}")


def _at_once(server: Server, found: Found, home: Path) -> None:
    """Two pulls at once: one fetches."""
    server.answers.clear()
    server.how, server.n_busy = None, 0
    pulls = [_pull(server, home, None) for _ in range(2)]
    codes = [pull.wait() for pull in pulls]
    for pull in pulls:
        if pull.stderr is not None:
            pull.stderr.close()
    n_bytes = sum(answer.n_bytes for answer in server.answers)
    if codes != [0, 0] or n_bytes != len(server.data):
        found.faults.append(f"two pulls at once: exit codes {codes}, {n_bytes} of {len(server.data)} bytes were sent")


@click.command()
@click.option("--cuts", type=click.IntRange(1), default=200, show_default=True)
@click.option("--size-mib", type=click.IntRange(4, 512), default=24, show_default=True, help="Of the file.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(cuts: int, size_mib: int, seed: int) -> None:
    """Cut pulls, and look at what is there."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(cuts, size_mib << 20, seed, Path(folder))
    data = found.as_dict() | {"size_bytes": size_mib << 20, "bound_bytes": MOST_TWICE_BYTES}
    click.echo(json.dumps(data, indent=2))
    if found.faults or data["most_twice_bytes"] > MOST_TWICE_BYTES:
        sys.exit(1)


if __name__ == "__main__":
    main()
