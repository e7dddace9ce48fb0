"""litellm's proxy before two servers, the less busy one asked first; one is killed meanwhile: does a request fail?"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...edge.errors import EngineError
from ..serving.ask import CHAT, Reply, ask, chat
from ..serving.process import Served, served

_START_S: Final = 180.0
_CLIENTS: Final = 4
# litellm reads YAML, and JSON is YAML.
_SETTINGS: Final = {
    "router_settings": {
        "routing_strategy": "least-busy",
        "num_retries": 3,
        "allowed_fails": 1,
        "cooldown_time": 60,
        "retry_after": 0,
    },
    "general_settings": {"master_key": "sk-proof"},
    "litellm_settings": {"request_timeout": 120},
}


@contextlib.contextmanager
def proxied(litellm: Path, servers: list[Served], model: str) -> Iterator[int]:
    """The port of a proxy before these servers.

    Args:
        litellm: its program.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = [
        {
            "model_name": model,
            "litellm_params": {"model": f"openai/{model}", "api_base": f"{one.url}/v1", "api_key": "none"},
        }
        for one in servers
    ]
    with tempfile.TemporaryDirectory(prefix="slm-edge-proxy-") as temporary:
        config, log = Path(temporary) / "config.yaml", Path(temporary) / "log"
        config.write_text(json.dumps({**_SETTINGS, "model_list": models}), encoding="utf-8")
        words = [str(litellm), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*words, "--num_workers", "1", "--telemetry", "False"],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"},
            )
        try:
            _wait(port, process, log)
            yield port
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and process.poll() is None:
        if asyncio.run(ask(port, "/health/liveliness")).status == 200:
            return
        time.sleep(0.5)
    raise EngineError(f"litellm's proxy did not begin: {log.read_text()[-1500:]}")


async def _through(port: int, model: str, n: int, kill: Served) -> list[Reply]:
    numbers, replies = iter(range(n)), []

    async def client() -> None:
        for number in numbers:
            if number == n // 2:
                kill.process.kill()
            body = chat(model, f"Tell me about river {number}.", 8)
            replies.append(await ask(port, CHAT, body, key="sk-proof"))

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return replies


def kill_one(litellm: Path, pack: str | Path | None, model: str, n: int, options: list[object]) -> dict[str, Any]:
    """What came of so many requests through a proxy, one of whose two servers is killed half way."""
    with served(pack, *options) as first, served(pack, *options) as second:
        with proxied(litellm, [first, second], model) as port:
            replies = asyncio.run(_through(port, model, n, kill=second))
        counts = Counter(reply.status for reply in replies)
        n_left = _answered(first)
    failed = [reply.body[:300].decode(errors="replace") for reply in replies if reply.status != 200]
    return {
        "requests": n,
        "statuses": dict(sorted(counts.items())),
        "answered_by_the_one_left": n_left,
        "failed": failed[:5],
        "n_failed": len(failed),
    }


def _answered(server: Served) -> int:
    return int(asyncio.run(ask(server.port, "/v1/slm/state")).json["answered"])
