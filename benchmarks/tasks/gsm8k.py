"""GSM8K test: 1,319 word problems, exact match of the final number, 0-shot.

Numbers are found and compared as lm-evaluation-harness does (`edge/datasets/numbers.py`); the prompt is ours: the bare
question in the model's chat template.
"""

from pathlib import Path

from ...edge.datasets.numbers import (
    boxed_answer,
    equal_numbers,
    flexible_answer,
    is_number,
    same_number,
    strict_answer,
)
from ...edge.datasets.prompts import gsm8k_messages
from .benchmark import Benchmark, Item, Metric, json_lines, refuse_rows


def load(data: Path) -> list[Item]:
    """The items of `gsm8k/test.jsonl`.

    Raises:
        InputError: the answer of a row ends without `#### NUMBER`, so that nothing could be compared with it.
    """
    path = data / "gsm8k" / "test.jsonl"
    items = [
        Item(f"test-{number}", gsm8k_messages(row["question"]), {"answer": strict_answer(row["answer"])})
        for number, row in enumerate(json_lines(path, "question", "answer"))
    ]
    refuse_rows(path, [item.id for item in items if not is_number(item.truth["answer"])], "no answer `#### NUMBER`")
    return items


def score(item: Item, text: str) -> dict[str, float]:
    """The extractions against the item's number."""
    truth = item.truth["answer"]
    return {
        "strict": same_number(strict_answer(text), truth),
        "flexible": same_number(flexible_answer(text), truth),
        "boxed": equal_numbers(boxed_answer(text), truth),
    }


BENCHMARK = Benchmark(
    name="gsm8k",
    kind="math",
    title="GSM8K test",
    files=("gsm8k/test.jsonl",),
    max_tokens=512,  # general models reason at length: at 256 half of Qwen2.5-Coder-0.5B's answers were cut off
    metrics=(
        Metric("strict", True, "exact match, strict"),
        Metric("flexible", True, "exact match, flexible"),
        Metric("boxed", True, "exact match, boxed, as numbers"),
    ),
    load=load,
    score=score,
    protocol="0-shot, chat template, greedy; the number behind the first `####` (strict) or the last one (flexible), "
    "extracted and compared as lm-evaluation-harness gsm8k v3; or the last one in the last \\boxed{}, compared as "
    "numbers (boxed).",
)
