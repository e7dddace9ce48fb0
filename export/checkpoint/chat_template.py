"""Finds a checkpoint's chat template and its generation defaults, as GGUF keys."""

import datetime
import json
import re
from pathlib import Path
from typing import Any, Final

from ...edge.errors import InputError
from ...edge.files.read import read_table, read_text
from ...edge.gguf.chat_template import ChatTemplate
from ...edge.gguf.file import GgufFile, ValueType
from ..files.gguf_writer import Value, array, float32, text
from ..tokenizer.special_tokens import optional_json

KEY: Final = "tokenizer.chat_template"
MOST_BYTES: Final = 8 << 20
_NOW: Final = re.compile(r"""\bstrftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
# Of a number in generation_config.json: what fits 32 bits
LARGEST: Final = (1 << 31) - 1
# generation_config.json -> general.sampling.*, as llama.cpp's tools read them
_SAMPLING: Final = {
    "temperature": ("temp", ValueType.FLOAT32),
    "top_k": ("top_k", ValueType.INT32),
    "top_p": ("top_p", ValueType.FLOAT32),
    "min_p": ("min_p", ValueType.FLOAT32),
    "repetition_penalty": ("penalty_repeat", ValueType.FLOAT32),
}


def chat_template_keys(folder: Path | None, given: Path | None, date: datetime.date | None = None) -> dict[str, Value]:
    """The keys of the chat template(s): of the file given, else of chat_template.jinja, chat_template.json,
    tokenizer_config.json, in this order. Empty if there is none.

    Args:
        date: written in place of today's.

    Raises:
        InputError: the template is no valid one or takes no conversation, or the file given cannot be read.
    """
    if given is not None:
        return _keys({"default": _read(given)}, given, date)
    if folder is None:
        return {}
    if (folder / "chat_template.jinja").exists():
        return _keys({"default": _read(folder / "chat_template.jinja")}, folder / "chat_template.jinja", date)
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = optional_json(folder / name).get("chat_template")
        if isinstance(found, str):
            return _keys({"default": found}, folder / name, date)
        if isinstance(found, list):
            return _keys(_named(found, folder / name), folder / name, date)
    return {}


def with_date(source: str, date: datetime.date, where: Path) -> str:
    """A template in which a fixed day stands for today.

    Raises:
        InputError: it asks for the day in another way than by strftime_now("…"), or not at all.
    """
    changed = _NOW.sub(lambda found: json.dumps(date.strftime(found[2]), ensure_ascii=False), source)
    if changed == source:
        raise InputError('the chat template writes no date: it has no strftime_now("…")', where=where)
    if ChatTemplate(changed).is_dated:
        raise InputError('the chat template asks for the date in another way than by strftime_now("…")', where=where)
    return changed


def template_notes(file: GgufFile) -> list[str]:
    """What to know of a base's template: that there is none of use, or that it writes the date."""
    try:
        template = ChatTemplate.of(file)
        if template.is_dated:
            return [
                "the chat template writes today's date into prompts: the same question is another prompt tomorrow; "
                "--date YYYY-MM-DD fixes it"
            ]
    except InputError as error:
        return [f"{error.message}; `slm-edge run` needs one that works: --chat-template FILE"]
    return []


def _named(entries: list[Any], where: Path) -> dict[str, str]:
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in entries}
    except (KeyError, TypeError):
        raise InputError("its chat_template is no list of names and templates", where=where) from None


def _read(path: Path) -> str:
    return read_text(path, MOST_BYTES)


def _keys(templates: dict[str, str], where: Path, date: datetime.date | None) -> dict[str, Value]:
    if not templates:
        return {}
    default = templates.get("default", next(iter(templates.values())))
    try:
        # The others, for tools and the like, are kept as they are and never run here.
        ChatTemplate(default).check()
    except InputError as error:
        raise InputError(error.message, where=where, hint="give another one: --chat-template FILE") from None
    if date is not None:
        default = with_date(default, date, where)
    named = {name: source for name, source in templates.items() if name != "default"}
    keys = {KEY: text(default)}
    if named:
        keys["tokenizer.chat_templates"] = array(ValueType.STRING, list(named))
        keys |= {f"{KEY}.{name}": text(source) for name, source in named.items()}
    return keys


def sampling_keys(folder: Path) -> dict[str, Value]:
    """`general.sampling.*` of generation_config.json; nothing if it says that answers are not sampled."""
    path = folder / "generation_config.json"
    defaults: dict[str, Any] = read_table(path) if path.exists() else {}
    if defaults.get("do_sample") is False:
        return {}
    keys = {}
    for field, (name, kind) in _SAMPLING.items():
        number = defaults.get(field)
        if isinstance(number, int | float) and not isinstance(number, bool):
            # Written so that NaN fails.
            if not -LARGEST <= number <= LARGEST:
                raise InputError(f"{field} is no number that a GGUF holds", where=path)
            value = float32(float(number)) if kind is ValueType.FLOAT32 else Value(kind, int(number))
            keys[f"general.sampling.{name}"] = value
    return keys
