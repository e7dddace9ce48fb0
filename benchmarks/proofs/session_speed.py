"""Our session against llama.cpp's own tools on the same file, in turns, and what our Python costs for each token.

    python -m slm_edge.benchmarks.proofs.session_speed base.gguf --llama-bench PATH --llama-cli PATH --threads 2

Prefill: 512 random tokens to the first chosen one, through the session (its chunks, its books), against llama-bench's
pp512. Decode: 128 tokens through a whole answer (sampling, text, stops), against tg128, which samples nothing. A ratio
is the tool's seconds over ours in one round, so 0.98 is 2 % slower; the bound holds for the median, and the mean has a
95 % interval: one round's ratio varies by 5 to 10 %, so a dozen tell no more than some percent. With `--control` the
tool runs twice in each round: ours is compared with the mean of both, and the tool with itself, which says how small a
difference this machine can show. In each round
`llama-bench` starts anew (`-r 1`, after its own warm-up), and so does a process with a session, warmed up too: where
the system puts their buffers moves either by some percent, and a second session of a process gets worse places. On
Linux the tool runs over the very libraries of this Python's llama-cpp-python, if it was built from the same llama.cpp:
two builds of one source differ by some percent too. `--own-libraries` leaves
it those that it was built with.

What is not the model: microseconds of a prompt that are not spent in `llama_decode`, and those between one token's and
the next one's, in real answers, with their shares of the time. Choosing the token is in it, and that the weights have
driven our code out of the caches, which triples what it costs.

Cold start: one token of a short prompt, from the start of the process to its end, by the clock and in processor time:
`slm-edge run` on a pack of this base against `llama-completion` (or `llama-cli` of older builds: a tool that knows
-no-cnv). `--cold-file` drops the base from the page cache before each start.

Prints one JSON document; exit 1 if a bound is missed.
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from ...edge.answer.stream import Request, Stream
from ...edge.errors import EngineError
from ...edge.gguf.base import BaseInfo
from ...edge.llama.binding import lib
from ...edge.llama.sampling import Sampling
from ...edge.llama.vocab import Vocab
from ...edge.pack.write import NewAdapter, build_pack
from ...edge.session.session import Session
from ..made.random_adapter import write_random_adapter
from ..stats import mean, spread

N_PROMPT: Final = 512
N_DECODE: Final = 128
LEAST_RATIO: Final = 0.98
MOST_OVERHEAD_S: Final = 0.4
CHILD: Final = """
import json, sys
from pathlib import Path
from slm_edge.benchmarks.proofs.session_speed import measure
base, threads = json.loads(sys.argv[1])
print(json.dumps(measure(Path(base), threads)))
"""
QUESTION: Final = "What is the capital of France?"


class _Endless(Vocab):
    """A tokenizer whose answers never end by themselves; asking whether costs what it costs."""

    def is_end(self, token_id: int) -> bool:
        super().is_end(token_id)
        return False


class _Timed:
    """llama.cpp's functions; keeps when each decode began and ended."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.times_s: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def llama_decode(self, handle: Any, batch: Any) -> int:
        """As llama.cpp's."""
        began_s = time.perf_counter()
        code: int = self._library.llama_decode(handle, batch)
        self.times_s.append((began_s, time.perf_counter()))
        return code


