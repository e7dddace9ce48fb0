"""Finds the program in an answer."""

import re

# A fence that the answer ends without closing counts: it was cut at the token cap
_PYTHON_FENCE = re.compile(r"```[ \t]*(?:python3?|py)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_BARE_FENCE = re.compile(r"```[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(text: str) -> str:
    """The code of an answer: its first ```python block, else its first ``` block without a language, else all of it."""
    found = _PYTHON_FENCE.search(text) or _BARE_FENCE.search(text)
    return found.group(1) if found else text
