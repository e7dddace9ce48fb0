"""A request's body as one of the types of `fields`: every field is honoured, harmless, refused by its path, or named.

request, ignored = decoded(body, ChatRequest)       # ignored: paths of what nobody here knows
"""

from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec

from ..written import nearest
from .faults import Fault

RequestT = TypeVar("RequestT", bound=msgspec.Struct)

_OWN_WAY: Final = "`response_format` with a json_schema says what an answer keeps to"
_NOT_STORED: Final = "nothing is stored here; send the whole conversation as `input`"
_TEMPLATE: Final = "conversations are written with the model's own chat template"
# Fields that would change the answer, the values that ask for nothing, and what to do instead.
ONLY: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "best_of": ((1,), "`n` gives several answers"),
    "service_tier": (("auto", "default"), ""),
    "store": ((False,), "nothing is stored here"),
    "background": ((False,), "nothing is stored here; `stream` shows an answer while it is made"),
    "previous_response_id": ((), _NOT_STORED),
    "conversation": ((), _NOT_STORED),
    "prompt": ((), "nothing is stored here; send the text itself"),
    "include": (([], ["reasoning.encrypted_content"]), "nothing else is there to be included"),
    "truncation": (("disabled",), "a conversation that is too long is refused, not cut"),
    "max_tool_calls": ((), "no tool is run here"),
    "verbosity": (("medium",), "`max_tokens` limits an answer"),
    "modalities": ((["text"],), "text alone is read and written"),
    "audio": ((), "text alone is read and written"),
    "web_search_options": ((), "nothing is fetched by this server"),
    "functions": (([],), "use `tools`"),
    "function_call": (("none", "auto"), "use `tool_choice`"),
    "echo": ((False,), ""),
    "suffix": (("",), ""),
    "lora": (([],), '`adapter` names adapters here: "math", or {"math": 0.7, "code": 0.3}'),
    "grammar": (("",), _OWN_WAY),
    "guided_grammar": ((), _OWN_WAY),
    "chat_template": ((), _TEMPLATE),
}


def decoded(body: bytes, kind: type[RequestT]) -> tuple[RequestT, list[str]]:
    """The request, and the paths of fields that are not known here and were left out.

    Raises:
        Fault: 400; it is no JSON, a field is missing, of another type or out of range, or asks for what is not done.
    """
    try:
        raw = msgspec.json.decode(body)
        request = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _not_valid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fault(400, "invalid_json", f"the body is no valid JSON: {error}") from None
    except RecursionError:
        raise Fault(400, "invalid_json", "the body is no valid JSON: it nests too deeply") from None
    for name in kind.__struct_fields__:
        value = getattr(request, name)
        if name in ONLY and value is not None and not _is_none_of_prompt(name, kind):
            values, hint = ONLY[name]
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
                raise Fault(400, "unsupported_parameter", _sentence(name, values, hint), param=name)
    return request, list(_unknown(raw, request, ""))


def _is_none_of_prompt(name: str, kind: type[msgspec.Struct]) -> bool:
    """A completion's prompt is its text; a response's would be one that is stored."""
    return name == "prompt" and kind.__name__ != "ResponsesRequest"


def _sentence(name: str, values: tuple[Any, ...], hint: str) -> str:
    shown = " or ".join(msgspec.json.encode(one).decode() for one in values)
    only = f"`{name}` is not supported here" + (f" but as {shown}" if values else "")
    return f"{only}; {hint}" if hint else only


def _not_valid(error: msgspec.ValidationError) -> Fault:
    """Says what msgspec found, and where: it writes "Expected `int`, got `str` - at `$.messages[0].role`"."""
    message, _, place = str(error).rpartition(" - at `")
    path = place.removesuffix("`").removeprefix("$").removeprefix(".") if message else ""
    message = message or str(error)
    code = "invalid_value"
    if message.startswith("Object missing required field"):
        code, missing = "missing_required_parameter", message.rsplit("`", 2)[1]
        path = f"{path}.{missing}" if path else missing
        message = "it is missing"
    said = message[:1].lower() + message[1:]
    return Fault(400, code, f"{path or 'the body'}: {said}", param=path or None)


def _unknown(raw: Any, made: Any, path: str) -> Iterator[str]:
    """Paths of what a JSON value holds and the struct made of it does not; null says nothing and is not named."""
    if isinstance(made, msgspec.Struct) and isinstance(raw, dict):
        for name, value in raw.items():
            place = f"{path}.{name}" if path else str(name)
            if name not in made.__struct_fields__:
                if value is not None:
                    yield place
            else:
                yield from _unknown(value, getattr(made, name), place)
    elif isinstance(made, list) and isinstance(raw, list):
        for i, (value, one) in enumerate(zip(raw, made, strict=True)):
            yield from _unknown(value, one, f"{path}[{i}]")


def refuse_unknown(ignored: list[str], kind: type[msgspec.Struct]) -> None:
    """For `--strict`: raises Fault where something was ignored."""
    if ignored:
        near = nearest(ignored[0], kind.__struct_fields__)
        meant = f"; did you mean `{near}`?" if near else ""
        raise Fault(400, "unknown_parameter", f"`{ignored[0]}` is not known here{meant}", param=ignored[0])
