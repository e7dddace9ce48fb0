"""POST /v1/responses: a conversation as items, answered by items. Nothing is stored: `input` is all that there is."""

import copy
import itertools
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from ..answer.stream import Answer
from ..scheduler.ticket import Piece
from .calls import Argued, Begun, CallReader, Form, Said
from .calls import Event as CallEvent
from .checks import decoded
from .conversation import conversation, other_rules, rules_of, settings_of, template_args_of
from .faults import Fault
from .fields import (
    AllowedTools,
    CalledFunction,
    ChatMessage,
    ChatRequest,
    FlatNamedTool,
    FunctionName,
    Item,
    NamedFunction,
    NamedTool,
    Reasoning,
    ResponseFormat,
    ResponsesRequest,
    SchemaFormat,
    Tool,
    ToolCall,
    ToolFunction,
)
from .reply import Call
from .service import Asked, Service, numbers_of
from .streaming import Event, Reading, now_s, stream
from .tools import choice_of


async def respond(service: Service, call: Call) -> None:
    """Answers a request for a response; raises as `chat.chat`."""
    request, ignored = decoded(call.body, ResponsesRequest)
    service.note_ignored(call, ignored, ResponsesRequest)
    asked_as = as_chat(request)
    messages = conversation(asked_as.messages, "input")
    tools = choice_of(asked_as, service.engine.chat_template)
    rules, place = rules_of(asked_as.response_format, "text.format.schema"), "text.format.schema"
    if (other := other_rules(request)) is not None:
        rules, place = other
    if tools.rules is not None and rules is not None:
        text = "an answer keeps to a schema or calls tools, not both"
        raise Fault(400, "unsupported_value", text, param=place.removesuffix(".schema"))
    settings = settings_of(request, request.max_output_tokens, service.n_ctx_tokens)
    effort = _effort_of(request.reasoning)
    settings["template_args"] = template_args_of(
        request.chat_template_kwargs, effort, "reasoning.effort", service.facts
    )
    asked = await service.submit(
        call,
        request,
        [messages],  # type: ignore[list-item]
        settings,
        rules=tools.rules or rules,
        rules_place="tools" if tools.rules is not None else place,
        tools=tools.shown,
    )
    reply = _Reply(request, asked, tools.form)
    if request.stream:
        await stream(service, call, asked, reply)
        return
    async with Reading(asked.tickets, call.receive, service.observer) as reading:
        answers = await reading.answers()
    call.headers["x-slm-queue-ms"] = asked.queue_ms()
    call.facts |= numbers_of(answers)
    await call.answer(reply.whole(answers[0]))


def _choice(given: FlatNamedTool) -> NamedTool:
    """A choice of tools as a chat request has it; Fault where what goes with its type is missing."""
    wanted, value, other = (
        ("name", given.name, given.tools) if given.type == "function" else ("tools", given.tools, given.name)
    )
    if value is None or other is not None:
        place = f"tool_choice.{wanted}"
        raise Fault(400, "missing_required_parameter", f"{place}: it goes with this type, and alone", param=place)
    function = None if given.name is None else NamedFunction(name=given.name)
    allowed = None
    if given.tools is not None:
        some = [FunctionName(function=NamedFunction(name=one.name)) for one in given.tools]
        allowed = AllowedTools(mode=given.mode or "auto", tools=some)
    return NamedTool(type=given.type, function=function, allowed_tools=allowed)


def _effort_of(reasoning: Reasoning | None) -> str | None:
    """How hard the model is to think; Fault where a summary of that is asked for."""
    if reasoning is None:
        return None
    for name in ("summary", "generate_summary"):
        if getattr(reasoning, name) is not None:
            place = f"reasoning.{name}"
            raise Fault(400, "unsupported_parameter", f"`{place}` is not supported here", param=place)
    return reasoning.effort


def as_chat(request: ResponsesRequest) -> ChatRequest:
    """The same as a chat request has it."""
    messages = [] if request.instructions is None else [ChatMessage(role="system", content=request.instructions)]
    if isinstance(request.input, str):
        messages.append(ChatMessage(role="user", content=request.input))
    else:
        for i, item in enumerate(request.input):
            _add(messages, item, f"input[{i}]")
    if not messages:
        raise Fault(400, "invalid_value", "input: there is no message in it", param="input")
    tools = None
    if request.tools is not None:
        tools = [
            Tool(
                type="function",
                function=ToolFunction(name=one.name, description=one.description, parameters=one.parameters),
            )
            for one in request.tools
        ]
    given = request.tool_choice
    choice = _choice(given) if isinstance(given, FlatNamedTool) else given
    wanted = None if request.text is None else request.text.format
    kept = None
    if wanted is not None:
        schema = SchemaFormat(name=wanted.name, schema=wanted.schema, strict=wanted.strict)
        kept = ResponseFormat(type=wanted.type, json_schema=schema)
    return ChatRequest(
        model=request.model,
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=kept,
    )


def _add(messages: list[ChatMessage], item: Item, place: str) -> None:
    """An item as a message; calls belong to the assistant's message before them."""
    if item.type == "message":
        if item.role is None:
            raise Fault(400, "missing_required_parameter", f"{place}.role: it is missing", param=f"{place}.role")
        messages.append(ChatMessage(role=item.role, content=item.content))
    elif item.type == "function_call":
        if not item.call_id or not item.name:
            raise Fault(400, "missing_required_parameter", f"{place}: it has no call_id and name", param=place)
        called = CalledFunction(name=item.name, arguments=item.arguments or "")
        if not messages or messages[-1].role != "assistant":
            messages.append(ChatMessage(role="assistant"))
        messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), ToolCall(id=item.call_id, function=called)]
    elif item.type == "function_call_output":
        messages.append(ChatMessage(role="tool", tool_call_id=item.call_id, content=item.output))
    elif item.type == "item_reference":
        raise Fault(400, "unsupported_value", "nothing is stored here; send the item itself", param=place)
    # Reasoning of another model says nothing to this one.


