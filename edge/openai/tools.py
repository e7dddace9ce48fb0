"""`tools` and `tool_choice` of a request: what the model is shown, and what its answer keeps to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .calls import Form, form_of
from .faults import Fault
from .fields import ChatRequest, NamedTool, Tool

if TYPE_CHECKING:
    from ..grammar.rules import Rules

MOST_BYTES: Final = 64 << 10


@dataclass(frozen=True)
class Choice:
    """How tools are used in an answer.

    Attributes:
        shown: what the chat template writes; None for no tools.
        form: how calls are read from the answer; None where none can be in it.
        rules: what the answer keeps to; None for anything.
    """

    shown: Sequence[Mapping[str, Any]] | None = None
    form: Form | None = None
    rules: "Rules | None" = None


def choice_of(request: ChatRequest, template: str) -> Choice:
    """What a request's tools come to.

    Args:
        template: the base's chat template.

    Raises:
        Fault: 400; the model's template has no form of calls that is known here, a tool is named twice or is not
            there, or its parameters say what no grammar is made of.
    """
    form = form_of(template)
    used = any(message.role == "tool" or message.tool_calls for message in request.messages)
    tools = request.tools or []
    if form is None and (used or (tools and request.tool_choice != "none")):
        raise Fault(
            400,
            "unsupported_value",
            "this model's chat template has no form for calling tools that is known here (Qwen2.5 and Hermes, Llama 3)",
            param="tools" if tools else "messages",
        )
    wanted = request.tool_choice or "auto"
    if not tools:
        if request.tool_choice not in (None, "none", "auto"):
            raise Fault(400, "invalid_value", "`tool_choice` goes with `tools`", param="tool_choice")
        return Choice()
    _check(tools)
    if form is None or wanted == "none":
        return Choice()
    allowed: Sequence[Tool] = tools
    must, several = wanted == "required", request.parallel_tool_calls is not False
    if isinstance(wanted, NamedTool):
        names, place = _named(wanted)
        allowed = [tool for tool in tools if tool.function.name in names]
        for name in names:
            if not any(tool.function.name == name for tool in tools):
                raise Fault(400, "invalid_value", f"there is no tool {name!r} in `tools`", param=place)
        if wanted.allowed_tools is None:
            must, several = True, False
        else:
            must = wanted.allowed_tools.mode == "required"
    rules = form.rules(allowed, must=must, several=several)
    shown = [msgspec.to_builtins(tool) for tool in tools]
    for one in shown:
        one["function"] = {key: value for key, value in one["function"].items() if value is not None}
    return Choice(shown, form, rules)


def _named(wanted: NamedTool) -> tuple[list[str], str]:
    """The names of the tools that may be called, and the field that says them."""
    if (wanted.type == "function") != (wanted.function is not None) or (wanted.type == "function") == (
        wanted.allowed_tools is not None
    ):
        place = f"tool_choice.{wanted.type}"
        raise Fault(400, "missing_required_parameter", f"{place}: it goes with this type, and alone", param=place)
    if wanted.allowed_tools is not None:
        return [one.function.name for one in wanted.allowed_tools.tools], "tool_choice.allowed_tools.tools"
    assert wanted.function is not None
    return [wanted.function.name], "tool_choice.function.name"


def _check(tools: Sequence[Tool]) -> None:
    names = [tool.function.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise Fault(400, "invalid_value", f"the tool {name!r} is there twice", param=f"tools[{i}].function.name")
    size_bytes = len(msgspec.json.encode(tools))
    if size_bytes > MOST_BYTES:
        raise Fault(
            400, "invalid_value", f"the tools have {size_bytes} bytes; {MOST_BYTES} are possible", param="tools"
        )
