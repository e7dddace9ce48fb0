"""A task as a TOML file: how rows become messages, how the adapter is used, how it is judged. No code.

    name = "tickets"
    about = "sorts support tickets into queues"
    system = "Answer with the name of a queue."
    prompt = "{subject}\\n\\n{body}"           # cells of a row; {{ and }} for braces
    completion = "{queue}"
    metric = "exact"                         # of held-out rows: loss, tokens or exact
    [where]                                  # rows that are used: cells with one of these values
    language = ["en"]
    [card]                                   # the rest of the task card
    max_tokens = 8
    [recipe]                                 # fields of a recipe that differ
    lr = 5e-4

Without `prompt` and `completion` rows are conversations, in any of the forms of `conversations.py`. The file is a task
card too: `slm-edge pack build --card tickets=tickets.toml`.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

from ...edge.errors import InputError
from ...edge.files.read import is_text, read_text
from ...edge.gguf.chat_template import Message
from ...edge.pack.card import TASK_KEYS, TaskCard
from ...edge.written import check_name, did_you_mean
from .conversations import conversation_pair, read_conversations
from .examples import Pair, Row, read_rows
from .task import Skip, Task

Metric = Literal["loss", "tokens", "exact"]
MOST_BYTES: Final = 1 << 20
_CELL: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def is_task_file(table: Mapping[str, Any]) -> bool:
    """Whether a TOML table is a task, and no recipe."""
    return bool({"prompt", "completion", "card", "recipe", "where", "name"} & table.keys())


def read_task(path: Path) -> Task:
    """The task of a file.

    Raises:
        InputError: it is not there, not TOML, or no task; all faults at once.
    """
    return task_of(read_text(path, MOST_BYTES), path)


def task_of(text: str, path: Path) -> Task:
    """The task of a file's text; errors as `read_task`."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not TOML: {error}", where=path) from None
    faults = list(_faults(table))
    if faults:
        raise InputError("is not a valid task", where=path, problems=faults)
    card = TaskCard.of_task(table, path)
    maker = _Maker(table, card)
    return Task(
        name=table["name"],
        about=card.description,
        pair=maker.pair,
        defaults=dict(table.get("recipe", {})),
        read=read_rows if maker.of_cells else read_conversations,
        metric=table.get("metric", "loss"),
        text=text,
    )


def _faults(table: Mapping[str, Any]) -> Any:
    for key in table:
        if key not in TASK_KEYS:
            yield f"{key}: unknown; did you mean {did_you_mean(key, TASK_KEYS)[0]}?"
    name = table.get("name")
    try:
        check_name(name if isinstance(name, str) else "", "a task")
    except InputError as error:
        yield f"name: {error.message}" if "name" in table else "name: missing"
    for key in ("about", "system", "prompt", "completion"):
        if key in table and not is_text(table[key]):
            yield f"{key}: {table[key]!r} is no text"
    if ("prompt" in table) != ("completion" in table):
        yield "prompt and completion go together"
    for key in ("prompt", "completion"):
        if isinstance(table.get(key), str):
            for found in _CELL.finditer(table[key]):
                if found[0] in "{}" or found[1] == "":
                    yield f"{key}: a brace that names no cell; write {{{{ or }}}} for one that is text"
    if table.get("metric", "loss") not in get_args(Metric):
        yield f"metric: {table['metric']!r} is none of {', '.join(get_args(Metric))}"
    for key in ("where", "card", "recipe"):
        if not isinstance(table.get(key, {}), dict):
            yield f"{key}: is no table"
    if isinstance(table.get("recipe"), dict):
        yield from (
            f"recipe.{key}: stands in the recipe itself" for key in ("task", "base", "data") if key in table["recipe"]
        )


class _Maker:
    """Makes prompt and completion of a row as a file says."""

    def __init__(self, table: Mapping[str, Any], card: TaskCard) -> None:
        self.of_cells = "prompt" in table
        self._prompt, self._completion = table.get("prompt", ""), table.get("completion", "")
        self._where = {
            key: value if isinstance(value, list) else [value] for key, value in table.get("where", {}).items()
        }
        self._system, self._arguments = card.system, dict(card.template)

    def pair(self, row: Row) -> Pair:
        """The row's prompt and completion, or Skip; ValueError for a cell that is no text and no number."""
        for key, values in self._where.items():
            if row.get(key) not in values:
                raise Skip(f"another {key}")
        if not self.of_cells:
            made = conversation_pair(row)
            messages = self._with_system(made.messages)
            return Pair(messages, made.completion, made.reply, True, {**self._arguments, **made.arguments})
        asked, answer = _filled(self._prompt, row).strip(), _filled(self._completion, row).strip()
        if not asked or not answer:
            raise Skip("no prompt or no completion")
        return Pair(self._with_system([{"role": "user", "content": asked}]), answer, arguments=self._arguments)

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if not self._system or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._system}, *messages]


def _filled(pattern: str, row: Row) -> str:
    """A text with the cells that it names."""

    def cell(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        value = row.get(found[1])
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not is_text(value):
            raise ValueError(f"the cell {found[1]!r} is no text")
        return str(value)

    return _CELL.sub(cell, pattern)
