"""Paths that packs, conversations and the environment name: any text, of which not every one is a path."""

from pathlib import Path

from ..errors import InputError

# What Linux takes; others take less, and say so themselves
MOST_BYTES = 4096


def user_path(text: str) -> Path:
    """The path that a text names, with `~` as the user's folder.

    Raises:
        InputError: no system has such a path: an unknown user, a NUL, half a surrogate pair, too long.
    """
    try:
        path = Path(text).expanduser()
        if not text or "\0" in text or len(str(path).encode("utf-8", "surrogateescape")) > MOST_BYTES:
            raise ValueError
    except (RuntimeError, ValueError):
        raise InputError(f"{text[:200]!r} is no path", hint="~NAME is the folder of a user of this machine") from None
    return path
