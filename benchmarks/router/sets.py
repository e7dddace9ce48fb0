"""Prompts to judge a router by: public sets that it never trains on, and our own written ones.

    for name, prompts in public_sets(Path("data")).items(): ...      # SVAMP, HumanEval, HellaSwag, dolly, ...

A set is a list of (prompt, right adapter or None). The policy that they follow stands in `POLICY`.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ...edge.datasets.prompts import dolly_held_out, dolly_messages, gsm8k_messages, mbpp_messages
from ...edge.errors import InputError
from ...edge.files.read import is_text, json_rows, lines_of, read_text

FOLDER: Final = Path(__file__).parent
POLICY: Final = """\
math: a question or story whose answer is computed from what it says, and bare arithmetic, conversions of a given amount
among it; facts to be known are not, nor proofs, definitions, graphs, exercises to be made up, riddles and puzzles that
ask for no quantity.
code: whatever is answered by a program in Python, or in no language that is named, and translating a program into
Python. Programs in other languages, queries, pages, commands, formulas and bare regular expressions are not (the
adapter has learnt Python), and neither is explaining code or programming, or saying what a program prints.
summarize: a text with an order to summarize it or to find something in it (dolly's information_extraction, of which 1
to 2 % are orders to correct or rewrite, and count as mistakes), or with a question that it answers, with choices of
answers or without; a text alone, an order without a text, and other orders on a text (translate, edit, rewrite,
explain, classify, judge, compare, reply, ask questions about it, entitle it, tell what came before or comes next) are
not.
None: everything else. The language of the prompt, its spelling and capitals make no difference. Of two tasks in one
prompt counts the one that the answer is made of: a program that adds prices up is code."""
Set = list[tuple[str, str | None]]
# Rows drawn of a set, always the same
LIMIT: Final = 1000


def written_sets(path: Path) -> dict[str, Set]:
    """The sets of a file of lines `SET | ADAPTER or none | PROMPT`, with newlines in a prompt as `\\n`.

    Raises:
        InputError: a line is not of that form.
    """
    found: dict[str, Set] = {}
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(" | ", 2)
        if len(parts) != 3:
            raise InputError(f"line {number} is not SET | ADAPTER | PROMPT", where=path)
        name, adapter, text = (part.strip() for part in parts)
        found.setdefault(name, []).append((text.replace("\\n", "\n"), None if adapter == "none" else adapter))
    return found


def public_sets(data: Path, limit: int = LIMIT) -> dict[str, Set]:
    """The public sets below `data`, each of at most `limit` prompts; sets whose file is not there are left out."""
    found: dict[str, Set] = {}
    for name, (file, read) in _PUBLIC.items():
        if (data / file).is_file():
            rows = _prompts(data / file, read, name)
            found[name] = rows if len(rows) <= limit else random.Random(5).sample(rows, limit)
    return found


def _prompts(path: Path, read: "_Read", name: str) -> Set:
    """The prompts of a set's file; InputError with the row that is none of such a file."""
    found: Set = []
    for number, row in json_rows(path):
        try:
            prompts = list(read([row]))
            if not all(is_text(text) for text, _ in prompts):
                raise ValueError("a cell is no text, or has half a surrogate pair")
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise InputError(f"row {number} is not one of {name} ({error})", where=path) from None
        found += prompts
    return found


_Rows = list[dict[str, Any]]
_Read = Callable[[_Rows], Iterator[tuple[str, str | None]]]


def _svamp(rows: _Rows) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        yield f"{row['Body'].strip()} {row['Question'].strip()}", "math"


def _gsm8k(rows: _Rows) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        yield gsm8k_messages(row["question"])[0]["content"], "math"


def _humaneval(order: str, fence: bool) -> _Read:
    def read(rows: _Rows) -> Iterator[tuple[str, str | None]]:
        for row in rows:
            yield order + (f"```python\n{row['prompt']}```" if fence else row["prompt"]), "code"

    return read


def _mbpp(with_test: bool) -> _Read:
    def read(rows: _Rows) -> Iterator[tuple[str, str | None]]:
        for row in rows:
            if 11 <= row["task_id"] <= 510:
                told = mbpp_messages(row["text"], row["test_list"])[0]["content"] if with_test else row["text"]
                yield told, "code"

    return read


def _hellaswag(rows: _Rows) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        yield row["query"], None


def _dolly_task(rows: _Rows) -> Iterator[tuple[str, str | None]]:
    for row in rows:
        if dolly_held_out(row) and row["context"].strip():
            yield dolly_messages(row["instruction"], row["context"])[0]["content"], "summarize"


def _dolly_other(category: str, adapter: str | None) -> _Read:
    def read(rows: _Rows) -> Iterator[tuple[str, str | None]]:
        for row in rows:
            if row["category"] == category:
                yield dolly_messages(row["instruction"], row.get("context") or "")[0]["content"], adapter

    return read


_PUBLIC: Final[dict[str, tuple[str, _Read]]] = {
    "SVAMP": ("svamp/SVAMP.json", _svamp),
    "HumanEval, as it stands": ("humaneval/HumanEval.jsonl.gz", _humaneval("", False)),
    "HumanEval, as a chat": ("humaneval/HumanEval.jsonl.gz", _humaneval("Complete this function.\n\n", True)),
    "HellaSwag contexts": ("hellaswag/hellaswag_val.jsonl", _hellaswag),
    "dolly general_qa": ("dolly/other_prompts.jsonl", _dolly_other("general_qa", None)),
    "dolly classification": ("dolly/other_prompts.jsonl", _dolly_other("classification", None)),
    "dolly information_extraction": ("dolly/other_prompts.jsonl", _dolly_other("information_extraction", "summarize")),
    "GSM8K test (source trained on)": ("gsm8k/test.jsonl", _gsm8k),
    "MBPP 11-510 (source trained on)": ("mbpp/mbpp.jsonl", _mbpp(True)),
    "MBPP 11-510 without its test": ("mbpp/mbpp.jsonl", _mbpp(False)),
    "dolly closed_qa held out (source trained on)": ("dolly/closed_qa.jsonl", _dolly_task),
    "dolly summarization held out (source trained on)": ("dolly/summarization.jsonl", _dolly_task),
}