class Ours:
    """A session that answers token ids."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._vocab = _Endless.of(session.model.handle)
        self._random = np.random.default_rng(0)

    def ids(self, n_tokens: int) -> list[int]:
        """Random token ids, others each time, so that nothing is kept from before."""
        found: list[int] = self._random.integers(0, self.session.model.vocab.n_tokens, n_tokens).tolist()
        return found

    def stream(self, ids: Sequence[int], max_tokens: int) -> Stream:
        """The answer to token ids by the base alone, begun."""
        session = self.session
        request = Request(
            prompt=ids,
            adapter=None,
            sections=lambda: session.sections(session.choice, ids),
            sampling=Sampling(),
            stop=(),
            max_tokens=max_tokens,
            room_tokens=session.n_ctx_tokens,
        )
        return Stream(session._lane, self._vocab, request, time.perf_counter())

    def prefill_s(self) -> float:
        """Seconds from the call to the first chosen token of a prompt."""
        stream = self.stream(self.ids(N_PROMPT), 1)
        list(stream)
        return stream.answer.first_token_s

    def decode_s(self) -> float:
        """Seconds of the tokens after the first one of an answer to a prompt of one token."""
        stream = self.stream(self.ids(1), N_DECODE + 1)
        list(stream)
        rate = stream.answer.decode_tokens_per_s
        assert rate is not None
        return N_DECODE / rate

    def outside(self) -> dict[str, float]:
        """What the model waits for: microseconds of a prompt, and of a token, that are not spent in `llama_decode`."""
        context = self.session.context
        contexts = [context, *filter(None, [getattr(context, "prompts", None)])]
        library = context.pace.llama
        timed = _Timed(library)
        for one in contexts:
            one.pace.llama = timed
        try:
            prompt_s = self.prefill_s()
            inside_s = sum(ended_s - began_s for began_s, ended_s in timed.times_s)
            timed.times_s.clear()
            list(self.stream(self.ids(1), N_DECODE + 1))
        finally:
            for one in contexts:
                one.pace.llama = library
        # The first decode is that of the prompt.
        gaps_s = [after[0] - before[1] for before, after in itertools.pairwise(timed.times_s[1:])]
        return {"prompt": 1e6 * (prompt_s - inside_s), "token": 1e6 * statistics.median(gaps_s)}


def our_libraries() -> dict[str, str]:
    """The environment in which a program of the same llama.cpp loads the libraries that this Python does (Linux)."""
    ours = Path(lib().__file__).parent / "lib"
    places = [str(ours), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(places)}


def _run(command: Sequence[Any], environment: dict[str, str] | None = None) -> str:
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise EngineError(f"ended with code {done.returncode}", where=str(command[0]), problems=lines[-3:])
    return done.stdout.decode(errors="replace")


def bench_s(tool: Path, base: Path, threads: int, environment: dict[str, str] | None) -> tuple[float, float]:
    """llama-bench's seconds for the prompt and for the tokens."""
    command = [tool, "-m", base, "-p", N_PROMPT, "-n", N_DECODE, "-r", 1, "-t", threads, "-ngl", 0, "-o", "json"]
    rows = json.loads(_run(command, environment))
    found = {("prompt" if row["n_prompt"] else "decode"): row["avg_ns"] / 1e9 for row in rows}
    return found["prompt"], found["decode"]


def measure(base: Path, threads: int | None) -> dict[str, Any]:
    """Our seconds for the prompt and for the tokens, and how long the model waits between two, in this process."""
    with Session.of_files(base, {}, threads=threads) as session:
        ours = Ours(session)
        ours.prefill_s(), ours.decode_s()
        seconds = (ours.prefill_s(), ours.decode_s())
        found = {"threads": session.context.threads, "seconds": seconds, "outside_us": ours.outside()}
        return {**found, "setup": session.plan.choices.describe()}


def one_round(base: Path, threads: int | None) -> dict[str, Any]:
    """`measure` in a process of its own."""
    found: dict[str, Any] = json.loads(_run([sys.executable, "-c", CHILD, json.dumps([str(base), threads])]))
    return found


def speeds(
    base: Path, threads: int | None, tool: Path | None, rounds: int, own_libraries: bool = False, control: bool = False
) -> dict[str, Any]:
    """Prefill and decode in turns with llama-bench, or alone, and how long the model waits between tokens."""
    environment = None if own_libraries else our_libraries()
    mine, theirs, again, outside = [], [], [], []
    for _ in range(rounds):
        own = one_round(base, threads)
        threads = own["threads"]
        mine.append(own["seconds"])
        outside.append(own["outside_us"])
        if tool is not None:
            theirs.append(bench_s(tool, base, threads, environment))
        if tool is not None and control:
            again.append(bench_s(tool, base, threads, environment))
    found: dict[str, Any] = {"threads": threads, "setup": own["setup"]}
    for i, (name, n_tokens) in enumerate((("prefill", N_PROMPT), ("decode", N_DECODE))):
        found[f"{name}_tokens_per_s"] = spread([n_tokens / seconds[i] for seconds in mine])
        if theirs:
            found[f"llama_bench_{name}_tokens_per_s"] = spread([n_tokens / seconds[i] for seconds in theirs])
            runs_s = [[times[i] for times in runs] for runs in (theirs, again) if runs]
            tools_s = [statistics.fmean(of_round) for of_round in zip(*runs_s, strict=True)]
            ratios = {"ratio": [tool_s / own[i] for own, tool_s in zip(mine, tools_s, strict=True)]}
            if again:
                ratios["control_ratio"] = [one[i] / other[i] for one, other in zip(theirs, again, strict=True)]
            for kind, values in ratios.items():
                found[f"{name}_{kind}"] = spread(values)
                found[f"{name}_{kind}_mean"] = mean(values).as_dict()
    if theirs:
        found["same_libraries"] = not own_libraries
        found["within_bound"] = all(found[f"{name}_ratio"]["median"] >= LEAST_RATIO for name in ("prefill", "decode"))
    for name, per_s, n_tokens in (("prompt", "prefill", N_PROMPT), ("token", "decode", 1)):
        found[f"us_outside_model_per_{name}"] = outside_us = spread([one[name] for one in outside])
        whole_s = n_tokens / found[f"{per_s}_tokens_per_s"]["median"]
        found[f"share_outside_model_per_{name}"] = outside_us["median"] * 1e-6 / whole_s
    return found


