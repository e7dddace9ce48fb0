"""What a server does when far more is asked than it can do: it refuses, and gets on with what it took.

    python -m slm_edge.benchmarks.serving.overload my-pack --factor 50 --seconds 60

First its capacity, by as many clients as it has places, each with a question after the other. Then requests come at so
many times that rate, whatever becomes of them. Goodput are the tokens of whole answers, per second, over those of the
capacity. Refused means 429 or 503 with the time to come back.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import click
import numpy as np

from ...edge.errors import EngineError
from .ask import CHAT, Reply, ask, chat
from .bounds import Bound, finish
from .mix import SUBJECTS
from .process import served, threads_option

GOODPUT = 0.95
RIGHT = (200, 429, 503)
_LONGEST_WAIT_S = 60


@dataclass
class Load:
    """What came back.

    Attributes:
        statuses: how many of each; 0: the connection was lost.
        n_tokens: of whole answers that ended within the time.
        n_answers: of those.
        waits_s: of refusals: when to come back.
        seconds: of answers, from asking to the end.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    n_tokens: int = 0
    n_answers: int = 0
    waits_s: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, reply: Reply, in_time: bool) -> None:
        self.statuses[reply.status] += 1
        if reply.status == 200 and reply.is_whole:
            self.seconds.append(reply.seconds)
            if in_time:
                self.n_answers += 1
                self.n_tokens += reply.json["usage"]["completion_tokens"]
        elif reply.status in (429, 503):
            self.waits_s.append(int(reply.headers.get("retry-after", 0)))


def question(model: str, n_tokens: int, draw: random.Random) -> dict[str, object]:
    """A question that was not asked before."""
    text = f"Tell me all about {draw.choice(SUBJECTS)}, chapter {draw.randrange(10**9)}."
    return chat(model, text, n_tokens, temperature=1.0, seed=draw.randrange(1 << 30))


async def capacity(port: int, model: str, n_tokens: int, n_clients: int, seconds: float) -> Load:
    """What so many clients get, one question after the other."""
    found, end_s = Load(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < end_s:
            reply = await ask(port, CHAT, question(model, n_tokens, draw))
            found.add(reply, in_time=time.perf_counter() < end_s)

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return found


async def overload(port: int, model: str, n_tokens: int, rate_per_s: float, seconds: float) -> Load:
    """What becomes of requests that come at a rate, for so long."""
    found, draw, began_s = Load(), random.Random(-1), time.perf_counter()
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        reply = await ask(port, CHAT, question(model, n_tokens, draw))
        found.add(reply, in_time=time.perf_counter() - began_s < seconds)

    n = 0
    while (passed_s := time.perf_counter() - began_s) < seconds:
        for _ in range(int(passed_s * rate_per_s) - n):
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
            n += 1
        await asyncio.sleep(min(0.01, 1 / rate_per_s))
    await asyncio.gather(*running)
    return found


@click.command()
@click.argument("pack", required=False)
@click.option("--model", default="base", show_default=True)
@click.option("--factor", default=50.0, show_default=True, help="Requests asked, as a multiple of the capacity.")
@click.option("--seconds", default=60.0, show_default=True, help="Of overload; the capacity takes a third of it.")
@click.option("--tokens", default=64, show_default=True, help="Of an answer.")
@click.option("--parallel", default=4, show_default=True)
@click.option("--max-wait", "max_wait_s", default=10.0, show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(
    pack: str | None,
    model: str,
    factor: float,
    seconds: float,
    tokens: int,
    parallel: int,
    max_wait_s: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Asks a server over PACK, the starter pack by default, for far more than it can do."""
    options = ["--parallel", parallel, "--max-wait", max_wait_s, *threads_option(threads)]
    with served(pack, *options) as server:
        asyncio.run(capacity(server.port, model, tokens, parallel, seconds / 12))
        able_s = seconds / 3
        able = asyncio.run(capacity(server.port, model, tokens, parallel, able_s))
        if not able.n_tokens:
            raise EngineError(f"no answer ended within {able_s:g} s", hint="--seconds takes longer, --tokens asks less")
        rate_per_s = factor * max(able.n_answers, 1) / able_s
        found = asyncio.run(overload(server.port, model, tokens, rate_per_s, seconds))
        after = asyncio.run(ask(server.port, CHAT, chat(model, "Hello", 4)))
        server.terminate()
        code, errors = server.wait(), server.errors()
    goodput = (found.n_tokens / seconds) / (able.n_tokens / able_s)
    result = {
        "pack": pack or "starter",
        "capacity_tokens_per_s": round(able.n_tokens / able_s, 2),
        "asked_per_s": round(rate_per_s, 2),
        "statuses": dict(sorted(found.statuses.items())),
        "answer_seconds": _percentiles(found.seconds),
        "told_to_wait_seconds": _percentiles(found.waits_s),
    }
    wrong = sum(n for status, n in found.statuses.items() if status not in RIGHT)
    bounds = [
        Bound("goodput over capacity", goodput, least=GOODPUT),
        Bound("statuses other than 200, 429, 503", wrong, most=0),
        Bound("least time to come back, in seconds", min(found.waits_s, default=1), least=1),
        Bound("longest time to come back, in seconds", max(found.waits_s, default=1), most=_LONGEST_WAIT_S),
        Bound(
            "no answer afterwards, exit code, tracebacks",
            (after.status != 200) + code + errors.count("Traceback"),
            most=0,
        ),
    ]
    finish(result, bounds, as_json=as_json)


def _percentiles(values: list[float] | list[int]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(np.array(values, float), [50, 99, 100])
    return {name: round(float(value), 3) for name, value in zip(("p50", "p99", "most"), found, strict=True)}


if __name__ == "__main__":
    main()
