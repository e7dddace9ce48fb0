"""POST /v1/chat/completions: a conversation answered whole, or as events while the answer is made."""

import secrets
from collections.abc import Sequence
from typing import Any

from ..answer.stream import Answer
from ..scheduler.ticket import Piece
from .calls import Argued, Begun, CallReader, Form, Said
from .calls import Event as CallEvent
from .checks import decoded
from .conversation import conversation, rules_asked, settings_of, template_args_of
from .faults import Fault
from .fields import ChatRequest
from .reply import Call, Spoken, entries
from .service import FINISH, Asked, Service
from .streaming import MARK, Choices, Event, stream
from .tools import choice_of


async def chat(service: Service, call: Call) -> None:
    """Answers a chat request.

    Raises:
        Fault: it cannot be answered, or not now.
        Gone: whoever asked has hung up.
    """
    request, ignored = decoded(call.body, ChatRequest)
    service.note_ignored(call, ignored, ChatRequest)
    messages = conversation(request.messages)
    if request.stream_options is not None and not request.stream:
        raise Fault(400, "invalid_value", "`stream_options` goes with `stream`", param="stream_options")
    if request.top_logprobs and not request.logprobs:
        raise Fault(400, "invalid_value", "`top_logprobs` goes with `logprobs`", param="top_logprobs")
    tools = choice_of(request, service.engine.chat_template)
    rules, place = rules_asked(request, request.response_format)
    if tools.rules is not None and rules is not None:
        text = "an answer keeps to a schema or calls tools, not both"
        raise Fault(400, "unsupported_value", text, param=place.partition(".")[0])
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    settings = settings_of(request, most, service.n_ctx_tokens)
    effort = request.reasoning_effort
    settings["add_generation_prompt"] = request.add_generation_prompt
    settings["continue_final_message"] = request.continue_final_message
    settings["template_args"] = template_args_of(
        request.chat_template_kwargs, effort, "reasoning_effort", service.facts
    )
    asked = await service.submit(
        call,
        request,
        [messages],  # type: ignore[list-item]
        settings,
        n=request.n or 1,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        rules=tools.rules or rules,
        rules_place="tools" if tools.rules is not None else place,
        tools=tools.shown,
    )
    reply = _Reply(service, request, asked, tools.form)
    if request.stream:
        await stream(service, call, asked, reply)
    else:
        await reply.whole(call)


class _Reply(Choices):
    """One answer to a chat request; a `streaming.Shape`."""

    def __init__(self, service: Service, request: ChatRequest, asked: Asked, form: Form | None) -> None:
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        super().__init__(service, request, asked, "chatcmpl", kind)
        self._with_logprobs = bool(request.logprobs)
        self._readers = [CallReader(form) for _ in asked.tickets] if form is not None else []

    async def choice(self, i: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": i,
            "message": self._message(i, answer),
            "logprobs": await self._logprobs(self._asked.tickets[i].pieces),
            "finish_reason": self._reason(i, answer),
        }

    def _message(self, i: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thinking:
            message["reasoning_content"] = answer.thinking
        if self._readers:
            reader = self._readers[i]
            events = [*reader.feed(answer.text), *reader.finish()]
            text = "".join(event.text for event in events if isinstance(event, Said))
            calls: list[dict[str, Any]] = []
            for event in events:
                if isinstance(event, Begun):
                    calls.append(_call(len(calls), event.name))
                    del calls[-1]["index"]
                elif isinstance(event, Argued):
                    calls[-1]["function"]["arguments"] += event.text
            message["content"] = text if text or not calls else None
            if calls:
                message["tool_calls"] = calls
        return message

    def _reason(self, i: int, answer: Answer) -> str:
        whole = FINISH[answer.stop_reason]
        return "tool_calls" if whole == "stop" and self._readers and self._readers[i].n_calls else whole

    async def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        spoken = await self._service.run(lambda: Spoken.of(self._service.engine, pieces))
        return {"content": entries(pieces, spoken), "refusal": None}

    # As events

    def opening(self) -> list[Event]:
        """The role of each choice, and who answers."""
        rows = [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(len(self._asked.tickets))]
        rows[0]["slm_edge"] = self._asked.facts()
        return [(None, row) for row in rows]

    async def piece(self, i: int, piece: Piece) -> list[Event]:
        """What of a step can be shown: text, or parts of calls."""
        logprobs = await self._logprobs([piece]) if piece.token_id is not None else None
        if not self._readers:
            deltas = [{"content": piece.text}] if piece.text else []
        else:
            deltas = self._deltas(i, self._readers[i].feed(piece.text))
        if piece.thinking:
            deltas.insert(0, {"reasoning_content": piece.thinking})
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        # The first one has the token's; what more there is, is of the same token.
        return [(None, self._chunk(i, delta, logprobs=None if j else logprobs)) for j, delta in enumerate(deltas)]

    def frame(self) -> Event | None:
        """Text alone, where no calls are looked for in it."""
        return None if self._readers or self._with_logprobs else (None, self._chunk(0, {"content": MARK}))

    def _deltas(self, i: int, events: Sequence[CallEvent]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for event in events:
            if isinstance(event, Said):
                deltas.append({"content": event.text})
            elif isinstance(event, Begun):
                deltas.append({"tool_calls": [_call(event.call, event.name)]})
            else:
                part = {"index": event.call, "function": {"arguments": event.text}}
                deltas.append({"tool_calls": [part]})
        return deltas

    def ended(self, i: int, answer: Answer) -> list[Event]:
        """What was held back, then an empty delta with the reason."""
        deltas = self._deltas(i, self._readers[i].finish()) if self._readers else []
        rows = [self._chunk(i, delta) for delta in deltas]
        rows.append(self._chunk(i, {}, self._reason(i, answer)))
        if i == 0:
            rows[-1]["slm_edge"] = self._asked.facts(answer)
        return [(None, row) for row in rows]

    def _chunk(self, i: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return self.chunk({"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": reason})


def _call(index: int, name: str) -> dict[str, Any]:
    """A call that begins."""
    function = {"name": name, "arguments": ""}
    return {"index": index, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
