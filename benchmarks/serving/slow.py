"""Slow clients that never end: does a normal one notice? With slowhttptest, as Debian has it.

    apt install slowhttptest
    python -m slm_edge.benchmarks.serving.slow my-pack --connections 200

Heads, bodies and reading, each slowly over so many connections, while one client goes on asking. Its time to the first
token is held against twice what it was before.
"""

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import time
from statistics import median
from typing import Any, Final

import click

from .ask import CHAT, ask, chat
from .bounds import Bound, finish
from .mix import SUBJECTS
from .process import Served, served, threads_option

SLOWER: Final = 2.0
# Slow heads, slow bodies, slow reading of what is long
WAYS: Final = {
    "heads": (["-H", "-i", "5"], "/v1/models"),
    "bodies": (["-B", "-i", "5", "-s", "8192", "-t", "POST"], CHAT),
    "reading": (["-X", "-w", "1", "-y", "8", "-n", "5", "-z", "1"], "/openapi.json"),
}


async def asking(server: Served, seconds: float) -> tuple[list[float], int]:
    """Seconds to the first token of each question, one after the other, and how many were not answered."""
    firsts_s, n_failed, end_s, n = list[float](), 0, time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        n += 1
        reply = await ask(server.port, CHAT, chat("base", f"Tell {n} of {SUBJECTS[n % 10]}.", 8, stream=True))
        if reply.status == 200 and reply.is_whole:
            # A letter that is not whole is no text yet.
            firsts_s.append(min(reply.first_s, reply.seconds))
        else:
            n_failed += 1
    return firsts_s, n_failed


@click.command()
@click.argument("pack", required=False)
@click.option("--connections", default=200, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of each way.")
@click.option("--threads", type=int)
@click.option("--json", "as_json", is_flag=True)
def main(pack: str | None, connections: int, seconds: float, threads: int | None, as_json: bool) -> None:
    """Holds connections to a server over PACK, the starter pack by default, open as long as it lets them."""
    program = shutil.which("slowhttptest")
    if program is None:
        raise click.ClickException("there is no slowhttptest here: apt install slowhttptest")
    found: dict[str, Any] = {}
    with served(pack, "--max-wait", 600, *threads_option(threads)) as server:
        asyncio.run(asking(server, 1.0))
        before_s, n_failed = asyncio.run(asking(server, seconds))
        worst, total_failed = 0.0, n_failed
        for way, (words, path) in WAYS.items():
            rate = ["-c", str(connections), "-r", str(connections), "-l", str(int(seconds) + 2), "-x", "24", "-p", "3"]
            with tempfile.TemporaryDirectory(prefix="slm-edge-slow-") as folder:
                process = subprocess.Popen(
                    [program, *words, *rate, "-u", f"{server.url}{path}"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=folder,
                )
                time.sleep(1.0)
                firsts_s, n_failed = asyncio.run(asking(server, seconds))
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait()
            ratio = median(firsts_s) / median(before_s) if firsts_s else float("inf")
            found[way] = {"questions": len(firsts_s), "failed": n_failed, "first_token_ratio": round(ratio, 3)}
            found[way]["longest_first_token_s"] = round(max(firsts_s, default=0.0), 3)
            worst, total_failed = max(worst, ratio), total_failed + n_failed
        server.terminate()
        code, errors = server.wait(), server.errors()
    bounds = [
        Bound("questions that failed", total_failed, most=0),
        Bound("first token, over what it was before", worst, most=SLOWER),
        Bound("exit code and tracebacks", code + errors.count("Traceback"), most=0),
    ]
    finish({"pack": pack or "starter", "connections": connections, **found}, bounds, as_json=as_json)


if __name__ == "__main__":
    main()
