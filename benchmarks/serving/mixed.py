"""Thousands of mixed requests over HTTP, and whether each answer is that of the adapter that it was admitted with.

    python -m slm_edge.benchmarks.serving.mixed base.gguf --requests 10000

A pack of four random adapters and the starter's router is made on the base. Clients with three keys ask the base, the
adapters, a mix and "auto", streamed and whole; a fifth hangs up; an adapter is replaced by another file each hundred
requests. Afterwards every greedy answer is compared, token by token, with that of a session of its own which has the
very file that the answer's header names. Where they part, the two likeliest tokens must nearly tie there.
"""

import asyncio
import functools
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ...edge.gguf.base import BaseInfo
from ...edge.pack.pack import Pack
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.router.in_pack import put_router, starter_router
from ...edge.serve.keys import new_key
from ...edge.serve.running import ask as ask_admin
from ..made.random_adapter import write_random_adapter
from .alone import Alone, parts_at
from .ask import CHAT, Reply, ask
from .bounds import Bound, finish
from .mix import SENTENCE
from .process import Served, served, starter_base, threads_option

NAMES = ("math", "code", "summarize", "style")
MIX = {"math": 0.5, "code": 0.7}
LONGEST_TOKENS = 40
# Log-probabilities that differ by less are nearly tied: batches and chunks change the last bits, F16 keys and values
# the last three digits.
NEAR = 0.02
_OTHERS_END_S = 30.0
TALK = [
    {"role": "user", "content": SENTENCE * 4},
    {"role": "assistant", "content": "The light is on."},
]
PROMPTS: list[list[dict[str, str]]] = [
    *(
        [{"role": "user", "content": text}]
        for text in ("A box has 12 eggs. Tom uses 5. How many are left?", "the world")
    ),
    *([{"role": "user", "content": text}] for text in ("Write a Python function that returns the sum of a list.", "a")),
    *([{"role": "user", "content": SENTENCE * n}] for n in (2, 4, 5)),
    [{"role": "user", "content": "Summarize: " + SENTENCE * 4}],
    *([*TALK, {"role": "user", "content": text}] for text in ("And then?", "And why?")),
]


@dataclass
class Done:
    """A request with what came of it.

    Attributes:
        digest: of the header, or the one that the mix had.
        left: the client hung up.
    """

    number: int
    name: str | None
    prompt: int
    n_tokens: int
    is_greedy: bool
    left: bool
    digests: dict[str, str]
    tokens: list[bytes]
    is_whole: bool


