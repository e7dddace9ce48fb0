"""Conversations of one's own, in any of the forms of `data.conversations`; every answer of the assistant is learned."""

from ..data.conversations import conversation_of, form_of, read_conversations
from ..data.examples import Pair, Row
from ..data.task import Skip, Task


def pair(row: Row) -> Pair:
    """The last answer is the completion, and those before it are learned too."""
    form = form_of(row)
    if form is None:
        raise Skip("no conversation")
    made = conversation_of(row, form)
    turns = made["messages"]
    while turns and turns[-1]["role"] != "assistant":
        # A question that nobody answered
        turns = turns[:-1]
    if len(turns) < 2:
        raise Skip("no answer of the assistant")
    last = turns[-1]
    if not last["content"].strip() and not last.get("tool_calls"):
        raise Skip("the last answer is empty")
    tools = {"tools": made["tools"]} if "tools" in made else {}
    return Pair(turns[:-1], last["content"].strip(), last, all_turns=True, arguments=tools)


TASK = Task(
    name="chat",
    about="conversations of your own: messages, prompt and completion, Alpaca, ShareGPT; all answers are learned",
    pair=pair,
    defaults={"max_tokens": 512, "batch": 8, "lr": 5e-4},
    read=read_conversations,
)
