"""Servers that run here, asked over the admin socket of each, and what one does as a table."""

import contextlib
import http.client
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..console import harmless, note
from ..errors import InputError, SlmEdgeError
from ..files.cache import runtime_folder
from ..written import human_bytes

if TYPE_CHECKING:
    from rich.table import Table

_ANSWER_S: Final = 10.0
# Checking and trying an adapter, on a slow card
LOAD_S: Final = 600.0


class _Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def ask(path: Path, method: str, what: str, body: Any = None, timeout_s: float = _ANSWER_S) -> Any:
    """What a server answers on its admin socket.

    Raises:
        SlmEdgeError: it refuses, or does not answer; OSError where nobody listens.
    """
    with contextlib.closing(_Unix(path, timeout_s)) as connection:
        sent = None if body is None else json.dumps(body).encode()
        connection.request(method, what, sent, {} if sent is None else {"content-type": "application/json"})
        answer = connection.getresponse()
        data = json.loads(answer.read())
    if answer.status >= 400:
        raise InputError(data["error"]["message"])
    return data


def servers() -> list[tuple[Path, dict[str, Any]]]:
    """Those that run, with what they say of themselves; the socket of one that died is removed."""
    found = []
    for path in sorted(runtime_folder().glob("*.sock")):
        try:
            found.append((path, ask(path, "GET", "/v1/slm/server")))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except (OSError, SlmEdgeError, ValueError, http.client.HTTPException):
            note(f"{path}: no answer")
    return found


def chosen_server(server: str | None) -> Path:
    """The socket of the server that `--server` means, or of the only one."""
    running = servers()
    if server is not None:
        if server.endswith(".sock"):
            return Path(server)
        running = [
            (path, facts)
            for path, facts in running
            if server in (str(facts["pid"]), *(one.rpartition(":")[2] for one in facts["addresses"]))
        ]
    if len(running) == 1:
        return running[0][0]
    if not running:
        named = "" if server is None else f" with the process or port {server!r}"
        raise InputError(f"no server{named} runs here", hint="slm-edge serve starts one; slm-edge ps lists them")
    raise InputError(
        f"{len(running)} servers run here", hint="--server PID or PORT chooses one; slm-edge ps lists them"
    )


def view(before: dict[str, Any], now: dict[str, Any]) -> "Table":
    """A table of what a server did between two states."""
    from rich.table import Table
    from rich.text import Text

    passed_s = max(now["uptime_s"] - before["uptime_s"], 1e-3)

    def rate(name: str) -> str:
        return f"{(now[name] - before[name]) / passed_s:.1f}/s"

    work_s = {name: value - before["work_s"].get(name, 0) for name, value in now["work_s"].items()}
    busy = ", ".join(f"{name} {100 * value / passed_s:.0f} %" for name, value in work_s.items() if value > 0)
    memory = now["memory"]
    parts = [f"{now['running']} running", f"{now['waiting']} waiting", f"tokens {rate('answer_tokens')}"]
    parts += [f"prompts {rate('prompt_tokens')}", f"kept {rate('kept_tokens')}", busy or "idle"]
    parts += [f"memory {human_bytes(memory.get('anon_bytes', 0) + memory.get('swap_bytes', 0))}"]
    if now["temperature_celsius"] is not None:
        parts.append(f"{now['temperature_celsius']:.0f} °C")
    table = Table(title=Text(harmless(f"{now['base']}: {', '.join(parts)}")), title_justify="left")
    for name in ("adapter", "running", "waiting", "in memory"):
        table.add_column(name, justify="left" if name == "adapter" else "right")
    for one in now["adapters"]:
        held = human_bytes(one["bytes"]) if one["loaded"] else "-"
        table.add_row(Text(harmless(one["name"])), str(one["running"]), str(one["waiting"]), held)
    return table
