"""What guessing tokens from the prompt gains in decode time, on tasks that copy and on tasks that don't.

    python -m slm_edge.benchmarks.proofs.speculation base.gguf --pack edge/starter --data DATA --limit 20 --threads 1

Each prompt is answered greedily by one session, with and without speculation in turns, after its beginning was computed
once. Decode time is from the end of the prompt's computation to the end of the answer; the ratio is that without to
that with it, above 1 if it gains. Each answer's token ids are compared; where they part, the two logits of the plain
run at that place are told: how near the tie was. The time of the process's own threads stands beside the clock's, for
machines that are not quiet. "exact" pays for its proof in the first answers, as a session does, and guesses nothing
where `edge/session/exactness.py` rules it out: "exact_possible" tells.

| task | adapter | copies |
|---|---|---|
| closed_qa, summarization | summarize | from the passage (dolly, held out) |
| edit | code | a function of MBPP's test part, to be changed in one place |
| mbpp, gsm8k | code, math | little: here it must not lose |

Without a pack the base answers everything. Prints a line per task on stderr, then one JSON document; exit 1 if an
"exact" answer differs.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from ...edge.answer.stream import Answer
from ...edge.datasets.prompts import dolly_held_out, dolly_messages, gsm8k_messages, mbpp_messages, user_message
from ...edge.gguf.chat_template import Message
from ...edge.options import Speculate
from ...edge.pack.pack import Pack
from ...edge.session.session import Session
from ...edge.session.speculation import Drafting
from ..stats import mean, spread
from ..tasks.benchmark import json_lines

LONGEST_PROMPT_LETTERS: Final = 4000
EDITS: Final = (
    "Rename the function to solve, change nothing else.",
    "Add a docstring to this function, change nothing else.",
    "Add type hints to this function, change nothing else.",
)


def _dolly(kind: str) -> Callable[[Path], list[list[Message]]]:
    def load(data: Path) -> list[list[Message]]:
        rows = json_lines(data / "dolly" / f"{kind}.jsonl", "instruction", "context")
        return [dolly_messages(row["instruction"], row["context"]) for row in rows if dolly_held_out(row)]

    return load


def _mbpp_rows(data: Path) -> list[dict[str, Any]]:
    rows = json_lines(data / "mbpp" / "mbpp.jsonl", "text", "code", numbers=["task_id"], lists=["test_list"])
    return [row for row in rows if 11 <= row["task_id"] <= 510]


def _edits(data: Path) -> list[list[Message]]:
    codes = [row["code"].replace("\r", "").strip() for row in _mbpp_rows(data)]
    return [user_message(f"{EDITS[i % len(EDITS)]}\n```python\n{code}\n```") for i, code in enumerate(codes)]


# Name: the kind of adapter, and what is asked.
TASKS: Final[dict[str, tuple[str, Callable[[Path], list[list[Message]]]]]] = {
    "closed_qa": ("summarize", _dolly("closed_qa")),
    "summarization": ("summarize", _dolly("summarization")),
    "edit": ("code", _edits),
    "mbpp": ("code", lambda data: [mbpp_messages(row["text"], row["test_list"]) for row in _mbpp_rows(data)]),
    "gsm8k": (
        "math",
        lambda data: [gsm8k_messages(row["question"]) for row in json_lines(data / "gsm8k" / "test.jsonl", "question")],
    ),
}


@dataclass
class Run:
    """One answer and the time of its decoding, by the clock and of the process's threads."""

    answer: Answer
    decode_s: float
    decode_cpu_s: float


@dataclass
class Prompt:
    """One prompt's runs without and with speculation, in turns."""

    plain: list[Run] = field(default_factory=list)
    guessed: list[Run] = field(default_factory=list)


class Bench:
    """A session whose answers are made without and with speculation."""

    def __init__(self, session: Session, mode: Speculate, max_tokens: int) -> None:
        self.session = session
        self._max_tokens = max_tokens
        exactness = session._drafting.exactness
        self._drafting = {
            "off": Drafting(session.context, exactness, "off"),
            "on": Drafting(session.context, exactness, mode),
        }
        self._began = (0.0, 0.0)
        # The prompt's computation ends inside the stream: the lane is asked to note when.
        lane = session._lane
        begin = lane.begin

        def noted(*arguments: Any) -> int:
            kept = begin(*arguments)
            self._began = time.perf_counter(), time.process_time()
            return kept

        setattr(lane, "begin", noted)  # noqa: B010 (a method is replaced on purpose)

    def run(self, messages: Sequence[Message], how: str) -> Run:
        """Answers once, `how` is "off" or "on"."""
        self.session._drafting = self._drafting[how]
        answer = self.session.ask(messages, max_tokens=self._max_tokens, temperature=0)
        decode_s, decode_cpu_s = (
            now - then for now, then in zip((time.perf_counter(), time.process_time()), self._began, strict=True)
        )
        return Run(answer, decode_s, decode_cpu_s)

    def prompt(self, messages: Sequence[Message], rounds: int) -> Prompt:
        """Both ways in turns, the first one changing with every round."""
        found = Prompt()
        for i in range(rounds):
            for how in ("off", "on") if i % 2 == 0 else ("on", "off"):
                (found.plain if how == "off" else found.guessed).append(self.run(messages, how))
        return found

    def parting(self, messages: Sequence[Message], plain: Sequence[int], other: Sequence[int]) -> dict[str, Any]:
        """Where two answers part, and by how much the plain run preferred its own token, in logits."""
        shorter = min(len(plain), len(other))
        at = next((i for i in range(shorter) if plain[i] != other[i]), shorter)
        session = self.session
        ids, n_shared = session.rendered(messages, None, session.choice)
        lane = session._lane
        lane.begin(ids, session.sections(session.choice, ids, n_shared))
        for token_id in plain[:at]:
            lane.step(token_id)
        logits = session.context.logits()
        first, second = sorted(logits.tolist(), reverse=True)[:2]
        return {"at_token": at, "margin_of_the_two_likeliest": round(first - second, 4)}


