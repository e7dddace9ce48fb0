"""A request's messages as the engine takes them, its settings, and the rules that its answer keeps to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..answer.settings import Settings
from ..errors import SlmEdgeError
from ..scheduler.stats import EngineFacts
from .faults import Fault, fault_of
from .fields import ChatMessage, Drawn, Part, ResponseFormat, Streamed, StructuredOutputs

if TYPE_CHECKING:
    from ..grammar.rules import Rules

# Seeds of the engine are below; others are folded into them, always in the same way.
N_SEEDS: Final = (1 << 32) - 1
# What clients call a switch for thinking, whatever the template in use calls it
_SWITCHES: Final = ("think", "thinking", "enable_thinking")
SCHEMA_PLACE: Final = "response_format.json_schema.schema"
# Where llama.cpp's server takes it
_OTHER_SCHEMA_PLACE: Final = "response_format.schema"


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
        "min_tokens": request.min_tokens,
        "ignore_eos": request.ignore_eos,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": 0 if request.top_k == -1 else request.top_k,
        "min_p": request.min_p,
        "seed": None if request.seed is None else request.seed % N_SEEDS,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "repeat_penalty": request.repeat_penalty,
        "repeat_last_n": request.repeat_last_n,
        "logit_bias": _biases(request.logit_bias),
        "stop": stop or None,
    }
    if request.repetition_penalty not in (None, 1):
        if request.repeat_penalty not in (None, 1):
            text = "`repetition_penalty` counts all tokens and `repeat_penalty` the last ones; give one of them"
            raise Fault(400, "invalid_value", text, param="repeat_penalty")
        settings |= {"repeat_penalty": request.repetition_penalty, "repeat_last_n": -1}
    return settings


def _biases(given: Mapping[str, float] | None) -> dict[int, float] | None:
    """By token id."""
    for name in given or ():
        if not name.isascii() or not name.isdigit() or len(name) > 10:
            text = f"{name[:40]!r} is no token's id; /tokenize has the ids of a text"
            raise Fault(400, "invalid_value", text, param="logit_bias")
    return {int(name): bias for name, bias in given.items()} if given else None


def template_args_of(
    kwargs: Mapping[str, Any] | None, effort: str | None, place: str, facts: EngineFacts
) -> dict[str, Any] | None:
    """What the chat template is told.

    Args:
        kwargs: `chat_template_kwargs`; a switch for thinking may have the name of any template.
        effort: how hard the model is to think.
        place: the field that says that.

    Raises:
        Fault: 400; the template never reads it, or thinking cannot be switched so.
    """
    told: dict[str, Any] = {}
    known = facts.template_arguments
    for name, value in (kwargs or {}).items():
        where = f"chat_template_kwargs.{name[:100]}"
        if value is None:
            continue
        if name == "tools":
            raise Fault(400, "unsupported_parameter", "`tools` has a field of its own", param=where)
        if name in _SWITCHES:
            _think(told, value is not False, where, facts)
        elif name in known:
            told[name] = value
        else:
            may = ", ".join(sorted(known - {"tools"})) or "none"
            text = f"this model's chat template knows no argument {name[:100]!r}; it knows: {may}"
            raise Fault(400, "unsupported_parameter", text, param=where)
    if effort is None or told.keys() & {"think", "reasoning_effort"}:
        return told or None
    if effort in ("none", "minimal"):
        _think(told, False, place, facts)
    elif "reasoning_effort" in known:
        told["reasoning_effort"] = effort
    elif effort != "medium" or not facts.thinks:
        why = "this model thinks as long as it does" if facts.thinks else "this model does not think before it answers"
        text = f"`{place}` can only be {'none or medium' if facts.thinks else 'none'} here; {why}"
        raise Fault(400, "unsupported_parameter", text, param=place)
    return told or None


def _think(told: dict[str, Any], wanted: bool, place: str, facts: EngineFacts) -> None:
    """Switches thinking on or off; what the model does anyway needs no switch."""
    if "think" in facts.template_arguments:
        told["think"] = wanted
    elif wanted != facts.thinks:
        text = (
            "this model does not think before it answers" if wanted else "this model's thinking cannot be switched off"
        )
        raise Fault(400, "unsupported_parameter", f"`{place}`: {text}", param=place)


def other_rules(request: Drawn) -> "tuple[Rules, str] | None":
    """Rules by the fields that other servers have for them, and the field; None where none was used.

    Raises:
        Fault: 400; there are two, or they cannot be used.
    """
    outputs = request.structured_outputs or StructuredOutputs()
    given: list[tuple[str, str, Any]] = [
        ("json_schema", "json", request.json_schema),
        ("guided_json", "json", request.guided_json),
        ("guided_regex", "regex", request.guided_regex),
        ("guided_choice", "choice", request.guided_choice),
        ("structured_outputs.json", "json", outputs.json),
        ("structured_outputs.regex", "regex", outputs.regex),
        ("structured_outputs.choice", "choice", outputs.choice),
        ("structured_outputs.json_object", "json", {"type": "object"} if outputs.json_object else None),
    ]
    for name in ("grammar", "structural_tag"):
        if getattr(outputs, name):
            place = f"structured_outputs.{name}"
            raise Fault(400, "unsupported_parameter", f"`{place}` is not supported here; `json` is", param=place)
    asked = [one for one in given if one[2] is not None]
    if not asked:
        return None
    place, kind, value = asked[0]
    if len(asked) > 1:
        raise Fault(400, "invalid_value", f"`{place}` and `{asked[1][0]}`: use one of them", param=asked[1][0])
    from ..grammar import rules

    try:
        if kind == "regex":
            return rules.regex_grammar(value), place
        if kind == "choice":
            # Each letter by its number, so that none of them says anything to the grammar
            texts = ('"' + "".join(f"\\U{ord(letter):08X}" for letter in text) + '"' for text in value)
            return rules.gbnf_grammar(f"root ::= {' | '.join(texts)}"), place
        return (rules.schema_text(value) if isinstance(value, str) else rules.schema_grammar(value)), place
    except SlmEdgeError as error:
        raise fault_of(error, f"{place}{error.where or ''}") from None


def rules_asked(request: Drawn, wanted: ResponseFormat | None = None) -> "tuple[Rules | None, str]":
    """What the answer keeps to, and the field that says it; raises as `rules_of` and `other_rules`."""
    rules, other = rules_of(wanted), other_rules(request)
    if rules is not None and other is not None:
        raise Fault(400, "invalid_value", f"`response_format` and `{other[1]}`: use one of them", param=other[1])
    return other or (rules, SCHEMA_PLACE if wanted is None or wanted.schema is None else _OTHER_SCHEMA_PLACE)


def rules_of(wanted: ResponseFormat | None, place: str = SCHEMA_PLACE) -> "Rules | None":
    """The rules; None where the task card's hold.

    Args:
        place: where the schema stands in the request.

    Raises:
        Fault: 400; the schema is missing, is not valid, or says what no grammar is made of.
    """
    if wanted is None:
        return None
    schema = None if wanted.json_schema is None else wanted.json_schema.schema
    if wanted.schema is not None:
        place = _OTHER_SCHEMA_PLACE
        if schema is not None or wanted.type == "text":
            raise Fault(400, "invalid_value", f"{place}: `type` or another schema contradicts it", param=place)
        schema = wanted.schema
    if wanted.type == "text":
        return None
    from ..grammar.rules import schema_grammar

    if wanted.type == "json_object" and wanted.schema is None:
        schema = {"type": "object"}
    if schema is None:
        raise Fault(400, "missing_required_parameter", f"{place}: it is missing", param=place)
    try:
        return schema_grammar(schema)
    except SlmEdgeError as error:
        raise fault_of(error, f"{place}{error.where or ''}") from None
