"""Writes an answer to the terminal as it comes."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..answer.stream import Stream


def show(stream: "Stream", on_text: Callable[[str], object] = lambda text: None) -> None:
    """Writes an answer as it comes, and a newline at its end, however it ends.

    Args:
        on_text: told of each piece, before it is written.
    """
    out = sys.stdout
    last = ""
    try:
        for text in stream:
            on_text(text)
            out.write(text)
            out.flush()
            last = text
    finally:
        if not last.endswith("\n"):
            out.write("\n")
            out.flush()
