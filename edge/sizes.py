"""Sizes of memory as people write and read them."""

import re
from typing import Final

from .errors import InputError

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
    return f"{n_bytes} are bytes: did you mean {n_bytes}M?" if n_bytes < 1 << 20 else None
