"""What answers look like, as types: /openapi.json describes them by these, and tests hold real answers against it."""

from typing import Any, Literal

from msgspec import Struct


class ErrorRow(Struct, kw_only=True):
    """What went wrong; `param` is the path of the field at fault, `code` one word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct, kw_only=True):
    error: ErrorRow


class HealthAnswer(Struct, kw_only=True):
    status: Literal["ok", "loading", "draining", "failed", "hung"]


class ModelRow(Struct, kw_only=True):
    """A model; `parent` is the base's id, `slm_edge` has digest, task and scores of an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    slm_edge: dict[str, Any]
    meta: dict[str, Any] = {}


class ModelsAnswer(Struct, kw_only=True):
    object: Literal["list"]
    data: list[ModelRow]


class CachedTokens(Struct, kw_only=True):
    cached_tokens: int


class Usage(Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class RouterRow(Struct, kw_only=True):
    """What the router chose, and how sure it was."""

    adapter: str | None
    confidence: float
    runner_up: str | None
    runner_up_confidence: float
    stayed: bool


class Facts(Struct, kw_only=True):
    """Who answered, and how long it took."""

    adapter: str | None
    digest: str | None
    scale: float | None = None
    router: RouterRow | None = None
    queue_ms: float = 0
    prefill_ms: float = 0
    kept_tokens: int = 0
    tokens_per_s: float | None = None


class AnsweredFunction(Struct, kw_only=True):
    name: str
    arguments: str


class AnsweredCall(Struct, kw_only=True):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(Struct, kw_only=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] = []


class TopRow(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenRow(TopRow, kw_only=True):
    top_logprobs: list[TopRow]


class ChatLogprobs(Struct, kw_only=True):
    content: list[TokenRow]
    refusal: None


Finish = Literal["stop", "length", "tool_calls"]


class ChatChoice(Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class Answered(Struct, kw_only=True):
    """What all answers have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    slm_edge: Facts


class ChatAnswer(Answered, kw_only=True):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class CompletionAnswer(Answered, kw_only=True):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class OutputText(Struct, kw_only=True):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputItem(Struct, kw_only=True):
    """A message, or a call of a tool."""

    id: str
    type: Literal["message", "function_call"]
    status: Literal["completed", "incomplete", "in_progress"]
    role: Literal["assistant"] | None = None
    content: list[OutputText] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class ReasoningTokens(Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseAnswer(Struct, kw_only=True):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    error: Any
    incomplete_details: Any
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    slm_edge: Facts


class PieceRow(Struct, kw_only=True):
    id: int
    piece: str


class TokensAnswer(Struct, kw_only=True):
    tokens: list[int | PieceRow]
    count: int
    max_model_len: int


class TextAnswer(Struct, kw_only=True):
    content: str
    prompt: str