def _drop(file: Path) -> None:
    """Lets the kernel forget the file's pages (Linux)."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_start(tool: Path, base: Path, threads: int, runs: int, cold_file: bool) -> dict[str, Any]:
    """Seconds from the start of a process to its end with one token written, in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        adapter = Path(temporary) / "a.gguf"
        write_random_adapter(BaseInfo.open(base), adapter)
        pack = build_pack(Path(temporary) / "pack", base=base, adapters=[NewAdapter("a", adapter)], copy_base=False)
        with Session.of_files(base, {}, threads=1, n_ctx_tokens=256) as session:
            prompt = session.template.render([{"role": "user", "content": QUESTION}])
        run = [sys.executable, "-m", "slm_edge.edge", "run", "--pack", pack.folder, "--adapter", "none", "--threads"]
        own = [*run, threads, "--max-tokens", 1, QUESTION]
        other = [tool, "-m", base, "-p", prompt, "-n", 1, "-t", threads, "-c", 2048, "--temp", 0, "-no-cnv"]
        other += ["--no-display-prompt", "-ngl", 0]
        mine: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for _ in range(runs + 1):
            for command, times in ((own, mine), (other, theirs)):
                if cold_file:
                    _drop(base)
                before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                _run(command)
                after, ended_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                times.append((ended_s - began_s, cpu_s))
    # The first of each brought the programs themselves into the page cache.
    found: dict[str, Any] = {"cold_file": cold_file}
    for i, clock in enumerate(("s", "cpu_s")):
        own_s, other_s = ([times[i] for times in both[1:]] for both in (mine, theirs))
        found[f"slm_edge_{clock}"], found[f"llama_cpp_{clock}"] = spread(own_s), spread(other_s)
        found[f"overhead_{clock}"] = spread([a - b for a, b in zip(own_s, other_s, strict=True)])
    return {**found, "within_bound": found["overhead_s"]["median"] <= MOST_OVERHEAD_S}


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--llama-bench", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--llama-cli", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="llama-completion.")
@click.option("--own-libraries", is_flag=True, help="llama-bench over the libraries that it was built with.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--control", is_flag=True, help="llama-bench twice in each round, and against itself.")
@click.option("--threads", type=int)
@click.option("--cold-file", is_flag=True, help="Drop the base from the page cache before each start.")
def main(
    base: Path,
    llama_bench: Path | None,
    llama_cli: Path | None,
    own_libraries: bool,
    rounds: int,
    control: bool,
    threads: int | None,
    cold_file: bool,
) -> None:
    """Measure a session against llama.cpp's tools."""
    measured = speeds(base, threads, llama_bench, rounds, own_libraries, control)
    result: dict[str, Any] = {"base": base.name, "rounds": rounds, **measured}
    if llama_cli is not None:
        result["cold_start"] = cold_start(llama_cli, base, result["threads"], rounds, cold_file)
    click.echo(json.dumps(result, indent=2))
    within = [part["within_bound"] for part in (result, result.get("cold_start", {})) if "within_bound" in part]
    sys.exit(not all(within))


if __name__ == "__main__":
    main()
