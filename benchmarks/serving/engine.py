"""What an engine promises its callers, measured on a pack: fair shares, quick cancels, a cheap second turn, no loss.

    python -m slm_edge.benchmarks.serving.engine my-pack --seconds 120

- `decode`: tokens per second of one answer through the engine over those of `Session.stream`, in turns.
- `fairness`: some clients ask one adapter for long answers without a pause, one client another adapter for short ones.
  Its time to the first token is held against twice a slice, or chunk if that is longer, and its own prompt; Jain's
  index is that of the seconds that the engine spent on each adapter, and `swaps` the share of changing them.
- `cancel`: from `Ticket.cancel` to the end of the computation, in the middle of answers and of prompts.
- `second_turn`: the first token of a conversation's second turn over that of the first one.

Prints one JSON document.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np

from ...edge.answer.base import SessionBase
from ...edge.engines import open_session
from ...edge.errors import EngineError, InputError
from ...edge.gguf.chat_template import Message
from ...edge.scheduler.engine import Engine
from ...edge.scheduler.flows import SLICE_STEPS, SLICE_SWAPS
from ...edge.scheduler.ticket import Ticket
from ..stats import spread
from .mix import SENTENCE, SUBJECTS

# Answers that do not end by themselves, so that they are as long as was asked for
ENDLESS = 'root ::= ("a" | "b")+'


def percentiles(values_s: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    found = np.percentile(np.array(values_s) * 1000, [50, 95, 99, 100])
    return {name: round(float(value), 2) for name, value in zip(("p50", "p95", "p99", "most"), found, strict=True)}


def decode(engine: Engine, session: SessionBase[Any], adapter: str, runs: int) -> dict[str, Any]:
    """Tokens per second through the engine over those of a session, in turns."""
    ratios = []
    for run in range(runs):
        prompt = f"Tell me about {SUBJECTS[run % len(SUBJECTS)]}."
        pair = [
            session.ask(prompt, adapter=adapter, max_tokens=100, grammar=ENDLESS),
            engine.submit(prompt, adapter, max_tokens=100, grammar=ENDLESS).result(),
        ]
        speeds = [answer.decode_tokens_per_s or 0.0 for answer in pair]
        ratios.append(speeds[1] / speeds[0])
    return {"ratio": spread(ratios)}


def looping(engine: Engine, adapter: str, n_tokens: int, until: Callable[[], bool], firsts_s: list[float]) -> None:
    """Asks again and again; how long each first token took."""
    n_asked = 0
    while not until():
        n_asked += 1
        prompt = f"Tell me about {random.choice(SUBJECTS)}, chapter {n_asked}."
        start_s = time.perf_counter()
        key = threading.current_thread().name
        ticket = engine.submit(prompt, adapter, max_tokens=n_tokens, key=key, grammar=ENDLESS)
        pieces = ticket.read()
        next(pieces, None)
        firsts_s.append(time.perf_counter() - start_s)
        for _ in pieces:
            pass


def fairness(engine: Engine, busy: str, modest: str, clients: int, seconds: float) -> dict[str, Any]:
    """Some clients without a pause on one adapter, one with short questions on another."""
    # Both are loaded, and known to be about so fast
    for name in (busy, modest):
        engine.submit("Hello", name, max_tokens=16).result()
    before = engine.stats()
    end_s = time.perf_counter() + seconds
    firsts_s: dict[str, list[float]] = {busy: [], modest: []}
    asked = [(busy, 256)] * clients + [(modest, 16)]
    threads = [
        threading.Thread(
            target=looping,
            args=(engine, name, n, lambda: time.perf_counter() > end_s, firsts_s[name]),
            name="busy" if name == busy else "modest",
        )
        for name, n in asked
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = engine.stats()
    work = {key: after.work_s.get(key, 0.0) - before.work_s.get(key, 0.0) for key in after.work_s}
    shares = [sum(spent for (_, name), spent in work.items() if name == adapter) for adapter in (busy, modest)]
    pace = engine.pace()
    slice_s = max(SLICE_STEPS * pace.step_s(clients), SLICE_SWAPS * pace.swap_s)
    own_s = pace.chunk_s(engine.count("Tell me about gardens, chapter 10.", modest))
    bound_s = 2 * max(slice_s, pace.chunk_s()) + own_s
    p95_s = float(np.percentile(firsts_s[modest], 95))
    return {
        "modest_first_token_ms": percentiles(firsts_s[modest]),
        "busy_first_token_ms": percentiles(firsts_s[busy]),
        "modest_p95_over_bound": round(p95_s / bound_s, 3),
        "slice_ms": round(slice_s * 1000, 2),
        "chunk_ms": round(pace.chunk_s() * 1000, 2),
        "jain": round(sum(shares) ** 2 / (2 * sum(share**2 for share in shares)), 4),
        "swaps": round(sum(spent for (kind, _), spent in work.items() if kind == "swap") / sum(work.values()), 4),
        "n_swaps": after.n_swaps - before.n_swaps,
        "n_parked": after.n_parked - before.n_parked,
    }


def ended_s(ticket: Ticket) -> float:
    """Seconds from cancelling to the end of the request."""
    start_s = time.perf_counter()
    ticket.cancel()
    with contextlib.suppress(EngineError):
        ticket.result()
    return time.perf_counter() - start_s


def cancel(engine: Engine, adapter: str, runs: int) -> dict[str, Any]:
    """From `Ticket.cancel` to the end of the computation."""
    rng = random.Random(1)
    steps_s, prompts_s = [], []
    for run in range(runs):
        ticket = engine.submit(f"Tell me about {SUBJECTS[run % 10]}.", adapter, max_tokens=500)
        pieces = ticket.read()
        for _ in range(rng.randint(1, 10)):
            next(pieces, None)
        if not ticket.done:
            steps_s.append(ended_s(ticket))
        n_times = engine.facts().n_ctx_tokens // 30
        ticket = engine.submit(f"{run} " + SENTENCE * n_times, adapter, max_tokens=5)
        time.sleep(rng.uniform(0.01, engine.pace().token_s * ticket.n_prompt_tokens * 0.8))
        if not ticket.pieces and not ticket.done:
            prompts_s.append(ended_s(ticket))
    return {
        "answer_ms": percentiles(steps_s),
        "prompt_ms": percentiles(prompts_s),
        "step_ms": round(engine.pace().step_s(1) * 1000, 2),
        "n": [len(steps_s), len(prompts_s)],
    }


def second_turn(engine: Engine, adapter: str, n_tokens: int, runs: int) -> dict[str, Any]:
    """The first token of a conversation's second turn over that of the first one, which is of about so many tokens."""
    ratios, kept = [], []
    per_sentence = engine.count(SENTENCE * 2, adapter) - engine.count(SENTENCE, adapter)
    for run in range(runs):
        first: list[Message] = [{"role": "user", "content": f"{run} " + SENTENCE * (n_tokens // per_sentence)}]
        answer = engine.submit(first, adapter, max_tokens=30).result()
        turn: list[Message] = [
            *first,
            {"role": "assistant", "content": answer.text},
            {"role": "user", "content": "And then?"},
        ]
        then = engine.submit(turn, adapter, max_tokens=5).result()
        ratios.append(then.first_token_s / answer.first_token_s)
        kept.append(then.n_kept_tokens / then.n_prompt_tokens)
    return {"first_token_ratio": spread(ratios), "kept": spread(kept)}


@click.command()
@click.argument("pack", required=False)
@click.option("--adapters", help="Two names, busy,modest; by default the first two of the pack.")
@click.option("--engine", "engine_name", default="llama", show_default=True)
@click.option("--clients", default=4, show_default=True, help="Busy ones.")
@click.option("--parallel", default=4, show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Of the fairness part.")
@click.option("--runs", default=20, show_default=True, help="Of the other parts.")
@click.option("--turn-tokens", default=1500, show_default=True)
@click.option("--reuse", type=click.Choice(["fast", "exact"]), default="fast", show_default=True)
@click.option("--threads", type=int)
def main(
    pack: str | None,
    adapters: str | None,
    engine_name: str,
    clients: int,
    parallel: int,
    seconds: float,
    runs: int,
    turn_tokens: int,
    reuse: Any,
    threads: int | None,
) -> None:
    """Measures an engine over PACK, the starter pack by default."""
    with (
        Engine.open(
            pack, engine=engine_name, parallel=parallel, max_wait_s=3600, reuse=reuse, threads=threads
        ) as engine,
        open_session(pack, engine_name, threads=threads) as session,
    ):
        names = adapters.split(",") if adapters else list(engine.adapters)
        if len(names) < 2:
            raise InputError("two adapters are needed", hint="--adapters math,code")
        busy, modest = names[:2]
        result = {
            "pack": pack or "starter",
            "adapters": [busy, modest],
            "decode": decode(engine, session, busy, runs),
            "fairness": fairness(engine, busy, modest, clients, seconds),
            "cancel": cancel(engine, busy, runs),
            "second_turn": second_turn(engine, busy, turn_tokens, max(2, runs // 5)),
        }
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
