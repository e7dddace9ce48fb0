"""`slm-edge serve` as a process of its own, and what it takes while it runs.

with served("my-pack", "--parallel", 4) as server:
    ask(server.port, "/v1/models")
    server.anon_bytes()
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import psutil

from ...edge.errors import EngineError
from ...edge.files.cache import runtime_folder
from ...edge.pack.pack import Pack

_END_S: Final = 60
_ANON: Final = re.compile(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", re.MULTILINE)


@dataclass
class Served:
    """A server that answers.

    Attributes:
        said: the document that it printed when it was ready.
        stderr: file that it writes to.
    """

    process: subprocess.Popen[str]
    said: dict[str, Any]
    stderr: IO[str]

    @property
    def port(self) -> int:
        return int(self.said["addresses"][0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return str(self.said["addresses"][0])

    @property
    def models(self) -> list[str]:
        """The base first, then the adapters, and "auto" last where there is a router."""
        return list(self.said["models"])

    @property
    def adapters(self) -> list[str]:
        return [name for name in self.models[1:] if name != "auto"]

    @property
    def admin_socket(self) -> Path:
        return runtime_folder() / f"{self.process.pid}.sock"

    def anon_bytes(self) -> int:
        """See `anon_bytes_of`."""
        return anon_bytes_of(self.process.pid)

    def n_descriptors(self) -> int:
        """Open files and sockets of the process."""
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])

    def n_threads(self) -> int:
        """Threads of the process."""
        return psutil.Process(self.process.pid).num_threads()

    def cpu_s(self) -> float:
        """See `cpu_s_of`."""
        return cpu_s_of(self.process.pid)

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code; it is killed if it does not end."""
        return _wait(self.process)

    def errors(self) -> str:
        """What it wrote to stderr so far."""
        self.stderr.seek(0)
        return self.stderr.read()


@contextlib.contextmanager
def served(pack: str | Path | None = None, *options: object) -> Iterator[Served]:
    """A server on a port of its own, ended with SIGTERM behind the block.

    Args:
        pack: a folder or a GGUF file; None for the starter pack.
        options: of `slm-edge serve`.

    Raises:
        EngineError: it ended before it answered.
    """
    words = [sys.executable, "-m", "slm_edge.edge", "serve", *([] if pack is None else [str(pack)])]
    # What is added to this server is nothing to the next one over the same pack.
    with tempfile.TemporaryDirectory(prefix="slm-edge-served-") as state, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*words, "--port", "0", "--json", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "STATE_DIRECTORY": state},
        )
        try:
            yield Served(process, _said(process, errors), errors)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                _wait(process)


def starter_base(folder: Path) -> Path:
    """The starter's base under a name that a pack can give it, in a folder."""
    path = folder / "starter.gguf"
    path.symlink_to(Pack.open(None).base_path(allow_pull=True))
    return path


def threads_option(threads: int | None) -> list[object]:
    """The words for so many threads; none where the number is left open."""
    return [] if threads is None else ["--threads", threads]


def cpu_s_of(pid: int) -> float:
    """Processor time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def anon_bytes_of(pid: int) -> int:
    """RssAnon and VmSwap of a process and its children: what a leak grows, also where it is swapped out."""
    own, total = psutil.Process(pid), 0
    for one in (own, *own.children(recursive=True)):
        with contextlib.suppress(OSError):
            total += sum(map(int, _ANON.findall(Path(f"/proc/{one.pid}/status").read_text())))
    return total * 1024


def _said(process: subprocess.Popen[str], errors: IO[str]) -> dict[str, Any]:
    assert process.stdout is not None
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            errors.seek(0)
            raise EngineError(f"the server ended with {code}: {errors.read()[-2000:]}")
        text += line
    said: dict[str, Any] = json.loads(text)
    return said


def _wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
