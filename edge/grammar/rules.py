"""What an answer is to keep to: a JSON schema, a GBNF or Lark grammar, or a regular expression, read and checked.

    rules = schema_grammar({"type": "object", "properties": {"legs": {"type": "integer"}}})
    session.ask("How many legs has a cat?", grammar=rules).text       # {"legs": 4}

All of them become Lark for llguidance here, without the C library and without llguidance itself.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..errors import InputError
from ..files.read import is_text, loads_json, read_text

MAX_GRAMMAR_BYTES: Final = 1 << 20
# Below these a GBNF grammar costs next to nothing, whatever it says.
_PLAIN_CHARS, _PLAIN_RULES = 2000, 50
# llguidance would else allow only the tokens that a tokenizer makes of a text that is sure to come.
_ANY_TOKENS: Final = '%llguidance {"no_forcing": true}\n'

Kind = Literal["JSON schema", "GBNF grammar", "regular expression", "Lark grammar"]


@dataclass(frozen=True)
class Rules:
    """Rules for answers; made by `schema_grammar`, `gbnf_grammar`, `regex_grammar` and `lark_grammar`.

    Attributes:
        kind: what they were.
        lark: the grammar for llguidance.
        plain: known to be no burden, so that they need no trial (`trial.py`).
        parts: of a JSON schema, the path and the Lark of each schema in it.
    """

    kind: Kind
    lark: str
    plain: bool = False
    parts: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=(), compare=False, repr=False)


def schema_grammar(schema: Mapping[str, Any] | bool) -> Rules:
    """Rules for the JSON texts that a schema allows, in the order of its `properties`.

    Raises:
        InputError: the schema is not valid, or says something that no grammar is made of.
    """
    from .schema import checked_schema

    checked = checked_schema(schema)
    _check_size(checked.text)
    return Rules("JSON schema", _of_schema(checked.text), checked.plain, tuple(checked.parts))


def framed_grammar(schema: Mapping[str, Any] | bool, frame: str) -> Rules:
    """Rules for the JSON texts that a schema allows, with other text around them; raises as `schema_grammar`.

    Args:
        frame: Lark from the rule `start` on, in which the rule `value` stands for such a JSON text.
    """
    from .schema import checked_schema

    checked = checked_schema(schema)
    _check_size(checked.text)
    return Rules("JSON schema", f"{_ANY_TOKENS}{frame}\nvalue: %json {checked.text}\n", False, tuple(checked.parts))


def part_grammar(part: Mapping[str, Any]) -> str:
    """The Lark of one of `Rules.parts`."""
    return _of_schema(json.dumps(part))


def gbnf_grammar(text: str) -> Rules:
    """Rules of llama.cpp's GBNF; the answer is what its rule `root` says. InputError where it is not valid."""
    from .gbnf import gbnf_to_lark

    _check_size(text)
    lark, n_rules = gbnf_to_lark(text)
    plain = len(text) <= _PLAIN_CHARS and n_rules <= _PLAIN_RULES and len(lark) <= 10 * _PLAIN_CHARS
    return Rules("GBNF grammar", _ANY_TOKENS + lark, plain)


def regex_grammar(text: str) -> Rules:
    """Rules of a regular expression that the whole answer matches, in the syntax of Rust's `regex`.

    Raises:
        InputError: it is empty or too large; whether it is valid is seen when it is used.
    """
    _check_size(text)
    # A slash would end it, and so would a line break.
    slashes = re.sub(r"(\\[\s\S])|/", lambda found: found[1] or r"\/", text)
    one_line = slashes.translate({10: r"\n", 13: r"\r"})
    return Rules("regular expression", f"{_ANY_TOKENS}start: /{one_line}/\n")


def lark_grammar(text: str) -> Rules:
    """Rules of a grammar in llguidance's Lark, which begins with its rule `start`; InputError as `regex_grammar`."""
    from .gbnf import MAX_REPETITIONS

    _check_size(text)
    if (n_repeats := sum(map(text.count, "?*{~"))) > MAX_REPETITIONS:
        raise InputError(f"the grammar has {n_repeats} signs of repetition; {MAX_REPETITIONS} are possible")
    # The last of two settings counts.
    return Rules("Lark grammar", f"{text}\n{_ANY_TOKENS}")


def read_schema(path: str | os.PathLike[str]) -> Rules:
    """The rules of a file with a JSON schema; raises as `schema_text`."""
    return schema_text(_text(path), path)


def schema_text(text: str, where: str | os.PathLike[str] | None = None) -> Rules:
    """The rules of a JSON schema as a text; raises as `schema_grammar`, and InputError where it is no JSON.

    Args:
        where: the file or option, for messages.
    """
    try:
        schema = loads_json(text)
    except ValueError as error:
        raise InputError(f"is not valid JSON ({error})", where=where) from None
    if not isinstance(schema, dict | bool):
        raise InputError("a JSON schema is an object, true or false", where=where)
    return _made(schema_grammar, schema, where)


def read_grammar(path: str | os.PathLike[str]) -> Rules:
    """The rules of a GBNF file; InputError where it cannot be read or is not valid."""
    return _made(gbnf_grammar, _text(path), path)


def read_lark(path: str | os.PathLike[str]) -> Rules:
    """The rules of a file in llguidance's Lark; InputError where it cannot be read."""
    return _made(lark_grammar, _text(path), path)


def _made(make: Callable[[Any], Rules], content: Any, where: str | os.PathLike[str] | None) -> Rules:
    """Rules of what a file or option says, which its errors then name."""
    try:
        return make(content)
    except InputError as error:
        place = where if error.where is None else f"{where or ''}{error.where}"
        raise InputError(error.message, where=place, hint=error.hint, problems=error.problems) from None


def _of_schema(text: str) -> str:
    return f"{_ANY_TOKENS}start: %json {text}\n"


def _check_size(text: str) -> None:
    if not is_text(text):
        raise InputError("the grammar holds half of a surrogate pair, which is no character")
    if not text.strip() or "\0" in text:
        raise InputError("the grammar is empty or holds a NUL character")
    if (size_bytes := len(text.encode())) > MAX_GRAMMAR_BYTES:
        raise InputError(f"the grammar has {size_bytes} bytes; {MAX_GRAMMAR_BYTES} are possible")


def _text(path: str | os.PathLike[str]) -> str:
    """The text of a file; raises as `read_text`."""
    return read_text(path, MAX_GRAMMAR_BYTES)
