"""What HTTP costs: decode and time to the first token beside `Session.stream`, an idle server's CPU, and its memory.

    python -m slm_edge.benchmarks.serving.overhead my-pack --runs 10

Each round asks a session in this process and the server for a new prompt of one length, in turns, the first of them
changing; both have answered once before. `chat`'s memory is that of `slm-edge chat` after one answer, beside a server
with `--parallel 1`.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from ...edge.answer.base import SessionBase
from ...edge.engines import open_session
from ...edge.errors import EngineError
from ..stats import spread
from .ask import CHAT, ask_by_thread, chat, right
from .bounds import Bound, finish
from .mix import SENTENCE, SUBJECTS
from .process import Served, anon_bytes_of, cpu_s_of, served, threads_option

DECODE, ADDED_MS, IDLE, MORE_BYTES = 0.97, 10.0, 0.005, 15 << 20
_QUIET_S = 3.0
_CHAT_S = 180.0


def prompts(n_sentences: int) -> Iterator[str]:
    """Texts of about one length, none of which begins as another."""
    for number in range(10**6):
        subject = SUBJECTS[number % len(SUBJECTS)]
        yield f"{number:04d} {subject}. {SENTENCE * n_sentences}Write a very long story about it."


def by_session(session: SessionBase[Any], adapter: str | None, text: str, n_tokens: int) -> tuple[float, float]:
    """Seconds to the first piece, and tokens per second after it."""
    began_s, first_s, last_s = time.perf_counter(), 0.0, 0.0
    stream = session.stream(text, adapter=adapter, max_tokens=n_tokens)
    for _ in stream:
        last_s = time.perf_counter() - began_s
        first_s = first_s or last_s
    return first_s, _rate(stream.answer.n_tokens, last_s - first_s)


def by_http(server: Served, model: str, text: str, n_tokens: int) -> tuple[float, float]:
    """The same through the server."""
    body = chat(model, text, n_tokens, stream=True, stream_options={"include_usage": True})
    reply = right(ask_by_thread(server.port, CHAT, body))
    pieces = reply.pieces()
    usage = next(
        event["usage"] for _, event in reversed(reply.events()) if isinstance(event, dict) and event.get("usage")
    )
    # Of a tiny model all may come at once.
    return pieces[0][0], _rate(usage["completion_tokens"], pieces[-1][0] - pieces[0][0] or reply.seconds)


def _rate(n_tokens: int, seconds: float) -> float:
    if n_tokens < 2 or seconds <= 0:
        raise EngineError("an answer ended at once", hint="another --model")
    return (n_tokens - 1) / seconds


def idle_share(server: Served, seconds: float) -> float:
    """The share of a core that the server takes while nobody asks."""
    time.sleep(_QUIET_S)
    before_s, began_s = server.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    return (server.cpu_s() - before_s) / (time.perf_counter() - began_s)


def chat_bytes(pack: str | None, adapter: str | None, text: str, n_tokens: int, options: list[Any]) -> int:
    """What `slm-edge chat` holds once it has answered."""
    words = [sys.executable, "-m", "slm_edge.edge", "chat", "--max-tokens", n_tokens, *options]
    words += ([] if pack is None else ["--pack", pack]) + ([] if adapter is None else ["--adapter", adapter])
    with subprocess.Popen(
        list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(text.encode() + b"\n")
        process.stdin.flush()
        # It has answered when it has spoken and then waits for the next line.
        process.stdout.read(1)
        end_s, busy_s = time.monotonic() + _CHAT_S, -1.0
        while time.monotonic() < end_s and busy_s != (busy_s := cpu_s_of(process.pid)):
            time.sleep(1.0)
        found = anon_bytes_of(process.pid)
        process.kill()
    return found


@click.command()
@click.argument("pack", required=False)
@click.option("--model", help='"base" or an adapter; the first adapter by default.')
@click.option("--runs", default=10, show_default=True)
@click.option("--tokens", default=100, show_default=True)
@click.option("--sentences", default=2, show_default=True, help="Of each prompt, of about 20 tokens.")
@click.option("--idle", "idle_s", default=10.0, show_default=True, help="Seconds that its CPU is watched.")
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(
    pack: str | None,
    model: str | None,
    runs: int,
    tokens: int,
    sentences: int,
    idle_s: float,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measures a server over PACK, the starter pack by default, beside a session and `chat`."""
    options = threads_option(threads)
    texts = prompts(sentences)
    with served(pack, "--parallel", 1, *options) as server, open_session(pack, "llama", threads=threads) as session:
        asked = model or (server.adapters or ["base"])[0]
        adapter = None if asked == "base" else asked
        found: dict[str, list[tuple[float, float]]] = {"session": [], "http": []}
        for run in range(-1, runs):
            for way in ("session", "http") if run % 2 else ("http", "session"):
                text = next(texts)
                one = (
                    by_session(session, adapter, text, tokens)
                    if way == "session"
                    else by_http(server, asked, text, tokens)
                )
                if run >= 0:
                    found[way].append(one)
        idle = idle_share(server, idle_s)
        n_bytes = server.anon_bytes()
    chats = chat_bytes(pack, adapter, next(texts), tokens, options)
    pairs = list(zip(found["session"], found["http"], strict=True))
    decode = spread([http[1] / alone[1] for alone, http in pairs])
    added = spread([1000 * (http[0] - alone[0]) for alone, http in pairs])
    result = {
        "pack": pack or "starter",
        "model": asked,
        "decode_ratio": decode,
        "added_first_token_ms": added,
        "idle_share_of_a_core": round(idle, 5),
        "server_bytes": n_bytes,
        "chat_bytes": chats,
    }
    bounds = [
        Bound("decode over a session's", decode["median"], least=DECODE),
        Bound("added to the first token, ms", added["median"], most=ADDED_MS),
        Bound("idle CPU, of a core", idle, most=IDLE),
        Bound("memory more than chat's, MiB", (n_bytes - chats) / (1 << 20), most=MORE_BYTES / (1 << 20)),
    ]
    finish(result, bounds, as_json=as_json)


if __name__ == "__main__":
    main()
