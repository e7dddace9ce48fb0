"""Bodies of requests to `slm-edge serve`: damaged, through what reads them before the engine sees any of it."""

import json
import random
from pathlib import Path
from typing import Any, Final

import msgspec

from ...edge.errors import InputError
from ...edge.openai.checks import decoded
from ...edge.openai.conversation import conversation, rules_asked, settings_of
from ...edge.openai.faults import Fault
from ...edge.openai.fields import ChatRequest, CompletionRequest, DetokenizeRequest, ResponsesRequest, TokenizeRequest
from ...edge.openai.responses import as_chat
from ...edge.openai.tools import choice_of
from .damage import damaged_bytes, damaged_value
from .text_kinds import made_schema

_SCHEMA: Final = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"$ref": "#/$defs/s"}},
    "$defs": {"s": {}},
}
_TOOL: Final = {"name": "count", "description": "Counts.", "parameters": _SCHEMA}
_CALL: Final = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": '{"n": 1}'}}
_CHAT: Final = {
    "model": "math",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ],
    "adapter": {"math": 0.7, "code": 0.3},
    "temperature": 0.5,
    "stop": ["END"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA, "strict": True}},
    "tools": [{"type": "function", "function": _TOOL}],
    "tool_choice": {"type": "function", "function": {"name": "count"}},
    "logit_bias": {},
    "metadata": {"a": "b"},
}
_RESPONSE: Final = {
    "model": "math",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "How many?"}]},
        {"type": "function_call", "call_id": "c1", "name": "count", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ],
    "instructions": "Be brief.",
    "tools": [{"type": "function", **_TOOL}],
    "tool_choice": {"type": "function", "name": "count"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": _SCHEMA}},
}
BODIES: Final[dict[str, tuple[Any, type[msgspec.Struct]]]] = {
    "/v1/chat/completions": (_CHAT, ChatRequest),
    "/v1/responses": (_RESPONSE, ResponsesRequest),
    "/v1/completions": ({"model": "math", "prompt": ["a", [1, 2]], "max_tokens": 4, "n": 2}, CompletionRequest),
    "/tokenize": ({"content": "a<|im_end|>", "parse_special": True, "model": "math"}, TokenizeRequest),
    "/detokenize": ({"tokens": [1, 2, 3], "model": None}, DetokenizeRequest),
}
# A template whose model calls tools
_TEMPLATE: Final = '{{ tools }}<tool_call>{"name": x, "arguments": y}'


def damaged_body(draw: random.Random) -> tuple[str, bytes]:
    """A path, and a body that was once right for it."""
    path = draw.choice([*BODIES])
    value = damaged_value(draw, BODIES[path][0], draw.randrange(4))
    if isinstance(value, dict) and draw.random() < 0.3:
        # A whole schema, as strange as they come
        schema = made_schema(draw)
        if path == "/v1/chat/completions":
            value["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        elif path == "/v1/responses":
            value["text"] = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    body = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    return path, damaged_bytes(draw, body) if draw.random() < 0.3 else body


class RequestKind:
    """Bodies of requests."""

    kind = "request"

    def prepare(self, folder: Path) -> None:
        """Nothing: the right bodies stand above."""

    def make(self, draw: random.Random, folder: Path) -> None:
        """One body, with the path that it is for."""
        path, body = damaged_body(draw)
        (folder / "path").write_text(path, encoding="utf-8")
        (folder / "body").write_bytes(body)

    def use(self, folder: Path) -> object:
        """Decoded, checked, made a conversation, settings and rules; a refusal is as good, if it can be sent."""
        kind = BODIES[(folder / "path").read_text(encoding="utf-8")][1]
        try:
            request, ignored = decoded((folder / "body").read_bytes(), kind)
            if isinstance(request, ResponsesRequest):
                request = as_chat(request)
            if isinstance(request, ChatRequest):
                conversation(request.messages)
                settings_of(request, request.max_tokens, 2048)
                rules_asked(request, request.response_format)
                choice_of(request, _TEMPLATE)
            return msgspec.json.encode(ignored)
        except Fault as fault:
            msgspec.json.encode(fault.as_dict())
            raise InputError(fault.message) from None

    def run(self, folder: Path) -> object:
        """Nothing more: a server runs them."""
        return None
