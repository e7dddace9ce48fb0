"""SIGTERM in the middle of streams: is one of them cut within the grace?

    python -m slm_edge.benchmarks.serving.drain my-pack --streams 8

All streams have begun when the signal comes. Each must end with a reason and `[DONE]`, who asks meanwhile is told 503,
and the server ends with 0.
"""

import asyncio

import click

from .ask import CHAT, Reply, ask, chat
from .bounds import Bound, finish
from .mix import SUBJECTS
from .process import Served, served, threads_option


async def drained(server: Served, n_streams: int, n_tokens: int) -> tuple[list[Reply], Reply]:
    """The streams, and what one was told who asked after the signal."""
    streams = [
        asyncio.ensure_future(
            ask(server.port, CHAT, chat("base", f"A long story about {SUBJECTS[i % 10]} {i}.", n_tokens, stream=True))
        )
        for i in range(n_streams)
    ]
    while (await ask(server.port, "/v1/slm/state")).json["running"] < n_streams:
        if all(one.done() for one in streams):
            break
        await asyncio.sleep(0.02)
    server.terminate()
    await asyncio.sleep(0.1)
    late = await ask(server.port, CHAT, chat("base", "Hello", 4))
    return list(await asyncio.gather(*streams)), late


def is_cut(reply: Reply) -> bool:
    """Whether a stream did not come to its own end."""
    events = [event for _, event in reply.events()]
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1] if event.get("choices")]
    return not reply.is_whole or events[-1:] != ["[DONE]"] or not reasons or reasons[-1] not in ("stop", "length")


@click.command()
@click.argument("pack", required=False)
@click.option("--streams", default=8, show_default=True)
@click.option("--tokens", default=200, show_default=True)
@click.option("--drain", "drain_s", default=60.0, show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(pack: str | None, streams: int, tokens: int, drain_s: float, threads: int | None, as_json: bool) -> None:
    """Ends a server over PACK, the starter pack by default, while it answers."""
    with served(pack, "--parallel", streams, "--drain", drain_s, *threads_option(threads)) as server:
        replies, late = asyncio.run(drained(server, streams, tokens))
        code, errors = server.wait(), server.errors()
    result = {
        "pack": pack or "starter",
        "streams": streams,
        "pieces": [len(reply.pieces()) for reply in replies],
        "asked_after_the_signal": [late.status, late.code],
    }
    bounds = [
        Bound("streams that were cut", sum(map(is_cut, replies)), most=0),
        # 0: it had ended already.
        Bound("answers to whoever asked after the signal", late.status not in (0, 503), most=0),
        Bound("exit code and tracebacks", code + errors.count("Traceback"), most=0),
    ]
    finish(result, bounds, as_json=as_json)


if __name__ == "__main__":
    main()
