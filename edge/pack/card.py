"""A task card: how an adapter wants to be used, and how good it was found to be.

    card = TaskCard.open("math.toml")       # or .json
    card.system, card.max_tokens, card.scores

A TOML card, every key optional but `task`:

    task = "math"
    description = "Grade-school word problems, with the steps"
    max_tokens = 256
    stop = ["\\n\\nQuestion:"]
    licence = "Apache-2.0"
    data = "GSM8K train (MIT)"
    [template]
    enable_thinking = false
    [scores.gsm8k]
    exact_match = 0.07
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from ..errors import InputError
from ..files.read import is_text, loads_json, read_text
from ..options import Speculate
from ..written import did_you_mean

if TYPE_CHECKING:
    from ..gguf.adapter import AdapterInfo
    from ..grammar.rules import Rules

MAX_CARD_BYTES: Final = 1 << 20
# Of a task file to train by, which holds a card
TASK_KEYS: Final = ("name", "about", "system", "prompt", "completion", "metric", "where", "card", "recipe")
# Keys that the first versions did not have, and what they are where nothing is said
_LATER: Final[dict[str, Any]] = {"template": {}, "thinking": None, "golden": []}


@dataclass(frozen=True)
class TaskCard:
    """How one adapter is used.

    Attributes:
        task: what it is for, in a word.
        description: the same in a sentence; the router reads it too.
        system: system message put before every prompt; None for none.
        temperature: 0 picks the likeliest token always; the other sampling values then do nothing.
        top_k: 0 for no limit.
        seed: None draws one at each answer.
        max_tokens: longest answer.
        stop: texts that end an answer.
        grammar: GBNF that answers keep to; None for none.
        schema: JSON schema that answers keep to; not beside a grammar.
        scale: strength of the adapter, 1.0 as it was trained.
        speculate: "exact" guesses tokens from the prompt where that cannot change a bit of the answer, "fast" also
            where near ties may fall the other way, "off" never. For tasks that copy: summaries, edits.
        pinned: once loaded it stays, however many others are used and whatever the budget for adapters.
        template: what the base's chat template is told at every prompt, as {"enable_thinking": false}.
        thinking: the texts that open and close what the model thinks before it answers; () for none, whatever the chat
            template says; None: as the template says.
        golden: prompts with what the answer `contains` or `equals`: an update is taken only where they hold.
        scores: what was measured with it, as the benchmark wrote it.
        licence, data: under which terms the adapter stands, and what it was trained on.
    """

    task: str
    description: str = ""
    system: str | None = None
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    schema: Mapping[str, Any] | None = None
    scale: float = 1.0
    speculate: Speculate = "off"
    pinned: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)
    thinking: tuple[str, ...] | None = None
    golden: tuple[Mapping[str, str], ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise InputError(f"the task card {self.task!r} is not valid", problems=faults)

    @classmethod
    def of(cls, data: Any, where: str | os.PathLike[str] | None = None) -> "TaskCard":
        """A card from a JSON object or TOML table.

        Raises:
            InputError: unknown keys, wrong types or values out of range; all are named.
        """
        if not isinstance(data, dict):
            raise InputError("a task card is a table of keys and values", where=where)
        known = [entry.name for entry in dataclasses.fields(cls)]
        faults = [
            f"the key {key!r} is not known; did you mean {did_you_mean(str(key), known)[0]!r}?"
            for key in data
            if key not in known
        ]
        if "task" not in data:
            faults.append("the key 'task' is missing")
        values = {
            key: tuple(value) if key in ("stop", "thinking", "golden") and isinstance(value, list) else value
            for key, value in data.items()
        }
        card = object.__new__(cls)
        for entry in dataclasses.fields(cls):
            made = entry.default_factory is not dataclasses.MISSING
            default = {} if made else "" if entry.name == "task" else entry.default
            object.__setattr__(card, entry.name, values.get(entry.name, default))
        faults += [fault for fault in _faults(card) if "task" in data or not fault.startswith("task ")]
        if faults:
            raise InputError("is not a valid task card", where=where, problems=faults)
        return card

    @classmethod
    def of_task(cls, table: Mapping[str, Any], where: str | os.PathLike[str] | None = None) -> "TaskCard":
        """The card that a task file to train by holds: its name, description and system message, and its [card].

        Raises:
            InputError: as `of`.
        """
        own = {"name": "task", "about": "description", "system": "system"}
        card = table.get("card", {})
        unknown = [key for key in table if key not in TASK_KEYS]
        if unknown:
            problems = [f"{key}: unknown; did you mean {did_you_mean(key, TASK_KEYS)[0]}?" for key in unknown]
            raise InputError("is not a valid task", where=where, problems=problems)
        twice = [key for key in own.values() if isinstance(card, dict) and key in card]
        if twice:
            problems = [f"card.{key}: {name} says it" for name, key in own.items() if key in twice]
            raise InputError("is not a valid task", where=where, problems=problems)
        told = {key: table[name] for name, key in own.items() if name in table}
        return cls.of({**told, **card} if isinstance(card, dict) else card, where)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TaskCard":
        """Reads a card from a `.toml` or `.json` file; a task to train by (`train/data/task_file.py`) is one too.

        Raises:
            InputError: it is not there, not TOML or JSON, or not a card.
        """
        path = Path(path)
        try:
            text = read_text(path, MAX_CARD_BYTES)
            if path.suffix == ".toml":
                import tomllib

                table = tomllib.loads(text)
                is_task = bool({"card", "prompt", "name"} & table.keys()) and "task" not in table
                return cls.of_task(table, path) if is_task else cls.of(table, path)
            if path.suffix == ".json":
                return cls.of(loads_json(text), path)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not valid {path.suffix[1:].upper()} ({error})", where=path) from None
        raise InputError("a task card is a .toml or .json file", where=path)

    def rules(self) -> "Rules | None":
        """What its grammar or schema says of answers; None for nothing.

        Raises:
            InputError: it cannot be used.
        """
        if self.schema is None and not self.grammar:
            return None
        from ..grammar.rules import gbnf_grammar, schema_grammar

        return schema_grammar(self.schema) if self.schema is not None else gbnf_grammar(self.grammar or "")

    def as_dict(self) -> dict[str, Any]:
        """The card for JSON; `TaskCard.of` takes it back."""
        values = {
            entry.name: list(value) if isinstance(value := getattr(self, entry.name), tuple) else value
            for entry in dataclasses.fields(self)
        }
        # Left out where there is nothing, so that earlier versions read such a card.
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def _is_number(value: object) -> bool:
    # A whole number may be beyond what a float holds, where isfinite raises.
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 64
    return isinstance(value, float) and math.isfinite(value)


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return is_text(value) and "\0" not in value


def _is_table(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _is_golden(value: object) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"prompt", "contains", "equals"} or "prompt" not in value:
        return False
    return all(_is_text(text) and text for text in value.values())


def _faults(card: TaskCard) -> list[str]:
    """What is wrong with the values of a card; their types are not to be trusted."""

    def number(name: str, least: float, most: float) -> str | None:
        value = getattr(card, name)
        return None if _is_number(value) and least <= value <= most else f"{name} is {value!r}; {least:g} to {most:g}"

    def text(name: str) -> str | None:
        return None if _is_text(getattr(card, name)) else f"{name} is {getattr(card, name)!r}, not a text"

    faults = [text(name) for name in ("task", "description", "licence", "data")]
    if _is_text(card.task) and not card.task.strip():
        faults.append("task is empty")
    faults += [text(name) for name in ("system", "grammar") if getattr(card, name) is not None]
    if card.schema is not None and not _is_table(card.schema):
        faults.append("schema is not a table of JSON values")
    if card.schema is not None and card.grammar is not None:
        faults.append("give either grammar or schema, not both")
    faults += [number("temperature", 0, 10), number("top_p", 0, 1), number("min_p", 0, 1), number("scale", -10, 10)]
    if _is_number(card.scale) and card.scale == 0:
        faults.append("scale is 0, with which the adapter does nothing")
    if card.speculate not in get_args(Speculate):
        faults.append(f"speculate is {card.speculate!r}; it must be one of {', '.join(get_args(Speculate))}")
    if not _is_flag(card.pinned):
        faults.append(f"pinned is {card.pinned!r}, neither true nor false")
    if not _is_count(card.top_k, 0, 1 << 30):
        faults.append(f"top_k is {card.top_k!r}; a whole number from 0")
    if not _is_count(card.max_tokens, 1, 1 << 20):
        faults.append(f"max_tokens is {card.max_tokens!r}; a whole number from 1")
    if card.seed is not None and not _is_count(card.seed, 0, (1 << 32) - 2):
        faults.append(f"seed is {card.seed!r}; a whole number from 0 to {(1 << 32) - 2}")
    if not isinstance(card.stop, tuple) or not all(_is_text(text) and text for text in card.stop):
        faults.append(f"stop is {card.stop!r}, not a list of texts")
    if card.template != {}:
        from ..gguf.template_arguments import checked_arguments

        try:
            checked_arguments(card.template, "the values of template")
        except InputError as error:
            faults.append(error.message)
    if card.thinking is not None:
        marks = card.thinking if isinstance(card.thinking, tuple) else ("",)
        if len(marks) not in (0, 2) or not all(_is_text(mark) and mark.strip() for mark in marks):
            faults.append(f"thinking is {card.thinking!r}; the two texts that open and close it, or [] for none")
    if not isinstance(card.golden, tuple) or not all(map(_is_golden, card.golden)):
        faults.append("golden is not a list of tables with a prompt and what the answer contains or equals")
    if not _is_table(card.scores):
        faults.append("scores is not a table of JSON values")
    return [fault for fault in faults if fault is not None]


def own_card(info: "AdapterInfo", name: str) -> TaskCard:
    """The card of an adapter that comes without one: task name and system message of its file, else its name."""
    return TaskCard(task=info.task_name or name, system=info.prompt_prefix or None)
