"""Conversations: rows with `messages`, of which the assistant's last turn is learned.

A row is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}; a system message
may stand first.
"""

from ..data.examples import Pair, Row, turns_of
from ..data.task import Skip, Task


def pair(row: Row) -> Pair:
    """The assistant's last turn is the completion."""
    if "messages" not in row:
        raise Skip("no messages")
    turns = turns_of(row)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise Skip("the last message is not the assistant's")
    completion = turns[-1]["content"].strip()
    if not completion:
        raise Skip("the last message is empty")
    return Pair(turns[:-1], completion)


TASK = Task(
    name="chat",
    about="conversations: rows with messages, of which the assistant's last turn is learned",
    pair=pair,
    defaults={"max_tokens": 512, "batch": 8, "lr": 5e-4},
)
