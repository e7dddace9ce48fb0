"""A recipe as a file: what to train, on what, and how, in one flat TOML table. Unknown keys are refused.

    base = "base.gguf"                  # paths are relative to the recipe's own folder
    data = ["gsm8k/train.jsonl"]
    output = "peft/math"
    task = "math"
    rank = 32

`slm-edge train my.toml` runs it, `slm-edge train recipes NAME` prints one that ships, every field explained.
Those that ship lie in train/recipes, a file per task, with a table `[on."BASE"]` per base that changes or adds keys.
"""

import dataclasses
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ...edge.errors import InputError
from ...edge.files.read import read_text
from ...edge.written import did_you_mean
from ..data.task import Task, find_task
from ..recipe import CANNOT_SHIP, FIELDS_HINT, Recipe, checked_fields

SHIPPED = Path(__file__).parent.parent / "recipes"
MOST_BYTES = 1 << 20


def _doc(text: str) -> dict[str, str]:
    return {"doc": text}


@dataclass(frozen=True)
class Inputs:
    """What a recipe file says beside the recipe: files and names, all checked when they are used."""

    base: str = field(
        metadata=_doc("the GGUF that ships, a Hugging Face folder, or a name on the hub (organisation/model)")
    )
    data: tuple[str, ...] = field(
        metadata=_doc("files of rows (JSONL, JSON, parquet), or names on the hub (organisation/data-set:PATTERN)")
    )
    output: str = field(default="", metadata=_doc("the PEFT folder to write"))
    start: str = field(
        default="", metadata=_doc("a PEFT folder to go on from; rank, alpha and targets must be the recipe's own")
    )
    replay_data: tuple[str, ...] = field(
        default=(), metadata=_doc("files of rows that show what must not be forgotten; replay says how many are used")
    )
    benchmarks: tuple[str, ...] = field(
        default=(),
        metadata=_doc("files or folders of test items that no training row may hold; see contamination"),
    )


@dataclass(frozen=True)
class RecipeFile:
    """A recipe, its inputs and its task; relative paths begin in `folder`."""

    recipe: Recipe
    inputs: Inputs
    folder: Path
    task: Task | None = None


def parse(values: Mapping[str, Any], folder: Path) -> RecipeFile:
    """A recipe file's table, checked; fields that it leaves out are the task's own, then Recipe's.

    Raises:
        UnsupportedError: it asks for what a GGUF adapter cannot hold.
        InputError: unknown keys, missing ones, wrong types or values; all of them at once.
    """
    mine = {entry.name for entry in dataclasses.fields(Inputs)}
    inputs, problems = checked_fields(Inputs, {key: value for key, value in values.items() if key in mine})
    given = {key: value for key, value in values.items() if key not in mine}
    task: Task | None = None
    if "task" in given:
        try:
            task = find_task(str(given["task"]), folder)
            given["task"] = task.name
        except InputError as error:
            problems += [f"task: {error}", *error.problems]
    if not any(key in CANNOT_SHIP for key in given):
        problems += checked_fields(Recipe, given)[1]
        if problems:
            raise InputError("the recipe is not valid", problems=problems, hint=FIELDS_HINT)
    defaults = task.defaults if task is not None else {}
    return RecipeFile(Recipe.from_mapping({**defaults, **given}), Inputs(**inputs), folder, task)


def read(path: Path) -> dict[str, Any]:
    """The table of a recipe file, unchecked.

    Raises:
        InputError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(read_text(path, MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not TOML: {error}", where=path) from None


def check_keys(values: Mapping[str, Any], path: Path) -> None:
    """Raises for keys that no recipe file has, before anything else is asked for."""
    known = [entry.name for kind in (Inputs, Recipe) for entry in dataclasses.fields(kind)]
    unknown = [key for key in values if key not in known and key not in CANNOT_SHIP]
    if unknown:
        problems = [f"{key}: unknown; did you mean {did_you_mean(key, known)[0]}?" for key in unknown]
        raise InputError("the recipe is not valid", where=path, problems=problems, hint=FIELDS_HINT)


def shipped_names() -> list[str]:
    """Names of all recipes that ship: task/base."""
    return [f"{path.stem}/{base}" for path in sorted(SHIPPED.glob("*.toml")) for base in read(path)["on"]]


def shipped(name: str) -> dict[str, Any]:
    """The flat table of a recipe that ships.

    Raises:
        InputError: there is none of that name.
    """
    if name not in shipped_names():
        raise InputError(f"no recipe {name!r} ships", problems=shipped_names())
    task, _, base = name.partition("/")
    table = read(SHIPPED / f"{task}.toml")
    own: dict[str, Any] = table["on"][base]
    return {key: value for key, value in table.items() if key != "on"} | own


def as_toml(values: Mapping[str, Any]) -> str:
    """A whole recipe file: every field with its explanation, those left out with what holds then."""
    known = parse({"base": "", "data": [], **values}, Path())
    shown = {**vars(known.inputs), **known.recipe.as_dict(), **values}
    lines = []
    for kind in (Inputs, Recipe):
        for entry in dataclasses.fields(kind):
            value = shown[entry.name]
            lines += textwrap.wrap(
                f"{entry.metadata['doc']} ({type_of(entry)})", 110, initial_indent="# ", subsequent_indent="# "
            )
            lines.append(f"# {entry.name} is not set" if value is None else f"{entry.name} = {toml_value(value)}")
            lines.append("")
    return "\n".join(lines)


def field_docs() -> list[dict[str, Any]]:
    """Name, type, default and explanation of every field of a recipe file."""
    docs = []
    for kind in (Inputs, Recipe):
        for entry in dataclasses.fields(kind):
            default = None if entry.default is dataclasses.MISSING else entry.default
            required = entry.default is dataclasses.MISSING
            docs.append(
                {
                    "name": entry.name,
                    "type": type_of(entry),
                    "required": required,
                    "default": list(default) if isinstance(default, tuple) else default,
                    "doc": entry.metadata["doc"],
                }
            )
    return docs


def type_of(entry: "dataclasses.Field[Any]") -> str:
    """A field's type in words."""
    kind: Any = entry.type
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind)[:-1]) + f" or {get_args(kind)[-1]}"
    if get_origin(kind) is tuple:
        return "strings"
    return {int: "whole number", float: "number", bool: "true or false", str: "string"}.get(kind, "whole number")


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{escaped}"'
    return repr(value)
