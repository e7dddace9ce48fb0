"""Conversations out of data of one's own: which form a file's rows have, told by its first, and each as messages.

    read_conversations(Path("data.jsonl"))      # {"messages": [...]} each, with "tools" where there are some

| form | a row |
|---|---|
| messages | `messages`: a list of `role` and `content`; `tools` beside it |
| prompt and completion | two texts, or two lists of messages |
| Alpaca | `instruction`, `input`, `output`; `system` and `history` beside them |
| ShareGPT | `conversations`: a list of `from` and `value`; `system` and `tools` beside it |
| dolly | `instruction`, `context`, `response` |

A file is of one form. Another form, or a row that is damaged, is refused with its line.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ...edge.console import note
from ...edge.datasets.prompts import dolly_messages
from ...edge.errors import InputError
from ...edge.files.read import is_text, loads_json
from ...edge.gguf.chat_template import Message, checked_messages
from .examples import Pair, Row, asked_of, numbered_rows, text_of
from .task import Skip

MOST_FAULTS: Final = 10
_ROLES: Final = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    "ipython": "tool",
}


def _text(value: object, what: str) -> str:
    if not is_text(value):
        raise ValueError(f"{what} {'has half a surrogate pair' if isinstance(value, str) else 'is no text'}")
    return str(value)


def _turns(turns: object, name: str, role: str, content: str) -> list[Message]:
    """Messages whose role and content stand under these keys."""
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"the cell {name!r} is no list of turns")
    made: list[Any] = []
    for number, turn in enumerate(turns, 1):
        what = f"turn {number} of {name!r}"
        said = str(turn.get(role)).lower()
        message: dict[str, Any] = {key: value for key, value in turn.items() if value is not None}
        text = message.pop(content, None)
        message.pop(role, None)
        if said == "function_call":
            made.append({"role": "assistant", "content": "", "tool_calls": [_call(text, what)]})
            continue
        if text is None and message.get("tool_calls"):
            text = ""
        known = {key: message[key] for key in ("tool_calls", "tool_call_id", "reasoning_content") if key in message}
        made.append({"role": _ROLES.get(said, said), "content": _text(text, f"{what}: {content}"), **known})
    try:
        return checked_messages(made)
    except InputError as error:
        raise ValueError(f"{name!r}: {error.message}") from None


def _call(text: object, what: str) -> dict[str, Any]:
    """A tool call as ShareGPT writes it: its JSON."""
    call = _json(text, what)
    if not isinstance(call, dict):
        raise ValueError(f"{what} is no call of a tool")
    return {"type": "function", "function": call}


def _json(text: object, what: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return loads_json(text)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON ({error})") from None


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    system = row.get("system")
    if not system or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": text_of(row, "system")}, *turns]


def _of_messages(row: Row) -> list[Message]:
    return _turns(row["messages"], "messages", "role", "content")


def _of_pair(row: Row) -> list[Message]:
    parts: list[Message] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row[key], list):
            parts += _turns(row[key], key, "role", "content")
        else:
            parts.append({"role": role, "content": text_of(row, key)})
    return _with_system(row, parts)


def _of_alpaca(row: Row) -> list[Message]:
    made: list[Message] = []
    for turn in row.get("history") or ():
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError("the cell 'history' is no list of questions with their answers")
        made.append({"role": "user", "content": _text(turn[0], "a turn of 'history'")})
        made.append({"role": "assistant", "content": _text(turn[1], "a turn of 'history'")})
    made += [{"role": "user", "content": asked_of(row)}, {"role": "assistant", "content": text_of(row, "output")}]
    return _with_system(row, made)


def _of_sharegpt(row: Row) -> list[Message]:
    turns = row["conversations"]
    named = isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "role" in turns[0]
    keys = ("role", "content") if named else ("from", "value")
    return _with_system(row, _turns(turns, "conversations", *keys))


def _of_dolly(row: Row) -> list[Message]:
    asked = dolly_messages(text_of(row, "instruction"), text_of(row, "context"))
    return [*asked, {"role": "assistant", "content": text_of(row, "response")}]


# The cells that tell a form, in this order
_FORMS: Final[tuple[tuple[str, frozenset[str], Callable[[Row], list[Message]]], ...]] = (
    ("messages", frozenset({"messages"}), _of_messages),
    ("ShareGPT", frozenset({"conversations"}), _of_sharegpt),
    ("prompt and completion", frozenset({"prompt", "completion"}), _of_pair),
    ("dolly", frozenset({"instruction", "context", "response"}), _of_dolly),
    ("Alpaca", frozenset({"instruction", "output"}), _of_alpaca),
)


def form_of(row: Row) -> str | None:
    """The name of a row's form; None if it has none of them."""
    filled = {key for key, value in row.items() if value is not None}
    return next((name for there in (filled, row.keys()) for name, keys, _ in _FORMS if keys <= there), None)


def conversation_of(row: Row, form: str) -> Row:
    """A row of that form as `messages`, and `tools` where it has some.

    Raises:
        ValueError: it is not of that form, or damaged.
    """
    keys, read = next((keys, read) for name, keys, read in _FORMS if name == form)
    if any(row.get(key) is None for key in keys):
        other = form_of(row)
        if other not in (form, None):
            raise ValueError(f"it is a row of another form, {other}")
        missing = sorted(keys - row.keys())
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    made: Row = {"messages": read(row)}
    if row.get("tools"):
        tools = _json(row["tools"], "the cell 'tools'")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError("the cell 'tools' is no list of tools")
        made["tools"] = tools
    return made


def read_conversations(path: Path) -> Iterator[Row]:
    """The rows of a file as `messages`, whichever form they have; says which one it found.

    Raises:
        InputError: the file cannot be read, is of no form that is known, or has rows that are damaged or of another
            form, with their lines.
    """
    form: str | None = None
    faults: list[str] = []
    for number, row in numbered_rows(path):
        if form is None:
            form = form_of(row)
            if form is None:
                known = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, keys, _ in _FORMS)
                raise InputError(f"row {number} has no form that is known: {', '.join(row)}", where=path, hint=known)
            note(f"{path.name}: rows of the form {form}")
        try:
            made = conversation_of(row, form)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            if len(faults) >= MOST_FAULTS:
                break
            continue
        if not faults:
            yield made
    if faults:
        raise InputError(f"has rows that are no {form} rows", where=path, problems=faults)


def conversation_pair(row: Row) -> Pair:
    """The last answer is the completion, and those before it are learned too."""
    form = form_of(row)
    if form is None:
        raise Skip("no conversation")
    made = conversation_of(row, form)
    turns = made["messages"]
    while turns and turns[-1]["role"] != "assistant":
        # A question that nobody answered
        turns = turns[:-1]
    if len(turns) < 2:
        raise Skip("no answer of the assistant")
    last = turns[-1]
    if not last["content"].strip() and not last.get("tool_calls"):
        raise Skip("the last answer is empty")
    tools = {"tools": made["tools"]} if "tools" in made else {}
    return Pair(turns[:-1], last["content"].strip(), last, all_turns=True, arguments=tools)
