"""Does a server that runs for long grow? Clients do all that clients do, and its memory is read each minute.

    python -m slm_edge.benchmarks.serving.soak my-pack --minutes 60

Grown is RssAnon + VmSwap from a sixth of the time on (ten minutes of an hour), when every cache has been filled once:
the median of the last tenth over the median of as many readings there. What the server keeps of prompts is planned for
and fills slowly with a small model, so it is subtracted. Adapters come and go meanwhile.
"""

import asyncio
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import click

from ...edge.pack.pack import Pack
from ...edge.serve.running import ask as ask_admin
from .ask import ask
from .bounds import Bound, finish
from .mix import Client
from .process import Served, served, threads_option

GROWTH: Final = 1.02
_MOST_SAID: Final = 10
_PREFIXES: Final = re.compile(r"^slm_edge_prefix_bytes (\S+)$", re.MULTILINE)


@dataclass
class Soak:
    """What was seen.

    Attributes:
        rows: a reading of the server each interval.
        counts: requests by kind and status.
        faults: answers that were not right, the first few in words.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    n_replaced: int = 0
    n_faults: int = 0
    faults: list[str] = field(default_factory=list)

    def wrong(self, what: str) -> None:
        self.n_faults += 1
        if len(self.faults) < _MOST_SAID:
            self.faults.append(what)

    def growth(self, name: str) -> float:
        """The end over what it was after a sixth."""
        values = [row[name] for row in self.rows]
        n = max(1, len(values) // 10)
        first = len(values) // 6
        return median(values[-n:]) / median(values[first : first + n])


async def soak(server: Served, files: list[Path], seconds: float, n_clients: int, every_s: float) -> Soak:
    """Runs clients for so long.

    Args:
        files: adapters, one of which is added and taken away again and again.
        every_s: between two readings, and between two changes of an adapter.
    """
    found, end_s = Soak(), time.monotonic() + seconds
    models = [name for name in server.models if name != "auto"] + [name for name in server.models if name == "auto"]

    async def client(number: int) -> None:
        one = Client(server.port, models, random.Random(number))
        while time.monotonic() < end_s:
            kind, reply, statuses = await one.step()
            found.counts[f"{kind} {reply.status}"] += 1
            # A busy machine may make it refuse; that is a right answer too, and tried again later.
            if reply.status not in (*statuses, 429, 503):
                found.wrong(f"{kind}: {reply.status} {reply.body[:300]!r}")
            elif reply.status in (429, 503):
                await asyncio.sleep(1)

    async def change() -> None:
        n = 0
        while files and time.monotonic() < end_s - every_s:
            body = {"lora_name": "coming-and-going", "lora_path": str(files[n % len(files)].resolve())}
            await _admin(server, "/v1/load_lora_adapter", body)
            await ask(server.port, "/v1/models")
            await asyncio.sleep(every_s / 2)
            await _admin(server, "/v1/unload_lora_adapter", {"lora_name": "coming-and-going"})
            n = found.n_replaced = n + 1
            await asyncio.sleep(every_s / 2)

    async def read() -> None:
        began_s = time.monotonic()
        while time.monotonic() < end_s:
            await asyncio.sleep(min(every_s, max(0.0, end_s - time.monotonic())))
            found.rows.append(await _reading(server, time.monotonic() - began_s, found))
            click.echo(" ".join(f"{name}={value:g}" for name, value in found.rows[-1].items()), err=True)

    await asyncio.gather(change(), read(), *(client(number) for number in range(n_clients)))
    return found


async def _admin(server: Served, path: str, body: dict[str, Any]) -> None:
    await asyncio.to_thread(ask_admin, server.admin_socket, "POST", path, body, 600.0)


async def _reading(server: Served, at_s: float, found: Soak) -> dict[str, float]:
    numbers = (await ask(server.port, "/metrics")).body.decode()
    kept = _PREFIXES.search(numbers)
    anon_bytes, kept_bytes = server.anon_bytes(), int(float(kept[1])) if kept else 0
    return {
        "seconds": round(at_s),
        "anon_bytes": anon_bytes,
        "kept_prefix_bytes": kept_bytes,
        "other_bytes": anon_bytes - kept_bytes,
        "descriptors": server.n_descriptors(),
        "threads": server.n_threads(),
        "requests": found.counts.total(),
    }


@click.command()
@click.argument("pack", required=False)
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--clients", default=4, show_default=True)
@click.option("--every", "every_s", default=60.0, show_default=True, help="Seconds between two readings.")
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(pack: str | None, minutes: float, clients: int, every_s: float, threads: int | None, as_json: bool) -> None:
    """Runs a server over PACK, the starter pack by default, among clients of every kind; reads its memory."""
    files = [one.path for one in Pack.open(pack).adapters.values()]
    with served(pack, "--max-wait", 600, *threads_option(threads)) as server:
        found = asyncio.run(soak(server, files, 60 * minutes, clients, every_s))
        last = asyncio.run(ask(server.port, "/v1/slm/state")).json
        server.terminate()
        code, errors = server.wait(), server.errors()
    result = {
        "pack": pack or "starter",
        "minutes": minutes,
        "requests": found.counts.total(),
        "by_kind": dict(sorted(found.counts.items())),
        "adapter_changes": found.n_replaced,
        "readings": found.rows,
        "state_at_the_end": {name: last[name] for name in ("running", "waiting", "failed", "answered", "cancelled")},
        "exit_code": code,
        "faults": found.faults,
    }
    bounds = [
        Bound("memory, the end over a sixth", found.growth("other_bytes"), most=GROWTH),
        Bound("descriptors, more than at a sixth", _more(found, "descriptors"), most=clients + 2),
        Bound("threads, more than at a sixth", _more(found, "threads"), most=2),
        Bound("wrong answers", found.n_faults, most=0),
        Bound("failed in the engine", last["failed"], most=0),
        Bound("exit code and tracebacks", code + errors.count("Traceback"), most=0),
    ]
    finish(result, bounds, as_json=as_json)


def _more(found: Soak, name: str) -> float:
    values = [row[name] for row in found.rows]
    return median(values[-max(1, len(values) // 10) :]) - values[len(values) // 6]


if __name__ == "__main__":
    main()
