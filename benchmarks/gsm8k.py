"""GSM8K test: 1,319 word problems, exact match of the final number, 0-shot.

    strict_answer("... #### 1,234.")  ->  "1,234."      normalise("$1,234.")  ->  "1234"

Extraction and normalisation are those of EleutherAI's lm-evaluation-harness, task gsm8k version 3 (its yaml:
strict-match, flexible-extract, regexes_to_ignore); the prompt is ours: the bare question in the model's chat template.
"""

import re
from pathlib import Path

from ..edge.prompts import gsm8k_messages
from .task import Item, Metric, Task, json_lines

INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(r","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def strict_answer(text: str) -> str:
    """The number behind the first `#### `, or "[invalid]"."""
    found = _STRICT.search(text)
    return found.group(1).strip() if found else INVALID


def flexible_answer(text: str) -> str:
    """The last thing that looks like a number, or "[invalid]"."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else INVALID


def normalise(answer: str) -> str:
    """Drops `,`, `$`, all up to `#### `, and one final `.`; lower case."""
    for ignored in _IGNORED:
        answer = ignored.sub("", answer)
    return answer.lower()


def same_number(extracted: str, truth: str) -> float:
    """1.0 where both are the same text once normalised, else 0.0. "18.00" is not "18", as in the harness."""
    return float(normalise(extracted) == normalise(truth))


def load(data: Path) -> list[Item]:
    """The items of `gsm8k/test.jsonl`."""
    rows = json_lines(data / "gsm8k" / "test.jsonl", "question", "answer")
    return [
        Item(f"test-{number}", gsm8k_messages(row["question"]), {"answer": strict_answer(row["answer"])})
        for number, row in enumerate(rows)
    ]


def score(item: Item, text: str) -> dict[str, float]:
    """Both extractions against the item's number."""
    truth = item.truth["answer"]
    return {"strict": same_number(strict_answer(text), truth), "flexible": same_number(flexible_answer(text), truth)}


TASK = Task(
    name="gsm8k",
    kind="math",
    title="GSM8K test",
    files=("gsm8k/test.jsonl",),
    max_tokens=256,
    metrics=(
        Metric("strict", True, "exact match, strict"),
        Metric("flexible", True, "exact match, flexible"),
    ),
    load=load,
    score=score,
    protocol="0-shot, chat template, greedy; the number behind the first `####` (strict) or the last one (flexible), "
    "extracted and compared as lm-evaluation-harness gsm8k v3.",
)