@dataclass
class Mixed:
    """What was seen.

    Attributes:
        standing: of each name, the digests that it stood for, with when that began and ended.
        bound: number, name, digest of an answer's header, when it was asked and when it ended.
        wrong: answers under a digest that the name did not stand for while they were admitted, and the like.
    """

    standing: dict[str, list[tuple[str, float, float]]]
    done: list[Done] = field(default_factory=list)
    bound: list[tuple[int, str, str, float, float]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    n_replaced: int = 0
    wrong: list[str] = field(default_factory=list)


def make_pack(base: Path, folder: Path) -> tuple[Pack, dict[str, Path], dict[str, list[Path]]]:
    """A pack, all adapter files by their sha256, and the two files of each name."""
    info, by_name, by_digest = BaseInfo.open(base), {}, {}
    for number, name in enumerate(NAMES):
        by_name[name] = [folder / f"{name}{i}.gguf" for i in range(2)]
        for i, path in enumerate(by_name[name]):
            write_random_adapter(info, path, rank=4, seed=2 * number + i, size=1.0)
            by_digest[_digest(path)] = path
    new = [NewAdapter(name, files[0], card_changes={"task": name}) for name, files in by_name.items()]
    pack = build_pack(folder / "pack", base=base, adapters=new)
    return put_router(pack.folder, starter_router()), by_digest, by_name


class Clients:
    """What the clients of one run share."""

    def __init__(self, server: Served, by_name: dict[str, list[Path]], keys: list[str], n: int, each: int) -> None:
        self._server, self._by_name, self._keys, self._each = server, by_name, keys, each
        self._numbers = iter(range(n))
        self._turn = asyncio.Lock()
        digests = {name: _digest(files[0]) for name, files in by_name.items()}
        self.found = Mixed({name: [(digest, 0.0, float("inf"))] for name, digest in digests.items()})
        self.base = server.models[0]

    async def client(self) -> None:
        """Asks until all numbers are gone."""
        for number in self._numbers:
            if number % self._each == self._each - 1:
                async with self._turn:
                    await self._replace(number // self._each)
            await self._one(number, random.Random(number))

    async def _replace(self, turn: int) -> None:
        name = NAMES[turn % len(NAMES)]
        digest, since_s, _ = self.found.standing[name][-1]
        path = next(one for one in self._by_name[name] if _digest(one) != digest)
        body = {
            "lora_name": name,
            "lora_path": str(path),
            "load_inplace": True,
            "expected_generation": f"sha256:{digest}",
        }
        began_s = time.perf_counter()
        await asyncio.to_thread(ask_admin, self._server.admin_socket, "POST", "/v1/load_lora_adapter", body, 600.0)
        ended_s = time.perf_counter()
        self.found.standing[name][-1] = (digest, since_s, ended_s)
        self.found.standing[name].append((_digest(path), began_s, float("inf")))
        self.found.n_replaced += 1

    async def _one(self, number: int, draw: random.Random) -> None:
        model = draw.choice([*NAMES, "base", "auto", "mix"])
        prompt, n_tokens = draw.randrange(len(PROMPTS)), draw.choice([1, 8, LONGEST_TOKENS])
        body: dict[str, Any] = {
            "model": "base" if model == "mix" else model,
            "messages": PROMPTS[prompt],
            "max_tokens": n_tokens,
            "temperature": 0,
            "top_logprobs": 2,
            "logprobs": True,
            "stream": draw.random() < 0.5,
        }
        if model == "mix":
            body["adapter"] = MIX
        if is_drawn := draw.random() < 0.1:
            body |= {"temperature": 0.8, "seed": number}
        left = draw.random() < 0.2
        leaving: dict[str, Any] = {}
        if left:
            leaving = {"leave_after": draw.randint(1, 6)} if body["stream"] else {"leave_s": draw.uniform(0, 0.3)}
        began_s = time.perf_counter()
        reply = await ask(self._server.port, CHAT, body, key=draw.choice(self._keys), **leaving)
        ended_s = time.perf_counter()
        self.found.statuses[reply.status] += 1
        if reply.status != 200:
            if reply.status or not left:
                self.found.wrong.append(f"{number}: {reply.status} {reply.body[:200]!r}")
            return
        self._check(number, model, reply, began_s, ended_s)
        digests = self._digests(model, reply, began_s, ended_s)
        if digests is None:
            return
        name = reply.headers["x-slm-adapter"] if model != "mix" else "mix"
        done = Done(number, name, prompt, n_tokens, not is_drawn, left, digests, tokens_of(reply), reply.is_whole)
        self.found.done.append(done)

    def _check(self, number: int, model: str, reply: Reply, began_s: float, ended_s: float) -> None:
        digest = reply.headers.get("x-slm-adapter-digest", "").removeprefix("sha256:")
        name = reply.headers["x-slm-adapter"]
        if model in (*NAMES, "auto") and name != "base":
            self.found.bound.append((number, name, digest, began_s, ended_s))
        if model in NAMES and name != model:
            self.found.wrong.append(f"{number}: {model} was asked, {name} answered")
        if reply.is_whole and not reply.headers["content-type"].startswith("text/event"):
            said = reply.json["slm_edge"]["digest"]
            if said is not None and said != f"sha256:{digest}":
                self.found.wrong.append(f"{number}: the header has {digest[:12]}, the body {said}")

    def check_bound(self) -> None:
        """Each name stood for the digest that answered at some moment between asking and the end.

        Only once all is over: who asked may have been answered before the one who replaced a file was.
        """
        for number, name, digest, began_s, ended_s in self.found.bound:
            rows = self.found.standing[name]
            if digest not in [one for one, since_s, until_s in rows if since_s < ended_s and until_s > began_s]:
                self.found.wrong.append(f"{number}: {name} answered under {digest[:12]}, for which it did not stand")

    def _digests(self, model: str, reply: Reply, began_s: float, ended_s: float) -> dict[str, str] | None:
        """The files that answered, by name; for a mix found by its digest, which is made of those of its parts."""
        digest = reply.headers.get("x-slm-adapter-digest", "").removeprefix("sha256:")
        if model != "mix":
            name = reply.headers["x-slm-adapter"]
            return {} if name == "base" else {name: digest}
        for math in self._by_name["math"]:
            for code in self._by_name["code"]:
                both = {"math": _digest(math), "code": _digest(code)}
                rows = sorted((both[name], scale) for name, scale in MIX.items())
                text = "".join(f"{one}:{scale}\n" for one, scale in rows)
                if hashlib.sha256(text.encode()).hexdigest() == digest:
                    return both
        self.found.wrong.append(f"a mix answered under {digest[:12]}, which is none of its files")
        return None


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tokens_of(reply: Reply) -> list[bytes]:
    """The bytes of each token of an answer, as far as it came."""
    if reply.headers["content-type"].startswith("text/event"):
        documents = [event for _, event in reply.events() if isinstance(event, dict)]
    else:
        documents = [reply.json] if reply.is_whole else []
    found = []
    for document in documents:
        for choice in document.get("choices", []):
            found += [bytes(entry["bytes"]) for entry in (choice.get("logprobs") or {}).get("content") or []]
    return found


def compare(found: Mixed, base: Path, by_digest: dict[str, Path]) -> tuple[int, list[tuple[int, float]]]:
    """How many greedy answers were compared, and those that part from a session's, with the margin there."""
    alone, parted, n = Alone(base, by_digest), [], 0
    with alone:
        for done in sorted(found.done, key=lambda one: (sorted(one.digests.items()), one.prompt)):
            # Who hung up before the first token has nothing to be compared.
            if not done.is_greedy or not (done.tokens or done.is_whole):
                continue
            n += 1
            scales = MIX if done.name == "mix" else dict.fromkeys(done.digests, 1.0)
            expected = alone.tokens(done.digests, scales, PROMPTS[done.prompt], LONGEST_TOKENS)[: done.n_tokens]
            at = parts_at(done.tokens, expected, is_whole=done.is_whole and not done.left)
            if at is not None:
                parted.append((done.number, alone.margin(done.digests, scales, PROMPTS[done.prompt], at)))
    return n, parted


async def run(clients: Clients, n_clients: int, server: Served, key: str) -> dict[str, Any]:
    """All requests, and the server's state once it has nothing more to do."""
    await asyncio.gather(*(clients.client() for _ in range(n_clients)))
    end_s = time.monotonic() + _OTHERS_END_S
    while True:
        state: dict[str, Any] = (await ask(server.port, "/v1/slm/state", key=key)).json
        if not state["running"] + state["waiting"] or time.monotonic() > end_s:
            return state
        await asyncio.sleep(0.1)


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--requests", default=10_000, show_default=True)
@click.option("--replace-each", default=100, show_default=True, help="Requests between two replacements.")
@click.option("--clients", default=6, show_default=True)
@click.option("--parallel", default=4, show_default=True)
@click.option("--exact", is_flag=True, help="Run the server with --exact.")
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(
    base: Path | None,
    requests: int,
    replace_each: int,
    clients: int,
    parallel: int,
    exact: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Asks a server over BASE, the starter's by default, for a mix of answers, and compares each with a session's."""
    options = ["--max-wait", 3600, "--parallel", parallel, *(["--exact"] if exact else []), *threads_option(threads)]
    with tempfile.TemporaryDirectory(prefix="slm-edge-mixed-") as temporary:
        folder = Path(temporary)
        base = starter_base(folder) if base is None else base
        pack, by_digest, by_name = make_pack(base, folder)
        keys = [new_key(folder / "keys", name) for name in ("alice", "bob", "carol")]
        began_s = time.perf_counter()
        with served(pack.folder, *options, "--keys", folder / "keys") as server:
            asking = Clients(server, by_name, keys, requests, replace_each)
            state = asyncio.run(run(asking, clients, server, keys[0]))
            server.terminate()
            code, errors = server.wait(), server.errors()
        asked_s = time.perf_counter() - began_s
        asking.check_bound()
        found = asking.found
        n_compared, parted = compare(found, base, by_digest)
    far = [one for one in parted if one[1] >= NEAR]
    result = {
        "base": base.name,
        "requests": requests,
        "seconds": round(asked_s, 1),
        "statuses": dict(sorted(found.statuses.items())),
        "left_early": sum(done.left for done in found.done) + found.statuses[0],
        "replaced": found.n_replaced,
        "compared": n_compared,
        "parted_at_near_ties": len(parted) - len(far),
        "parted_elsewhere": far[:10],
        "wrong": found.wrong[:10],
        "state_at_the_end": {name: state[name] for name in ("running", "waiting", "answered", "cancelled", "failed")},
    }
    bounds = [
        Bound("wrong digests and statuses", len(found.wrong), most=0),
        Bound("answers off a session's, but at near ties", len(far), most=0),
        Bound("near ties of all compared", (len(parted) - len(far)) / max(n_compared, 1), most=0.1),
        Bound("answers with 5xx", sum(n for status, n in found.statuses.items() if status >= 500), most=0),
        Bound("places in use at the end", state["running"] + state["waiting"], most=0),
        Bound(
            "failed in the engine, exit code, tracebacks", state["failed"] + code + errors.count("Traceback"), most=0
        ),
    ]
    finish(json.loads(json.dumps(result)), bounds, as_json=as_json)


if __name__ == "__main__":
    main()
