"""Writes an answer to the terminal as it comes."""

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..answer.stream import Stream

# What a model writes must not steer the terminal: all control characters but tab and newline.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(stream: "Stream", on_text: Callable[[str], object] = lambda text: None) -> None:
    """Writes an answer as it comes, and a newline at its end, however it ends.

    Args:
        on_text: told of each piece, before it is written.
    """
    out = sys.stdout
    terminal = out.isatty()
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")
    last = ""
    try:
        for text in stream:
            on_text(text)
            out.write(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if terminal else text)
            out.flush()
            last = text
    finally:
        if not last.endswith("\n"):
            out.write("\n")
            out.flush()
