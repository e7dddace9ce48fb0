"""A mix of everything that clients do, right and wrong: for soaks. Each kind says which statuses are right answers."""

import random
from collections.abc import Sequence
from typing import Any, Final

from .ask import CHAT, Reply, ask, chat

SUBJECTS: Final = ("rivers", "bread", "the moon", "ships", "numbers", "gardens", "clocks", "winter", "glass", "horses")
SENTENCE: Final = "The old mill by the river was bought by the village and now holds a library and a small cafe. "
_TURNS: Final = 5
# Paths that answer without the engine's work
_READ: Final = ("/v1/models", "/metrics", "/health", "/v1/slm/state", "/openapi.json", "/nowhere")
_WRONG: Final = (
    b"{",
    b"[]",
    b'{"model":"base","messages":[{"role":"user","content":"x"}],"temperature":1e9}',
    b'{"model":"nobody","messages":[{"role":"user","content":"x"}]}',
    b'{"model":"base","messages":[{"role":"user","content":"x"}],"logprobs":"yes"}',
)


class Client:
    """One client, which keeps a conversation and asks a kind of thing at random.

    Args:
        models: that it asks for.
    """

    def __init__(self, port: int, models: Sequence[str], draw: random.Random) -> None:
        self._port, self._models, self._draw = port, list(models), draw
        self._talk: list[dict[str, str]] = []
        self.kinds = (
            *(self.answer, self.answer, self.answer, self.talk, self.talk, self.talk, self.leave, self.leave_prompt),
            *(self.schema, self.completion, self.response, self.several, self.tools, self.read, self.count, self.wrong),
        )

    async def step(self) -> tuple[str, Reply, tuple[int, ...]]:
        """The kind of what it asked, what came, and which statuses are right."""
        kind = self._draw.choice(self.kinds)
        reply, statuses = await kind()
        return kind.__name__, reply, statuses

    def _text(self) -> str:
        return f"Tell me about {self._draw.choice(SUBJECTS)}, chapter {self._draw.randrange(10**6)}."

    def _chat(self, n_tokens: int, **more: Any) -> dict[str, Any]:
        return chat(self._draw.choice(self._models), self._text(), n_tokens, **more)

    async def answer(self) -> tuple[Reply, tuple[int, ...]]:
        """A whole answer, drawn."""
        body = self._chat(self._draw.randint(1, 24), temperature=0.8, seed=self._draw.randrange(1000))
        return await ask(self._port, CHAT, body), (200,)

    async def talk(self) -> tuple[Reply, tuple[int, ...]]:
        """The next turn of a conversation, streamed."""
        if len(self._talk) >= 2 * _TURNS:
            self._talk = []
        self._talk.append({"role": "user", "content": self._text()})
        body = {"model": self._models[0], "messages": self._talk, "max_tokens": 16, "stream": True}
        reply = await ask(self._port, CHAT, {**body, "stream_options": {"include_usage": True}})
        self._talk.append({"role": "assistant", "content": "".join(text for _, text in reply.pieces())})
        return reply, (200,)

    async def leave(self) -> tuple[Reply, tuple[int, ...]]:
        """Hangs up in the middle of an answer."""
        return await ask(self._port, CHAT, self._chat(400, stream=True), leave_after=self._draw.randint(1, 9)), (200,)

    async def leave_prompt(self) -> tuple[Reply, tuple[int, ...]]:
        """Hangs up, mostly before the first token."""
        body = chat(self._draw.choice(self._models), self._text() + SENTENCE * 15, 4)
        return await ask(self._port, CHAT, body, leave_s=self._draw.uniform(0.0, 0.2)), (0, 200)

    async def schema(self) -> tuple[Reply, tuple[int, ...]]:
        """A grammar that was not seen before."""
        field = f"n{self._draw.randrange(10**6)}"
        properties = {field: {"type": "integer", "minimum": 0, "maximum": 9}, "sure": {"type": "boolean"}}
        schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        rules = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        return await ask(self._port, CHAT, self._chat(40, response_format=rules)), (200,)

    async def completion(self) -> tuple[Reply, tuple[int, ...]]:
        """Two texts at once, with log-probabilities."""
        body = {"model": "base", "prompt": [self._text(), self._text()], "max_tokens": 6, "logprobs": 2}
        return await ask(self._port, "/v1/completions", body), (200,)

    async def response(self) -> tuple[Reply, tuple[int, ...]]:
        """The same as items."""
        body = {"model": self._draw.choice(self._models), "input": self._text(), "max_output_tokens": 8}
        return await ask(self._port, "/v1/responses", {**body, "stream": self._draw.random() < 0.5}), (200,)

    async def several(self) -> tuple[Reply, tuple[int, ...]]:
        """Two answers to one question."""
        return await ask(self._port, CHAT, self._chat(6, n=2, temperature=0.8, logprobs=True, top_logprobs=3)), (200,)

    async def tools(self) -> tuple[Reply, tuple[int, ...]]:
        """Tools; some templates cannot call them."""
        tool = {"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}
        return await ask(self._port, CHAT, self._chat(8, tools=[tool])), (200, 400)

    async def read(self) -> tuple[Reply, tuple[int, ...]]:
        """What the server says of itself."""
        return await ask(self._port, self._draw.choice(_READ)), (200, 404)

    async def count(self) -> tuple[Reply, tuple[int, ...]]:
        """A text as tokens."""
        return await ask(self._port, "/tokenize", {"content": self._text()}), (200,)

    async def wrong(self) -> tuple[Reply, tuple[int, ...]]:
        """What is refused."""
        body = self._chat(4) | {"messages": [{"role": "user", "content": SENTENCE * 2000}]}
        return await ask(self._port, CHAT, self._draw.choice([*_WRONG, body])), (400, 404)
