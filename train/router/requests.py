"""Prompts that fit no adapter: orders on something given (a word, a review, facts), and what only sounds like code.

    for text, label, source in given_requests(lists, random.Random(0)): ...

The orders and what they are given stand in `requests.toml`.
"""

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from .passages import passages, sentences_of
from .patterns import FOLDER, Row, filled, laid_out

# How often each order gets another input; for orders without one, how often it is filled in
_FILLS: Final = 8
_MORE_FILLS: Final = {"sentences": 24, "review": 16, "sentence": 12}
_LABELS: Final = ("", "", "", "", "Input: ", "Input:\n", "Text: ")


def given_requests(lists: Mapping[str, Sequence[str]], draw: random.Random) -> Iterator[Row]:
    """The prompts as (text, None, source); `lists` are those of templates.toml."""
    file = tomllib.loads((FOLDER / "requests.toml").read_text(encoding="utf-8"))
    words = {**lists, **file["lists"]}
    inputs = dict(file["inputs"])
    told = [sentence for text, _ in passages() for sentence in sentences_of(text) if "\n" not in sentence]
    inputs["sentence"] = [*inputs["sentence"] * 4, *told]
    for block in file["none"]:
        kind = block["inputs"]
        for number, order in enumerate(block["tasks"]):
            source = f"requests {kind or 'alone'} {number % 4}"
            for _ in range(_MORE_FILLS.get(kind, _FILLS)):
                asked = filled(order, words, draw)
                if not kind:
                    yield asked, None, source
                    continue
                given = filled(_input(kind, inputs, draw), words, draw)
                # Such orders mostly stand before what they are about.
                text = f"{asked}\n\n{given}" if draw.random() < 0.5 else laid_out(asked, given, _LABELS, draw)
                yield text, None, source


def _input(kind: str, inputs: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    if kind != "sentences":
        return draw.choice(inputs[kind])
    one, two = draw.sample(inputs["sentence"], 2)
    if draw.random() < 0.5:
        # The same sentence turned around
        half = one.find(" ", len(one) // 2)
        two = f"{one[half:].strip(' .')} {one[:half]}."
    label = draw.choice(["", "", "Sentence 1: |Sentence 2: ", "1. |2. ", "A: |B: ", "- |- "])
    before, _, between = label.partition("|")
    return f"{before}{one}\n{between}{two}" if label or draw.random() < 0.7 else f"{one} {two}"
