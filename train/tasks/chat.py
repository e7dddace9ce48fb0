"""Conversations of one's own, in any of the forms of `data.conversations`; every answer of the assistant is learned."""

from ..data.conversations import conversation_pair, read_conversations
from ..data.task import Task

TASK = Task(
    name="chat",
    about="conversations of your own: messages, prompt and completion, Alpaca, ShareGPT; all answers are learned",
    pair=conversation_pair,
    defaults={"max_tokens": 512, "batch": 8, "lr": 5e-4},
    read=read_conversations,
)
