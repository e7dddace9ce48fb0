"""SVAMP: 1,000 one-step word problems that no recipe of ours has seen (Patel et al., NAACL 2021).

Numbers are taken from answers and compared as in GSM8K; the flexible rule gives the task's score.
"""

from pathlib import Path

from ...edge.datasets.numbers import flexible_answer, same_number, strict_answer
from ...edge.datasets.prompts import gsm8k_messages
from ...edge.errors import InputError
from .benchmark import Benchmark, Item, Metric, json_lines


def question(body: str, asked: str) -> str:
    """Body and question as one text, with the stop that many bodies lack."""
    body = body.strip()
    return f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {asked.strip()}"


def load(data: Path) -> list[Item]:
    """The items of `svamp/SVAMP.json`."""
    path = data / "svamp" / "SVAMP.json"
    items = []
    for row in json_lines(path, "ID", "Body", "Question"):
        answer = row.get("Answer")
        if isinstance(answer, bool) or not isinstance(answer, int | float) or answer != answer // 1:
            raise InputError(f"{row['ID']}: the answer {answer!r} is not a whole number", where=path)
        items.append(
            Item(row["ID"], gsm8k_messages(question(row["Body"], row["Question"])), {"answer": str(int(answer))})
        )
    return items


def score(item: Item, text: str) -> dict[str, float]:
    """Both extractions against the item's number; the flexible one is the task's score."""
    truth = item.truth["answer"]
    return {"flexible": same_number(flexible_answer(text), truth), "strict": same_number(strict_answer(text), truth)}


BENCHMARK = Benchmark(
    name="svamp",
    kind="math",
    title="SVAMP",
    files=("svamp/SVAMP.json",),
    max_tokens=192,
    metrics=(Metric("flexible", True, "exact match, flexible"), Metric("strict", True, "exact match, strict")),
    load=load,
    score=score,
    protocol="Body and question, unseen in training, 0-shot, chat template, greedy; numbers as in GSM8K.",
)
