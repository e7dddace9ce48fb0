"""dolly held-out: closed question answering and summarisation, ROUGE-1 F1 against the one human answer.

Rows of databricks-dolly-15k (CC BY-SA 3.0) that `edge.datasets.prompts.dolly_held_out` keeps from training. Google's
rouge-score, stemmed. ROUGE rewards an answer of the reference's length; words per answer stand beside it for that.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from ...edge.datasets.prompts import dolly_held_out, dolly_messages
from .benchmark import Benchmark, Item, Metric, json_lines, refuse_rows

_FILES = ("dolly/closed_qa.jsonl", "dolly/summarization.jsonl")


# Han, kana, Thai, Lao, Khmer, Burmese: written without spaces, so that a letter stands for a word
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class _Words:
    """Words of letters, digits and marks of any writing; rouge-score's own knows a to z and 0 to 9 alone."""

    def tokenize(self, text: str) -> list[str]:
        kept = (char if unicodedata.category(char)[0] in "LNM" else " " for char in text.casefold())
        return _UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFC", "".join(kept))).split()


@functools.cache
def _scorer(latin: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=True) if latin else RougeScorer(["rouge1"], tokenizer=_Words())


def _is_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    return 2 * sum(char.isascii() for char in letters) >= len(letters)


def rouge1(truth: str, answer: str) -> float:
    """ROUGE-1 F1 with Porter stemming, 0 to 1 (C.-Y. Lin 2004; google-research/rouge).

    Where most letters of the truth are other ones than a to z, words are those of any writing, without stemming.
    """
    return float(_scorer(_is_latin(truth)).score(truth, answer)["rouge1"].fmeasure)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(truth: str, answer: str) -> float:
    """F1 of the shared words as SQuAD counts them: lower case, no punctuation, no articles; 0 if one has no words."""
    ours, theirs = (_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split() for text in (answer, truth))
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def load(data: Path) -> list[Item]:
    """The held-out rows of both files.

    Raises:
        InputError: the reference of a row has no word, so that nothing could be compared with it.
    """
    items: list[Item] = []
    for name in _FILES:
        begun = len(items)
        for number, row in enumerate(json_lines(data / name, "instruction", "context", "response")):
            if dolly_held_out(row):
                messages = dolly_messages(row["instruction"], row["context"])
                items.append(Item(f"{Path(name).stem}-{number}", messages, {"answer": row["response"]}))
        wordless = [item.id for item in items[begun:] if not re.search(r"\w", item.truth["answer"])]
        refuse_rows(data / name, wordless, "a reference without a word")
    return items


def score(item: Item, text: str) -> dict[str, float]:
    """ROUGE-1 F1, token F1, and the answer's length in words."""
    truth = item.truth["answer"]
    return {"rouge1": rouge1(truth, text), "f1": token_f1(truth, text), "words": float(len(text.split()))}


BENCHMARK = Benchmark(
    name="dolly",
    kind="summarize",
    title="dolly held-out",
    files=_FILES,
    max_tokens=160,
    metrics=(
        Metric("rouge1", False, "ROUGE-1"),
        Metric("f1", False, "token F1"),
        Metric("words", False, "words per answer"),
    ),
    load=load,
    score=score,
    protocol="closed_qa and summarization rows whose passage hashes into the held-out eighth, chat template, greedy; "
    "ROUGE-1 F1 (rouge-score with stemmer) and SQuAD's token F1 against the human answer.",
)
