"""HellaSwag validation: 10,042 beginnings with four endings each; the likeliest ending is the answer (Zellers et al.).

    score(item, '{"sums": [-31, -20, -44, -33], "token_means": [...]}')   ->   {"acc_norm": 1.0, "acc": 1.0, ...}

0-shot, plain text, no chat template. acc takes the largest summed log-likelihood, acc_norm the largest per character
of the ending: both as lm-evaluation-harness. acc_token takes the largest mean over tokens, as llama.cpp's perplexity
tool does under the name acc_norm.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.files.read import is_text
from .benchmark import Benchmark, Item, Metric, json_lines

_FILE = "hellaswag/hellaswag_val.jsonl"
_BRACKETS = re.compile(r"\[.*?\]")


def tidy(text: str) -> str:
    """The text without WikiHow's marks, as lm-evaluation-harness tidies it."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


def item_of(row: Mapping[str, Any], number: int) -> Item:
    """An item from a published row (`activity_label`, `ctx_a`, `ctx_b`, `endings`) or a tidy one (`query`, `choices`).

    Raises:
        KeyError, ValueError: it is neither.
    """
    if "query" in row:
        query, endings = row["query"], row["choices"]
    else:
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
        query, endings = tidy(f"{row['activity_label']}: {context}"), [tidy(ending) for ending in row["endings"]]
    if isinstance(row["label"], bool | float):
        raise ValueError("the label is no whole number")
    label = int(row["label"])
    if len(endings) != 4 or not 0 <= label < 4:
        raise ValueError("four endings and a label from 0 to 3 are needed")
    if not all(is_text(text) and text for text in (query, *endings)):
        raise ValueError("its texts are no texts, empty, or have half a surrogate pair")
    return Item(f"val-{row.get('ind', number)}", [], {"label": label}, raw=query, endings=tuple(endings))


def load(data: Path) -> list[Item]:
    """The items of `hellaswag/hellaswag_val.jsonl`."""
    items = []
    for number, row in enumerate(json_lines(data / _FILE)):
        try:
            items.append(item_of(row, number))
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"row {number} is not one of HellaSwag ({error})", where=data / _FILE) from None
    return items


def chosen(item: Item, sums: list[float], token_means: list[float]) -> dict[str, int]:
    """The ending that each rule takes; of equals the first."""
    per_character = [total / len(ending) for total, ending in zip(sums, item.endings, strict=True)]
    return {
        "acc_norm": per_character.index(max(per_character)),
        "acc": sums.index(max(sums)),
        "acc_token": token_means.index(max(token_means)),
    }


def score(item: Item, text: str) -> dict[str, float]:
    """1 if a rule takes the right ending. `text` is JSON: "sums" and "token_means", log-likelihoods in nats."""
    found = json.loads(text)
    return {
        name: float(index == item.truth["label"])
        for name, index in chosen(item, found["sums"], found["token_means"]).items()
    }


BENCHMARK = Benchmark(
    name="hellaswag",
    kind="general",
    title="HellaSwag",
    files=(_FILE,),
    max_tokens=1,
    metrics=(
        Metric("acc_norm", True, "acc_norm (per character)"),
        Metric("acc", True, "acc"),
        Metric("acc_token", True, "acc_norm of llama.cpp (per token)"),
    ),
    load=load,
    score=score,
    protocol="0-shot, no chat template, log-likelihood of each ending after its context: largest sum (acc), per "
    "character (acc_norm, as lm-evaluation-harness), largest per token (as llama.cpp's perplexity tool).",
    way="choices",
)
