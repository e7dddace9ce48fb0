"""POST /v1/completions: a text goes on, without chat template and system message; and /tokenize, /detokenize."""

from collections.abc import Sequence
from typing import Any, Final

from ..answer.settings import Settings, turn_of
from ..answer.stream import Answer
from ..errors import SlmEdgeError
from ..scheduler.ticket import Piece
from .checks import decoded
from .conversation import conversation, rules_asked, settings_of, template_args_of
from .faults import Fault, fault_of
from .fields import MOST_PROMPTS, CompletionRequest, DetokenizeRequest, TokenizeRequest
from .reply import Call, Spoken, legacy
from .service import FINISH, Asked, Service
from .streaming import MARK, Choices, Event, stream

# More letters than that a token rarely has.
TOKEN_LETTERS: Final = 64
MOST_LETTERS: Final = 256 << 10


async def complete(service: Service, call: Call) -> None:
    """Answers a completion request; raises as `chat.chat`."""
    request, ignored = decoded(call.body, CompletionRequest)
    service.note_ignored(call, ignored, CompletionRequest)
    if request.stream_options is not None and not request.stream:
        raise Fault(400, "invalid_value", "`stream_options` goes with `stream`", param="stream_options")
    prompts = _prompts(request.prompt)
    n = request.n or 1

    def ids_of() -> list[list[int]]:
        # What a text says stays text: no control tokens are made of it.
        return [service.engine.tokenize(one) if isinstance(one, str) else one for one in prompts]

    longest = max((len(one) for one in prompts), default=0)
    if longest > TOKEN_LETTERS * service.n_ctx_tokens:
        # Told before it is cut into tokens, which others would wait for.
        text = f"the prompt has {longest} letters or tokens; {service.n_ctx_tokens} tokens are possible"
        raise Fault(400, "context_length_exceeded", text, param="prompt")
    try:
        ids = await service.run(ids_of)
    except SlmEdgeError as error:
        raise fault_of(error, "prompt") from None
    for one in ids:
        if not one:
            raise Fault(400, "invalid_value", "prompt: it is empty", param="prompt")
    settings = settings_of(request, request.max_tokens, service.n_ctx_tokens)
    rules, place = rules_asked(request)
    asked = await service.submit(
        call, request, ids, settings, n=n, logprobs=request.logprobs, rules=rules, rules_place=place
    )
    reply = _Reply(service, request, asked)
    if request.stream:
        await stream(service, call, asked, reply)
    else:
        await reply.whole(call)


class _Reply(Choices):
    """One answer to a completion request; a `streaming.Shape`."""

    def __init__(self, service: Service, request: CompletionRequest, asked: Asked) -> None:
        super().__init__(service, request, asked, "cmpl", "text_completion")
        self._with_logprobs = request.logprobs is not None

    async def choice(self, i: int, answer: Answer) -> dict[str, Any]:
        return _choice(i, answer.text, FINISH[answer.stop_reason], await self._logprobs(self._asked.tickets[i].pieces))

    async def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return legacy(pieces, await self._service.run(lambda: Spoken.of(self._service.engine, pieces)))

    def opening(self) -> list[Event]:
        """Nothing: the first event has text."""
        return []

    async def piece(self, i: int, piece: Piece) -> list[Event]:
        """A step's text."""
        if not piece.text and not (self._with_logprobs and piece.token_id is not None):
            return []
        return [(None, self.chunk(_choice(i, piece.text, None, await self._logprobs([piece]))))]

    def frame(self) -> Event | None:
        """Text alone."""
        return None if self._with_logprobs else (None, self.chunk(_choice(0, MARK, None)))

    def ended(self, i: int, answer: Answer) -> list[Event]:
        """The reason of the end."""
        return [(None, self.chunk(_choice(i, "", FINISH[answer.stop_reason])))]


def _choice(i: int, text: str, reason: str | None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _prompts(given: str | Sequence[Any]) -> list[Any]:
    """Texts and lists of token ids, each a prompt of its own."""
    if isinstance(given, str):
        return [given]
    if all(isinstance(one, int) for one in given):
        return [list(given)]
    if any(isinstance(one, int) for one in given):
        raise Fault(400, "invalid_value", "prompt: it mixes token ids with texts or lists", param="prompt")
    if len(given) > MOST_PROMPTS:
        raise Fault(400, "invalid_value", f"prompt: {len(given)} prompts; {MOST_PROMPTS} are possible", param="prompt")
    return list(given)


async def tokenize(service: Service, call: Call) -> None:
    """Token ids of a text, or of a conversation through the chat template."""
    request, ignored = decoded(call.body, TokenizeRequest)
    service.note_ignored(call, ignored, TokenizeRequest)
    text = request.content if request.content is not None else request.prompt
    if (text is None) == (request.messages is None):
        raise Fault(400, "invalid_value", "give `content`, or `messages`", param="content")
    if text is not None and len(text) > MOST_LETTERS:
        text = f"the text has {len(text)} letters; {MOST_LETTERS} are possible"
        raise Fault(400, "invalid_value", text, param="content")
    if request.add_special:
        raise Fault(400, "unsupported_value", "the chat template writes what a prompt begins with", param="add_special")
    messages = None if request.messages is None else conversation(request.messages)
    told = template_args_of(request.chat_template_kwargs, None, "", service.facts)
    settings: Settings = {
        "add_generation_prompt": request.add_generation_prompt,
        "continue_final_message": request.continue_final_message,
    }

    def work() -> list[int]:
        if messages is None:
            return service.engine.tokenize(text or "", special=bool(request.parse_special))
        catalogue = service.catalogue()
        found = catalogue.found(request.model or catalogue.base_name, call.may_ask)
        adapter = None if found == catalogue.base_name else found
        return service.engine.prompt_tokens(messages, adapter, template_args=told, turn=turn_of(settings))  # type: ignore[arg-type]

    def with_pieces(ids: list[int]) -> list[Any]:
        if not request.with_pieces:
            return ids
        return [
            {"id": one, "piece": piece.decode("utf-8", "replace")}
            for one, piece in zip(ids, service.engine.token_bytes(ids), strict=True)
        ]

    try:
        ids = await service.run(work)
        tokens = await service.run(lambda: with_pieces(ids))
    except SlmEdgeError as error:
        raise fault_of(error, "content" if messages is None else "messages") from None
    await call.answer({"tokens": tokens, "count": len(ids), "max_model_len": service.n_ctx_tokens})


async def detokenize(service: Service, call: Call) -> None:
    """The text of token ids."""
    request, ignored = decoded(call.body, DetokenizeRequest)
    service.note_ignored(call, ignored, DetokenizeRequest)
    try:
        text = await service.run(lambda: service.engine.detokenize(request.tokens, special=True))
    except SlmEdgeError as error:
        raise fault_of(error, "tokens") from None
    await call.answer({"content": text, "prompt": text})
