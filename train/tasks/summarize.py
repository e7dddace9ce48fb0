"""Answers from a passage and summaries: databricks-dolly-15k, closed_qa and summarization (CC BY-SA 3.0).

Rows that `edge.datasets.prompts.dolly_held_out` keeps for scoring are never trained on.
"""

from ...edge.datasets.prompts import dolly_held_out, dolly_messages
from ..data.examples import Pair, Row, text_of
from ..data.task import Skip, Task

CATEGORIES = ("closed_qa", "summarization")


def pair(row: Row) -> Pair:
    """The response is the completion."""
    if not {"instruction", "context", "response"} <= row.keys():
        raise Skip("not a row of dolly")
    if row.get("category") not in CATEGORIES:
        raise Skip("another category of dolly")
    instruction, context, response = (text_of(row, key) for key in ("instruction", "context", "response"))
    if dolly_held_out(row):
        raise Skip("held out for scoring")
    if not response.strip() or not context.strip():
        raise Skip("no response or no context")
    return Pair(dolly_messages(instruction, context), response.strip())


TASK = Task(
    name="summarize",
    about="short answers from a passage, and summaries (dolly closed_qa and summarization)",
    pair=pair,
    defaults={"max_tokens": 320, "batch": 8, "lr": 1e-3},
)
