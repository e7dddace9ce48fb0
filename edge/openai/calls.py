"""Calls of tools in the form that a model's own chat template writes them in: as rules, and read back from text.

    form = form_of(template.source)                     # Hermes (Qwen2.5) or Llama 3; None for any other
    rules = form.rules(tools, must=True, several=False)
    reader = CallReader(form)
    reader.feed('<tool_call>\\n{"name": "add", "argum')  # [Begun(0, "add")]

No tool is ever run here: a call is handed to whoever asked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import SlmEdgeError
from .faults import fault_of
from .fields import Tool

if TYPE_CHECKING:
    from ..grammar.rules import Rules


# Keys of a schema whose own keys are names, and those whose content is no schema
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
# Beside these, properties of an object may come from elsewhere.
_OPENERS: Final = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties"}
    | {"allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas", "dependentRequired"}
)
_VALUES: Final = frozenset({"const", "enum", "default", "example", "examples"})


@dataclass(frozen=True)
class Form:
    """How a call is written.

    Attributes:
        name: of those who do it so.
        opening, closing: around its JSON; "" where the answer is the call and nothing else.
        arguments: the key of the arguments.
    """

    name: str
    opening: str
    closing: str
    arguments: str

    def rules(self, tools: Sequence[Tool], *, must: bool, several: bool) -> "Rules":
        """What an answer keeps to that calls one of these tools.

        Args:
            must: it is a call; else it may be, or hold, any text.
            several: more calls may follow.

        Raises:
            Fault: 400; a tool's parameters say what no grammar is made of.
        """
        from ..grammar.rules import framed_grammar, schema_grammar

        for i, tool in enumerate(tools):
            try:
                schema_grammar(_parameters(tool))
            except SlmEdgeError as error:
                raise fault_of(error, f"tools[{i}].function.parameters{error.where or ''}") from None
        frame = self._frame(must, several and bool(self.opening))
        return framed_grammar({"anyOf": [self._call(tool, i) for i, tool in enumerate(tools)]}, frame)

    def _frame(self, must: bool, several: bool) -> str:
        if not self.opening:
            free = "" if must else " | TEXT"
            # What begins as a call does is one.
            return f"start: value{free}\nTEXT: /([^{{\\s](?s:.*))?/"
        more = '("\\n" call)*' if several else ""
        if must:
            return f'start: call {more}\ncall: "{self.opening}\\n" value "\\n{self.closing}"'
        rest = 'start: (opened "\\n" value close)* TAIL' if several else 'start: (opened "\\n" value close | TAIL)'
        return (
            f'{rest}\nopened[lazy]: /(?s:.*){self.opening}/\nclose: "\\n{self.closing}"\n'
            f"TAIL: /(?s:.*)/ & ~/(?s:.*){self.opening}(?s:.*)/"
        )

    def _call(self, tool: Tool, i: int) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                self.arguments: _moved(_parameters(tool), f"#/anyOf/{i}/properties/{self.arguments}"),
            },
            "required": ["name", self.arguments],
            "additionalProperties": False,
        }


HERMES: Final = Form("Hermes", "<tool_call>", "</tool_call>", "arguments")
LLAMA: Final = Form("Llama 3", "", "", "parameters")


def form_of(template: str) -> Form | None:
    """The form that a chat template tells its model to call tools in; None where it is not known here."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template and '"arguments"' in template:
        return HERMES
    if '"parameters": ' in template and "ipython" in template:
        return LLAMA
    return None


def _parameters(tool: Tool) -> Mapping[str, Any]:
    """The schema of a tool's arguments; without one it takes none."""
    given = tool.function.parameters
    if not given:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    closed = _closed({"type": "object", **given})
    assert isinstance(closed, dict)
    return closed


def _closed(schema: Any) -> Any:
    """Objects that name their properties have no others: small models else make some up without end.

    What keeps to the closed schema keeps to the open one too.
    """
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    named = closed.get("properties")
    if isinstance(named, Mapping):
        closed["properties"] = {name: _closed(one) for name, one in named.items()}
        if not _OPENERS & closed.keys():
            closed["additionalProperties"] = False
    if "items" in closed:
        closed["items"] = _closed(closed["items"])
    return closed