def report(prompts: Sequence[Prompt], partings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one task."""
    guessed = [prompt.guessed[-1].answer for prompt in prompts]

    def seconds(prompt: Prompt, clock: str) -> tuple[float, float]:
        plain, with_it = (sum(getattr(run, clock) for run in runs) for runs in (prompt.plain, prompt.guessed))
        return plain, with_it

    def ratios(clock: str) -> list[float]:
        return [plain / with_it for plain, with_it in (seconds(prompt, clock) for prompt in prompts)]

    def total(clock: str) -> float:
        plain, with_it = (sum(column) for column in zip(*(seconds(one, clock) for one in prompts), strict=True))
        return round(float(plain / with_it), 3)

    interval = mean(ratios("decode_s"))
    return {
        "prompts": len(prompts),
        "tokens": sum(answer.n_tokens for answer in guessed),
        "drafted_tokens": sum(answer.n_drafted_tokens for answer in guessed),
        "accepted_tokens": sum(answer.n_accepted_tokens for answer in guessed),
        "decode_ratio": total("decode_s"),
        "decode_ratio_of_cpu_time": total("decode_cpu_s"),
        "decode_ratio_by_prompt": spread(ratios("decode_s")),
        "mean_ratio_95": [round(interval.low, 3), round(interval.high, 3)],
        "cpu_ratio_by_prompt": spread(ratios("decode_cpu_s")),
        "same_tokens": len(prompts) - len(partings),
        "partings": list(partings),
    }


@click.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pack", type=click.Path(exists=True, path_type=Path), help="Its adapters answer; else the base alone.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True, help="As for slm-edge bench.")
@click.option("--task", "names", multiple=True, type=click.Choice(list(TASKS)), default=tuple(TASKS), show_default=True)
@click.option("--limit", default=20, show_default=True, help="Prompts of each task, the same ones each time.")
@click.option("--rounds", default=2, show_default=True, help="Answers to each prompt, of each kind.")
@click.option("--max-tokens", default=160, show_default=True)
@click.option("--mode", type=click.Choice(["exact", "fast"]), default="exact", show_default=True)
@click.option("--threads", type=int)
@click.option("--no-repack", is_flag=True, help="Weights as stored.")
def main(
    base: Path,
    pack: Path | None,
    data: Path,
    names: tuple[str, ...],
    limit: int,
    rounds: int,
    max_tokens: int,
    mode: Speculate,
    threads: int | None,
    no_repack: bool,
) -> None:
    """Measure speculation."""
    packed = Pack.open(pack).adapters if pack is not None else {}
    files = {name: (one.path, one.card) for name, one in packed.items()}
    by_task = {one.card.task: name for name, one in packed.items()}
    results: dict[str, Any] = {}
    repack = False if no_repack else None
    with Session.of_files(base, files, threads=threads, speculate=mode, repack=repack) as session:
        bench = Bench(session, mode, max_tokens)
        for name in names:
            kind, load = TASKS[name]
            session.use(by_task.get(kind))
            asked = [one for one in load(data) if len(one[0]["content"]) <= LONGEST_PROMPT_LETTERS]
            asked = random.Random(0).sample(asked, min(limit, len(asked)))
            prompts, partings = [], []
            for messages in asked:
                prompts.append(bench.prompt(messages, rounds))
                plain, other = (runs[-1].answer.token_ids for runs in (prompts[-1].plain, prompts[-1].guessed))
                if plain != other:
                    partings.append(bench.parting(messages, plain, other))
            possible = session._drafting.exactness.possible(one for one, _ in session.choice.scales)
            results[name] = {"adapter": session.adapter, "exact_possible": possible, **report(prompts, partings)}
            click.echo(f"{name}: {json.dumps(results[name])}", err=True)
        used_threads = session.context.threads
    same = all(result["same_tokens"] == result["prompts"] for result in results.values())
    about = {"base": base.name, "mode": mode, "threads": used_threads, "rounds": rounds, "max_tokens": max_tokens}
    click.echo(json.dumps({**about, "same_tokens": same, "results": results}, indent=2))
    sys.exit(mode == "exact" and not same)


if __name__ == "__main__":
    main()
