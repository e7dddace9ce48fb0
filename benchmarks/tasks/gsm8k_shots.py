"""GSM8K asked in other ways: without the chat template, and after eight worked examples ("chain of thought").

The examples are the first eight rows of `gsm8k/train.jsonl`, without their calculator marks; as turns of the
conversation with the chat template, as "Question: ... Answer: ..." without. Extraction and score are those of `gsm8k`.
"""

import dataclasses
import re
from pathlib import Path

from ...edge.datasets.prompts import gsm8k_messages
from ...edge.errors import InputError
from ...edge.gguf.chat_template import Message
from .benchmark import Benchmark, Item, json_lines
from .gsm8k import BENCHMARK as ZERO_SHOT
from .gsm8k import load as load_zero_shot

N_SHOTS = 8
# As lm-evaluation-harness ends its answers: at the next question
STOPS = ("Question:",)
_TRAIN = "gsm8k/train.jsonl"
_CALCULATOR_MARK = re.compile(r"<<[^>]*>>")


def shots(data: Path) -> list[tuple[str, str]]:
    """Question and worked answer of the first rows of the training set.

    Raises:
        InputError: there are fewer.
    """
    rows = [row for row, _ in zip(json_lines(data / _TRAIN, "question", "answer"), range(N_SHOTS), strict=False)]
    if len(rows) < N_SHOTS:
        raise InputError(f"{len(rows)} rows; {N_SHOTS} are needed as examples", where=data / _TRAIN)
    return [(row["question"].strip(), _CALCULATOR_MARK.sub("", row["answer"]).strip()) for row in rows]


def _raw(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"


def _load(data: Path, n_shots: int, raw: bool) -> list[Item]:
    examples = shots(data) if n_shots else []
    before: list[Message] = []
    for question, answer in examples:
        before += [*gsm8k_messages(question), {"role": "assistant", "content": answer}]
    text = "".join(f"{_raw(question)} {answer}\n\n" for question, answer in examples)
    items = []
    for item in load_zero_shot(data):
        question = item.messages[0]["content"]
        if raw:
            items.append(dataclasses.replace(item, messages=[], raw=text + _raw(question)))
        else:
            items.append(dataclasses.replace(item, messages=[*before, *item.messages]))
    return items


def load_raw(data: Path) -> list[Item]:
    """0-shot, without the template."""
    return _load(data, 0, raw=True)


def load_eight(data: Path) -> list[Item]:
    """8-shot, through the template."""
    return _load(data, N_SHOTS, raw=False)


def load_eight_raw(data: Path) -> list[Item]:
    """8-shot, without the template."""
    return _load(data, N_SHOTS, raw=True)


_RULES = "greedy; numbers extracted and compared as in gsm8k."
_SHOTS = "8-shot chain of thought, the first eight rows of the training set"

RAW: Benchmark = dataclasses.replace(
    ZERO_SHOT,
    name="gsm8k-raw",
    title="GSM8K test, without template",
    load=load_raw,
    stop=STOPS,
    protocol=f'0-shot, no chat template, "Question: ... Answer:", until the next "Question:"; {_RULES}',
)
EIGHT: Benchmark = dataclasses.replace(
    ZERO_SHOT,
    name="gsm8k-8shot",
    title="GSM8K test, 8-shot",
    files=(*ZERO_SHOT.files, _TRAIN),
    load=load_eight,
    protocol=f"{_SHOTS} as turns of the conversation, chat template, {_RULES}",
)
EIGHT_RAW: Benchmark = dataclasses.replace(
    EIGHT,
    name="gsm8k-8shot-raw",
    title="GSM8K test, 8-shot, without template",
    load=load_eight_raw,
    stop=STOPS,
    protocol=f'{_SHOTS} as "Question: ... Answer: ...", no chat template, until the next "Question:"; {_RULES}',
)
