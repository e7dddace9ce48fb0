"""dolly held-out: closed question answering and summarisation, ROUGE-1 F1 against the one human answer.

Rows of databricks-dolly-15k (CC BY-SA 3.0) that `edge.prompts.dolly_held_out` keeps from training. Google's
rouge-score, stemmed. ROUGE rewards an answer of the reference's length; words per answer stand beside it for that.
"""

import functools
from pathlib import Path
from typing import Any

from ..edge.prompts import dolly_held_out, dolly_messages
from .task import Item, Metric, Task, json_lines

_FILES = ("dolly/closed_qa.jsonl", "dolly/summarization.jsonl")


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=True)


def rouge1(truth: str, answer: str) -> float:
    """ROUGE-1 F1 with Porter stemming, 0 to 1 (C.-Y. Lin 2004; google-research/rouge)."""
    return float(_scorer().score(truth, answer)["rouge1"].fmeasure)


def load(data: Path) -> list[Item]:
    """The held-out rows of both files."""
    items = []
    for name in _FILES:
        for number, row in enumerate(json_lines(data / name, "instruction", "context", "response")):
            if dolly_held_out(row):
                messages = dolly_messages(row["instruction"], row["context"])
                items.append(Item(f"{Path(name).stem}-{number}", messages, {"answer": row["response"]}))
    return items


def score(item: Item, text: str) -> dict[str, float]:
    """ROUGE-1 F1, and the answer's length in words."""
    return {"rouge1": rouge1(item.truth["answer"], text), "words": float(len(text.split()))}


TASK = Task(
    name="dolly",
    kind="summarize",
    title="dolly held-out",
    files=_FILES,
    max_tokens=160,
    metrics=(Metric("rouge1", False, "ROUGE-1"), Metric("words", False, "words per answer")),
    load=load,
    score=score,
    protocol="closed_qa and summarization rows whose passage hashes into the held-out eighth, chat template, greedy; "
    "ROUGE-1 F1, rouge-score with stemmer, against the human answer.",
)
