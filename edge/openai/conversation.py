"""A request's messages as the engine takes them, its settings, and the rules that its answer keeps to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..answer.settings import Settings
from ..errors import SlmEdgeError
from .faults import Fault, fault_of
from .fields import ChatMessage, Drawn, Part, ResponseFormat, Streamed

if TYPE_CHECKING:
    from ..grammar.rules import Rules

# Seeds of the engine are below; others are folded into them, always in the same way.
N_SEEDS: Final = (1 << 32) - 1
SCHEMA_PLACE: Final = "response_format.json_schema.schema"


def conversation(messages: Sequence[ChatMessage], where: str = "messages") -> list[dict[str, Any]]:
    """Messages with a role and a text each, tool calls as chat templates take them.

    System messages at the beginning become one; "developer" is another word for "system".

    Raises:
        Fault: 400; a part that is no text, a tool's result that belongs to no call, arguments that are no JSON.
    """
    made: list[dict[str, Any]] = []
    calls: set[str] = set()
    for i, message in enumerate(messages):
        place = f"{where}[{i}]"
        text = text_of(message.content, f"{place}.content")
        role = "system" if message.role == "developer" else message.role
        if message.tool_calls and role != "assistant":
            raise Fault(400, "invalid_value", f"a message of {role!r} has no tool_calls", param=f"{place}.tool_calls")
        if role == "tool":
            if message.tool_call_id not in calls:
                raise Fault(
                    400,
                    "invalid_value",
                    "a tool's message needs the tool_call_id of a call in a message before it",
                    param=f"{place}.tool_call_id",
                )
            made.append({"role": "tool", "content": text, "tool_call_id": message.tool_call_id})
        elif role == "system" and made and all(one["role"] == "system" for one in made):
            made[0]["content"] += f"\n\n{text}"
        else:
            made.append({"role": role, "content": text})
        if message.reasoning_content and role == "assistant":
            made[-1]["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            calls |= {call.id for call in message.tool_calls}
            made[-1]["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {
                        "name": call.function.name,
                        "arguments": _arguments(call.function.arguments, f"{place}.tool_calls[{j}].function.arguments"),
                    },
                }
                for j, call in enumerate(message.tool_calls)
            ]
    return made


def text_of(content: str | Sequence[Part] | None, place: str) -> str:
    """The text of a message; Fault for parts that are none."""
    if content is None or isinstance(content, str):
        return content or ""
    for j, part in enumerate(content):
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            raise Fault(
                400, "unsupported_value", f"{part.type!r} parts are not read here; text alone is", param=f"{place}[{j}]"
            )
    return "\n".join(part.text or "" for part in content)


def _arguments(text: str, place: str) -> dict[str, Any]:
    """A call's arguments as an object, which templates write in their own way."""
    import msgspec

    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise Fault(400, "invalid_value", "the arguments are no JSON object", param=place) from None


def settings_of(request: Drawn, max_tokens: int | None, n_ctx_tokens: int) -> Settings:
    """How the answer is made; what the request leaves out is as the task card says.

    Args:
        max_tokens: as the request has it; 0 is as left out, -1 is up to the end of the context.
    """
    stop = request.stop if isinstance(request, Streamed) else None
    settings: Settings = {
        "max_tokens": n_ctx_tokens if max_tokens == -1 else max_tokens or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": 0 if request.top_k == -1 else request.top_k,
        "min_p": request.min_p,
        "seed": None if request.seed is None else request.seed % N_SEEDS,
        "stop": stop or None,
    }
    return settings


def rules_of(wanted: ResponseFormat | None, place: str = SCHEMA_PLACE) -> "Rules | None":
    """The rules; None where the task card's hold.

    Args:
        place: where the schema stands in the request.

    Raises:
        Fault: 400; the schema is missing, is not valid, or says what no grammar is made of.
    """
    if wanted is None or wanted.type == "text":
        return None
    from ..grammar.rules import schema_grammar

    if wanted.type == "json_object":
        return schema_grammar({"type": "object"})
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise Fault(400, "missing_required_parameter", f"{place}: it is missing", param=place)
    try:
        return schema_grammar(wanted.json_schema.schema)
    except SlmEdgeError as error:
        raise fault_of(error, f"{place}{error.where or ''}") from None
