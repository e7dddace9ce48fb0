"""What a chat template is told beside the messages: tools, documents, a date, switches of its own; checked here.

checked_arguments({"date": "2026-11-30", "think": False})
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any, Final

from ..errors import InputError
from .chat_template import in_a_line

# Of all template arguments of a prompt together, as JSON
MOST_ARGUMENT_BYTES: Final = 1 << 20


def checked_arguments(arguments: Any, where: str = "the template arguments") -> dict[str, Any]:
    """Template arguments as plain JSON values: texts, numbers, truth values, lists, tables; a date as YYYY-MM-DD.

    "tools" and "documents" are lists of tables, "date" is the day that the template takes for today, "think" switches
    thinking on and off.

    Raises:
        InputError: they are something else, or too large.
    """
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise InputError(f"{where} are {type(arguments).__name__}; they are names with values")
    given = {
        name: value.isoformat() if isinstance(value, datetime.date) else value for name, value in arguments.items()
    }
    try:
        text = json.dumps(given, allow_nan=False, ensure_ascii=False)
        n_bytes = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} are no JSON values ({in_a_line(error)})") from None
    if n_bytes > MOST_ARGUMENT_BYTES:
        raise InputError(f"{where} have {n_bytes} bytes; {MOST_ARGUMENT_BYTES} are taken")
    plain: dict[str, Any] = json.loads(text)
    for name in ("tools", "documents"):
        rows = plain.get(name)
        if rows is not None and not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise InputError(f"{name} in {where} is no list of tables")
    if plain.get("date") is not None:
        day_of(plain["date"])
    return plain


def day_of(text: object) -> datetime.date:
    """A date as it is told; InputError where it is none."""
    if isinstance(text, datetime.date):
        return text
    try:
        return datetime.date.fromisoformat(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{text!r} is no date", hint="for example 2026-11-30") from None