def _moved(schema: Any, place: str) -> Any:
    """A schema that stands in another: what its references point at has moved along."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[key] = place + value[1:]
        elif key in _NAMED and isinstance(value, Mapping):
            moved[key] = {name: _moved(one, place) for name, one in value.items()}
        else:
            moved[key] = value if key in _VALUES else _moved(value, place)
    return moved


@dataclass(frozen=True)
class Said:
    """Text beside calls."""

    text: str


@dataclass(frozen=True)
class Begun:
    """A call of the tool with this name begins; calls are counted from 0."""

    call: int
    name: str


@dataclass(frozen=True)
class Argued:
    """More of a call's arguments, a JSON text in pieces."""

    call: int
    text: str


Event = Said | Begun | Argued


class CallReader:
    """Tells calls from text while an answer comes; it keeps to the rules of its form.

    Attributes:
        n_calls: how many have begun.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self._held = ""
        self._state = "text" if form.opening else "start"
        self.n_calls = 0
        name = r'\s*\{\s*"name"\s*:\s*"(?P<name>[A-Za-z0-9_.-]{1,64})"\s*,\s*'
        self._head = re.compile(rf'{name}"{form.arguments}"\s*:\s*')
        self._depth = 0
        self._in_text = self._escaped = False

    def feed(self, text: str) -> list[Event]:
        """What is sure by this piece."""
        self._held += text
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """What was held back, once the answer has ended."""
        held, self._held = self._held, ""
        return [Said(held)] if held and self._state in ("text", "start") else []

    def _step(self, events: list[Event]) -> bool:
        """Reads on; False where more text is needed."""
        if self._state == "start":
            begun = self._held.lstrip()
            if not begun:
                return False
            self._state = "head" if begun.startswith("{") else "rest"
            return True
        if self._state == "rest":
            self._say(events, len(self._held))
            return False
        if self._state == "text":
            return self._find_opening(events)
        if self._state == "head":
            found = self._head.match(self._held)
            if found is None:
                return False
            self._held = self._held[found.end() :]
            events.append(Begun(self.n_calls, found["name"]))
            self.n_calls += 1
            self._state, self._depth = "arguments", 0
            return True
        if self._state == "arguments":
            return self._argue(events)
        # Behind the arguments: the end of the call's JSON, and its closing
        closing = self._form.closing
        place = self._held.find(closing) if closing else -1
        if place < 0:
            return False
        self._held = self._held[place + len(closing) :]
        self._state = "text"
        return True

    def _find_opening(self, events: list[Event]) -> bool:
        opening = self._form.opening
        place = self._held.find(opening)
        if place >= 0:
            # The line break before a call is the call's.
            self._say(events, place, strip=True)
            self._held = self._held[len(opening) :]
            self._state = "head"
            return True
        ends = (n for n in range(min(len(opening), len(self._held)), 0, -1) if opening.startswith(self._held[-n:]))
        keep = next(ends, 0)
        # White space may be what stands before a call.
        cut = len(self._held[: len(self._held) - keep].rstrip())
        self._say(events, cut)
        return False

    def _say(self, events: list[Event], n: int, strip: bool = False) -> None:
        text, self._held = self._held[:n], self._held[n:]
        text = text.rstrip() if strip else text
        if text:
            events.append(Said(text))

    def _argue(self, events: list[Event]) -> bool:
        """Hands on the arguments up to where their JSON ends."""
        if self._depth == 0:
            self._held = self._held.lstrip()
        for i, letter in enumerate(self._held):
            if self._in_text:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_text = False
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    events.append(Argued(self.n_calls - 1, self._held[: i + 1]))
                    self._held = self._held[i + 1 :]
                    self._state = "closing"
                    return True
        if self._held:
            events.append(Argued(self.n_calls - 1, self._held))
            self._held = ""
        return False
