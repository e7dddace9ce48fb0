"""What requests may hold, as types: msgspec decodes into them, and /openapi.json is made from them.

A field that is not here is let through and named in the header `x-slm-ignored`. Fields that would change an answer in
a way that cannot be kept are here all the same, and `checks.ONLY` says which of their values pass.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

# Longer lists are no conversation that a device could read.
MOST_MESSAGES, MOST_PARTS, MOST_STOPS, MOST_TOOLS, MOST_PROMPTS = 1000, 1000, 16, 128, 64
MOST_BIASES, MOST_CHOICES = 1024, 256
Text = Annotated[str, Meta(min_length=1)]
Stop = Annotated[str, Meta(min_length=1, max_length=1000)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Choices = Annotated[list[Text], Meta(min_length=1, max_length=MOST_CHOICES)]
Told = Annotated[dict[str, Any], Meta(description="What the chat template is told beside the messages.")]
Model = Annotated[str, Meta(min_length=1, max_length=200)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Part(Struct, kw_only=True):
    """A part of a message; text alone is read."""

    type: str
    text: str | None = None


class CalledFunction(Struct, kw_only=True):
    name: Name
    arguments: str


class ToolCall(Struct, kw_only=True):
    id: Text
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct, kw_only=True):
    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Meta(max_length=MOST_PARTS)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MOST_TOOLS)] | None = None
    tool_call_id: str | None = None
    # What it thought before; the chat template decides whether that is written
    reasoning_content: str | None = None


class StreamOptions(Struct, kw_only=True):
    include_usage: bool | None = None
    # Padding against those who watch the wire; there is none here.
    include_obfuscation: bool | None = None


class SchemaFormat(Struct, kw_only=True):
    name: Name = "answer"
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    # Where llama.cpp's server and others take it
    schema: dict[str, Any] | bool | None = None


class ToolFunction(Struct, kw_only=True):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Struct, kw_only=True):
    name: str


class FunctionName(Struct, kw_only=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class AllowedTools(Struct, kw_only=True):
    """Some of the tools, which the model may call, or must call one of."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionName], Meta(min_length=1, max_length=MOST_TOOLS)]


class NamedTool(Struct, kw_only=True):
    """One tool that must be called, or those that may be."""

    type: Literal["function", "allowed_tools"] = "function"
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class StructuredOutputs(Struct, kw_only=True):
    """What vLLM's answers keep to; one of them."""

    json: dict[str, Any] | str | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None


class Drawn(Struct, kw_only=True):
    """How an answer is drawn; null is as left out: as the adapter's task card says."""

    model: Model
    adapter: str | dict[str, float | str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    presence_penalty: (
        Annotated[float, Meta(ge=-2, le=2, description="Taken off the logits of what the answer has said.")] | None
    ) = None
    frequency_penalty: (
        Annotated[float, Meta(ge=-2, le=2, description="The same for each time that it was said.")] | None
    ) = None
    repetition_penalty: (
        Annotated[
            float,
            Meta(gt=0, le=100, description="Divides the logits of what prompt and answer hold, as vLLM has it."),
        ]
        | None
    ) = None
    repeat_penalty: (
        Annotated[
            float,
            Meta(gt=0, le=100, description="Of the last `repeat_last_n` tokens alone, as llama.cpp has it."),
        ]
        | None
    ) = None
    repeat_last_n: (
        Annotated[int, Meta(ge=-1, le=1 << 30, description="64 where it is left out; -1 is all of them.")] | None
    ) = None
    logit_bias: (
        Annotated[
            dict[str, Bias],
            Meta(max_length=MOST_BIASES, description="Added to the logits of tokens, by their ids as texts."),
        ]
        | None
    ) = None
    min_tokens: (
        Annotated[int, Meta(ge=0, le=1 << 30, description="Before so many no end token and no stop text ends it.")]
        | None
    ) = None
    ignore_eos: Annotated[bool, Meta(description="End tokens do not end it.")] | None = None
    timeout_s: (
        Annotated[float, Meta(gt=0, le=86400, description="Given up if it is not whole after so many seconds.")] | None
    ) = None
    # What was computed for a prompt serves those of the same salt alone.
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    service_tier: str | None = None
    # Others' own ways to say what `adapter` and `response_format` say here
    lora: Any = None
    grammar: Any = None
    json_schema: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Text | None = None
    guided_grammar: Any = None
    guided_choice: Choices | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template: Any = None


class Streamed(Drawn, kw_only=True):
    """What /v1/chat/completions and /v1/completions share."""

    max_tokens: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MOST_STOPS)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: int | None = None


class ChatRequest(Streamed, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: Told | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None
    audio: Any = None
    # A guess at the answer, which changes how soon it is there at most
    prediction: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(Streamed, kw_only=True):
    """Body of POST /v1/completions."""

    # A text, several, token ids, or several lists of them
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=1 << 17)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class Item(Struct, kw_only=True):
    """One item of a response's input: a message, a call, what a call gave back."""

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = "message"
    role: Literal["developer", "system", "user", "assistant"] | None = None
    content: str | Annotated[list[Part], Meta(max_length=MOST_PARTS)] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Annotated[list[Part], Meta(max_length=MOST_PARTS)] | None = None
    id: str | None = None
    status: str | None = None


class FlatTool(Struct, kw_only=True):
    """A tool as /v1/responses has it, without a level of its own for the function."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatName(Struct, kw_only=True):
    name: str
    type: Literal["function"] = "function"


class FlatNamedTool(Struct, kw_only=True):
    """As `NamedTool`, without a level of its own for the function."""

    type: Literal["function", "allowed_tools"] = "function"
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[FlatName], Meta(min_length=1, max_length=MOST_TOOLS)] | None = None


class FlatFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    name: Name = "answer"
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Struct, kw_only=True):
    format: FlatFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Struct, kw_only=True):
    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(Drawn, kw_only=True):
    """Body of POST /v1/responses; nothing is stored, so `input` is the whole conversation."""

    input: Text | Annotated[list[Item], Meta(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FlatTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    include: list[str] | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: Told | None = None
    truncation: str | None = None
    max_tool_calls: int | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=0)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    """Body of POST /tokenize: a text, or a conversation through the chat template."""

    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(max_length=MOST_MESSAGES)] | None = None
    model: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Told | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """Body of POST /detokenize."""

    tokens: Annotated[list[Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]], Meta(max_length=1 << 17)]
    model: str | None = None
