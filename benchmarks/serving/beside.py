"""Our server beside llama.cpp's, on one file, with the same adapters and threads, asked by the same clients in turns.

    make peers
    python -m slm_edge.benchmarks.serving.beside base.gguf --runs 3

Tokens per second of all clients together: 1, 4 and 8 clients of one adapter with prompts of about 40 tokens and answers
of 20, new and repeated, and 4 clients on 4 adapters. Ratios are ours over theirs in the same round. Then fairness: some
clients ask one adapter for long answers without a pause, one client another for short ones, and each server says how
long that one waits for its first token; the engine's seconds are ours alone. Adapters are random; the base is real.
"""

import asyncio
import json
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ...edge.errors import EngineError
from ...edge.gguf.base import BaseInfo
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.system.machine import default_threads
from ..made.random_adapter import write_random_adapter
from ..stats import spread
from .ask import CHAT, Reply, ask, chat, right
from .bounds import Bound, finish
from .mix import SUBJECTS
from .process import served, starter_base, threads_option

CHECKOUT: Final = Path(__file__).parent.parent.parent
NAMES: Final = ("a", "b", "c", "d")
CLIENTS: Final = (1, 4, 8)
PLACES: Final = 8
_ANSWER_TOKENS: Final = 20
_CONTEXT_TOKENS: Final = 1024
_SHARES: Final = re.compile(r'^slm_edge_engine_seconds_total\{adapter="([^"]+)",work="([^"]+)"\} (\S+)$', re.MULTILINE)
JAIN, SWAPS, OURS, OURS_ADAPTERS = 0.95, 0.05, 1.0, 1.1


@dataclass(frozen=True)
class Contender:
    """A server that answers: what one asks of it for an adapter."""

    name: str
    port: int
    fields: Callable[[str], dict[str, Any]]

    async def ask(self, adapter: str, text: str, n_tokens: int, **more: Any) -> Reply:
        """One answer, as greedy as can be."""
        body = {**chat("base", text, n_tokens, temperature=0, **more), **self.fields(adapter)}
        return right(await ask(self.port, CHAT, body))