class _Reply:
    """One response, built from the pieces of its answer; a `streaming.Shape`."""

    ends_with_done = False

    def __init__(self, request: ResponsesRequest, asked: Asked, form: Form | None) -> None:
        self._asked = asked
        self._reader = CallReader(form) if form is not None else None
        self._numbers = itertools.count()
        self._output: list[dict[str, Any]] = []
        self._is_open = False
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": now_s(),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": asked.model,
            "output": self._output,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": {"type": "text"}} if request.text is None else msgspec.to_builtins(request.text),
            "tool_choice": _without_null(msgspec.to_builtins(request.tool_choice or "auto")),
            "tools": [] if request.tools is None else msgspec.to_builtins(request.tools),
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
            "metadata": request.metadata or {},
            "slm_edge": asked.facts(),
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The response, once all is there."""
        self._read(answer.text)
        self.ended(0, answer)
        return self._response

    # As events

    def opening(self) -> list[Event]:
        """It is there, and in the making."""
        return [self._event(f"response.{name}", response=self._response) for name in ("created", "in_progress")]

    async def piece(self, i: int, piece: Piece) -> list[Event]:
        """Parts of items."""
        return self._read(piece.text)

    def frame(self) -> Event | None:
        """Each event has a number of its own."""
        return None

    def _read(self, text: str) -> list[Event]:
        if self._reader is not None:
            return self._events(self._reader.feed(text))
        return self._events([Said(text)] if text else [])

    def ended(self, i: int, answer: Answer) -> list[Event]:
        """The last item is whole, and so is the response."""
        events = self._events(self._reader.finish()) if self._reader is not None else []
        cut = answer.stop_reason in ("max_tokens", "context")
        events += self._close("incomplete" if cut else "completed")
        self._response["status"] = "incomplete" if cut else "completed"
        if cut:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._response["usage"] = {
            "input_tokens": answer.n_prompt_tokens,
            "input_tokens_details": {"cached_tokens": answer.n_kept_tokens},
            "output_tokens": answer.n_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.n_prompt_tokens + answer.n_tokens,
        }
        self._response["slm_edge"] = self._asked.facts(answer)
        return events

    def last(self, answers: Sequence[Answer]) -> list[Event]:
        """The whole response."""
        return [self._event(f"response.{self._response['status']}", response=self._response)]

    def failed(self, fault: Fault) -> list[Event]:
        """It broke off."""
        self._response |= {"status": "failed", "error": {"code": "server_error", "message": fault.message}}
        return [self._event("response.failed", response=self._response)]

    def _events(self, parts: Sequence[CallEvent]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Said):
                events += self._open_message()
                self._output[-1]["content"][0]["text"] += part.text
                events.append(self._part("response.output_text.delta", delta=part.text, logprobs=[]))
            elif isinstance(part, Begun):
                events += [*self._close("completed"), *self._open_call(part.name)]
            elif isinstance(part, Argued):
                self._output[-1]["arguments"] += part.text
                events.append(self._item("response.function_call_arguments.delta", delta=part.text))
        return events

    def _open_message(self) -> list[Event]:
        if self._is_open and self._output[-1]["type"] == "message":
            return []
        events = self._close("completed")
        item: dict[str, Any] = {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "status": "in_progress"}
        item |= {"role": "assistant", "content": []}
        self._output.append(item)
        self._is_open = True
        events.append(self._event("response.output_item.added", output_index=len(self._output) - 1, item=_copy(item)))
        item["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        return [*events, self._part("response.content_part.added", part=_copy(item["content"][0]))]

    def _open_call(self, name: str) -> list[Event]:
        item = {"id": f"fc_{secrets.token_hex(16)}", "type": "function_call", "status": "in_progress"}
        item |= {"call_id": f"call_{secrets.token_hex(12)}", "name": name, "arguments": ""}
        self._output.append(item)
        self._is_open = True
        return [self._event("response.output_item.added", output_index=len(self._output) - 1, item=_copy(item))]

    def _close(self, status: str) -> list[Event]:
        """Ends the item that is open."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "message":
            part = _copy(item["content"][0])
            events = [
                self._part("response.output_text.done", text=part["text"], logprobs=[]),
                self._part("response.content_part.done", part=part),
            ]
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._item("response.function_call_arguments.done", **done)]
        index = len(self._output) - 1
        return [*events, self._event("response.output_item.done", output_index=index, item=_copy(item))]

    def _part(self, kind: str, **more: Any) -> Event:
        return self._item(kind, content_index=0, **more)

    def _item(self, kind: str, **more: Any) -> Event:
        return self._event(kind, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **more)

    def _event(self, kind: str, **more: Any) -> Event:
        # What grows on would else be sent as it is later.
        data = {name: _copy(value) if name == "response" else value for name, value in more.items()}
        return kind, {"type": kind, "sequence_number": next(self._numbers), **data}


def _without_null(value: Any) -> Any:
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def _copy(value: dict[str, Any]) -> dict[str, Any]:
    """As it is now."""
    return copy.deepcopy(value)
