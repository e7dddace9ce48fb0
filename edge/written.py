"""What people write, and how it is read: names of adapters, packs and commands, which they mistype; sizes of memory.

did_you_mean("mth", ["code", "math", "summarize"])      # ["math", "summarize", "code"]
parse_bytes("1.5G"), human_bytes(1536)                  # 1610612736, "1.5 KiB"
"""

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
    import difflib

    wanted = name.lower()
    return sorted(names, key=lambda known: -difflib.SequenceMatcher(None, wanted, known.lower()).ratio())


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely meant for; None if none is like it."""
    import difflib

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


_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_bytes(text: str) -> int:
    """ "1G", "900M", "1.5GiB", "700000000" as bytes; K, M and G are powers of 1024.

    Raises:
        InputError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)(?:i?[bB])?\s*", text)
    size = round(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise InputError(f"{text!r} is not a size of memory", hint="for example 900M, 1G or 1.5G")
    return size


def human_bytes(n_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024 or unit == "GiB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("unreachable")


def meant_hint(n_bytes: int) -> str | None:
    """What was meant by a limit that is too small to be one: "100 are bytes: did you mean 100M?"."""
    return f"{n_bytes} are bytes: did you mean {n_bytes}M?" if 0 < n_bytes < 1 << 16 else None