@contextmanager
def llama_server(python: Path, base: Path, files: Sequence[Path], threads: int) -> Iterator[Contender]:
    """llama.cpp's server over the same files."""
    words = [str(python), str(Path(__file__).with_name("llama_server.py")), str(base)]
    words += [word for path in files for word in ("--lora", str(path))]
    words += ["--threads", str(threads), "--context", str(_CONTEXT_TOKENS), "--parallel", str(PLACES)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise EngineError(f"llama.cpp's server did not begin: exit code {process.wait()}")
        said = json.loads(line)
        yield Contender(
            f"xllamacpp {said['version']}",
            said["port"],
            lambda adapter: {"lora": [{"id": NAMES.index(adapter), "scale": 1.0}]},
        )
        process.stdin.close()


def texts(draw: random.Random) -> str:
    """About 40 tokens, which were not said before."""
    subjects = " and ".join(draw.sample(SUBJECTS, 4))
    return f"Number {draw.randrange(10**6)}: say in your own words what {subjects} have to do with each other, and why."


async def together(contender: Contender, adapters: Sequence[str], prompts: Sequence[Sequence[str]]) -> float:
    """Tokens per second of clients, each with an adapter and prompts of its own, one after the other."""
    began_s, n_tokens = time.perf_counter(), 0

    async def client(adapter: str, own: Sequence[str]) -> None:
        nonlocal n_tokens
        for text in own:
            n_tokens += (await contender.ask(adapter, text, _ANSWER_TOKENS)).json["usage"]["completion_tokens"]

    await asyncio.gather(*(client(adapter, own) for adapter, own in zip(adapters, prompts, strict=True)))
    return n_tokens / (time.perf_counter() - began_s)


async def rounds(contenders: Sequence[Contender], runs: int, n_each: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second by case and contender, in turns."""
    draw, found = random.Random(1), dict[str, dict[str, list[float]]]()

    async def turn(case: str, asking: Callable[[Contender], Awaitable[float]], counts: bool) -> None:
        for one in contenders if draw.random() < 0.5 else contenders[::-1]:
            rate = await asking(one)
            if counts:
                found.setdefault(case, {}).setdefault(one.name, []).append(rate)

    for run in range(-1, runs):
        for n in CLIENTS:
            prompts = [[texts(draw) for _ in range(n_each)] for _ in range(n)]
            for case in ("new", "repeated"):
                await turn(f"{n} clients, {case}", partial(together, adapters=["a"] * n, prompts=prompts), run >= 0)
        prompts = [[texts(draw) for _ in range(n_each)] for _ in NAMES]
        await turn("4 adapters, new", partial(together, adapters=NAMES, prompts=prompts), run >= 0)
    return found


async def fairness(contender: Contender, n_busy: int, seconds: float) -> list[float]:
    """Seconds that a modest client waits for its first token beside busy ones of another adapter."""
    end_s, waited_s = time.perf_counter() + seconds, list[float]()

    async def loop(adapter: str, n_tokens: int, number: int) -> None:
        draw = random.Random(number)
        while time.perf_counter() < end_s:
            reply = await contender.ask(adapter, texts(draw), n_tokens, stream=True)
            if adapter == "b":
                waited_s.append(reply.first_s)

    await asyncio.gather(*(loop("a", 256, number) for number in range(n_busy)), loop("b", 16, -1))
    return waited_s


async def shares(port: int) -> dict[tuple[str, str], float]:
    """The engine's seconds by adapter and work."""
    text = (await ask(port, "/metrics")).body.decode()
    return {(adapter, work): float(seconds) for adapter, work, seconds in _SHARES.findall(text)}


def jain(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]) -> tuple[float, float]:
    """Jain's index of the two adapters' seconds, and the share of swaps in all."""
    spent = {key: value - before.get(key, 0.0) for key, value in after.items()}
    own = [sum(value for (adapter, _), value in spent.items() if adapter == name) for name in ("a", "b")]
    swaps = sum(value for (_, work), value in spent.items() if work == "swap")
    return sum(own) ** 2 / (2 * sum(one**2 for one in own)), swaps / sum(spent.values())


async def measure(
    ours: Contender, contenders: Sequence[Contender], runs: int, n_each: int, fair_s: float
) -> dict[str, Any]:
    """All of it."""
    rates = await rounds(contenders, runs, n_each)
    before = await shares(ours.port)
    waits = {ours.name: await fairness(ours, 4, fair_s)}
    index, swaps = jain(before, await shares(ours.port))
    for one in contenders:
        if one is not ours:
            waits[one.name] = await fairness(one, 4, fair_s)
    return {"rates": rates, "waits": waits, "jain": index, "swaps": swaps}


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--runs", default=3, show_default=True)
@click.option("--each", "n_each", default=2, show_default=True, help="Questions of a client in a round.")
@click.option("--fair", "fair_s", default=15.0, show_default=True, help="Seconds of fairness, for each server.")
@click.option("--rank", default=16, show_default=True, help="Of the adapters.")
@click.option("--threads", type=int)
@click.option("--alone", is_flag=True, help="Without llama.cpp's server.")
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    default=CHECKOUT / ".venv-peers" / "bin" / "python",
    help="The one with xllamacpp.",
)
@click.option("--json", "as_json", is_flag=True)
def main(
    base: Path | None,
    runs: int,
    n_each: int,
    fair_s: float,
    rank: int,
    threads: int | None,
    alone: bool,
    python: Path,
    as_json: bool,
) -> None:
    """Measures servers over BASE, the starter's by default."""
    if not (alone or python.exists()):
        raise click.ClickException(f"there is no {python}: make peers; --alone does without")
    options = ["--parallel", PLACES, "-c", _CONTEXT_TOKENS, "--max-wait", 3600, *threads_option(threads)]
    with tempfile.TemporaryDirectory(prefix="slm-edge-beside-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        base = starter_base(folder) if base is None else base
        info = BaseInfo.open(base)
        files = [folder / f"{name}.gguf" for name in NAMES]
        for number, path in enumerate(files):
            write_random_adapter(info, path, rank=rank, seed=number)
        new = [NewAdapter(name, path) for name, path in zip(NAMES, files, strict=True)]
        pack = build_pack(folder / "pack", base=base, adapters=new)
        server = stack.enter_context(served(pack.folder, *options))
        ours = Contender("slm-edge", server.port, lambda adapter: {"model": adapter})
        contenders = [ours]
        if not alone:
            contenders.append(stack.enter_context(llama_server(python, base, files, threads or default_threads())))
        found = asyncio.run(measure(ours, contenders, runs, n_each, fair_s))
    _finish(base, ours, contenders, found, as_json=as_json)


def _finish(
    base: Path, ours: Contender, contenders: Sequence[Contender], found: dict[str, Any], *, as_json: bool
) -> None:
    rates = found["rates"]
    waits = {name: _milliseconds(waited_s) for name, waited_s in found["waits"].items()}
    result: dict[str, Any] = {
        "base": base.name,
        "tokens_per_s": {case: {name: spread(values) for name, values in row.items()} for case, row in rates.items()},
        "modest_first_token_ms": waits,
        "jain": round(found["jain"], 4),
        "swaps": round(found["swaps"], 4),
    }
    bounds = [
        Bound("Jain's index of engine seconds", found["jain"], least=JAIN),
        Bound("share of swaps", found["swaps"], most=SWAPS),
    ]
    for other in contenders[1:]:
        ratios = {
            case: spread([mine / its for mine, its in zip(row[ours.name], row[other.name], strict=True)])
            for case, row in rates.items()
        }
        result["ratios"] = ratios
        bounds += [
            Bound(f"{case}, over theirs", ratio["median"], least=OURS_ADAPTERS if "adapters" in case else OURS)
            for case, ratio in ratios.items()
        ]
        bounds.append(
            Bound("modest client's p95 over theirs", waits[ours.name]["p95"] / waits[other.name]["p95"], most=1.0)
        )
    finish(result, bounds, as_json=as_json)


def _milliseconds(waited_s: Sequence[float]) -> dict[str, float]:
    found = np.percentile(np.array(waited_s) * 1000, [50, 95, 100])
    return {name: round(float(value), 1) for name, value in zip(("p50", "p95", "most"), found, strict=True)}


if __name__ == "__main__":
    main()
