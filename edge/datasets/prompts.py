"""How a row of each public data set becomes the messages that a model sees: one place, used to train and to score.

    gsm8k_messages("Tom has 3 apples ...")   ->   [{"role": "user", "content": "Tom has 3 apples ..."}]

No system text is written here: what the base's own chat template says by default applies, as it does on the device.
"""

import hashlib
from collections.abc import Mapping, Sequence

from ..gguf.chat_template import Message

# 32 of 256: about one row in eight; 353 of dolly's 2,961 closed_qa and summarization rows
HELD_OUT_BELOW = 32


def user_message(content: str) -> list[Message]:
    """One user turn."""
    return [{"role": "user", "content": content}]


def gsm8k_messages(question: str) -> list[Message]:
    """A word problem (GSM8K, SVAMP) is asked as it stands."""
    return user_message(question.strip())


def mbpp_messages(text: str, tests: Sequence[str]) -> list[Message]:
    """An MBPP task: its text and its first test, which tells the function's name.

    One test, as in InCoder and bigcode's evaluation harness; the others stay unseen and judge the answer.
    """
    return user_message(f"{text.strip()}\nYour code should pass this test:\n{tests[0].strip()}")


def dolly_messages(instruction: str, context: str = "") -> list[Message]:
    """A dolly row: the instruction, then the passage that it is about."""
    return user_message("\n\n".join(part.strip() for part in (instruction, context) if part.strip()))


def dolly_held_out(row: Mapping[str, str]) -> bool:
    """Whether a dolly row is kept for scoring and never trained on.

    Decided by the sha256 of its passage (of its instruction where it has none), so that no passage stands on both
    sides, and the order or number of the rows doesn't matter.
    """
    text = row.get("context", "").strip() or row["instruction"].strip()
    return hashlib.sha256(text.encode("utf-8")).digest()[0] < HELD_OUT_BELOW
