"""Names that people give and mistype: of adapters, packs and commands.

did_you_mean("mth", ["code", "math", "summarize"])      # ["math", "summarize", "code"]
"""

import difflib
import re
from collections.abc import Iterable
from typing import Final

from .errors import InputError

_SAFE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Words that commands give a meaning of their own, and device names of Windows.
_RESERVED: Final = {"none", "auto", "base", "con", "prn", "aux", "nul"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in "123456789"
}


def did_you_mean(name: str, names: Iterable[str]) -> list[str]:
    """All of `names`, the nearest to `name` first."""
    wanted = name.lower()
    return sorted(names, key=lambda known: -difflib.SequenceMatcher(None, wanted, known.lower()).ratio())


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely meant for; None if none is like it."""
    known = list(names)
    begun = [one for one in known if name and one.startswith(name)]
    return next(iter(begun or difflib.get_close_matches(name, known, 1, 0.6)), None)


def check_name(name: str, what: str) -> str:
    """Returns the name if it is safe as a file name everywhere and as a word on a command line.

    Raises:
        InputError: it is empty, too long, has other letters than `A-Z a-z 0-9 . _ -`, or is a reserved word.
    """
    if not _SAFE.fullmatch(name) or name.endswith(".") or name.lower().partition(".")[0] in _RESERVED:
        raise InputError(
            f"{name!r} cannot be the name of {what}",
            hint="use up to 64 letters, digits and . _ -, a letter or digit first; 'none', 'auto' and 'base' are taken",
        )
    return name
