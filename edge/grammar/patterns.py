"""Regular expressions of JSON Schema: only what ECMA-262 and llguidance's engine read alike goes through.

The schema's `pattern` is ECMA-262, llguidance's is the syntax of Rust's regex crate. Where both take a text and mean
different things by it, such as [[:alpha:]] or [a&&b], the answer would not be what the schema says.
"""

import re
from typing import Final

MAX_PATTERN_CHARS: Final = 10_000
MAX_REPEATS: Final = 100_000
# Escapes that both know, and punctuation that both take for itself.
_SAME_ESCAPES: Final = frozenset("dDwWsSnrtfv" + "\\^$.*+?()[]{}|/-")
_ITSELF: Final = frozenset("!\"#%&',:;<=>@_`~ ")
_HEX: Final = re.compile(r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}")
_BOUNDS: Final = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_NOT_A_LINE_END: Final = r"[^\n\r\u2028\u2029]"

# The exact calendar, where llguidance's own expressions take the 29th of February in every year and the year 0.
_YEAR: Final = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_BY_FOUR: Final = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP: Final = f"(?:[0-9]{{2}}{_BY_FOUR}|{_BY_FOUR}00)"
_DATE: Final = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# `format` by name: a pattern of ours, or None where llguidance's own is right.
FORMATS: Final[dict[str, str | None]] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    **dict.fromkeys(("duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")),
}


class PatternError(ValueError):
    """Why a pattern cannot be kept."""


def same_pattern(pattern: str) -> str:
    """The pattern as llguidance is to read it.

    Raises:
        PatternError: it says something that the two syntaxes read differently, or llguidance cannot do.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError(f"a pattern of {len(pattern)} characters; {MAX_PATTERN_CHARS} are possible")
    out: list[str] = []
    at = 0
    repeatable = False
    while at < len(pattern):
        letter = pattern[at]
        if letter == "\\":
            text, at = _escape(pattern, at)
            out.append(text)
            repeatable = True
        elif letter == "[":
            text, at = _class(pattern, at)
            out.append(text)
            repeatable = True
        elif letter == "(":
            named = re.match(r"\((?:\?(?::|<[A-Za-z_][A-Za-z0-9_]*>))?(?!\?)", pattern[at : at + 200])
            if named is None:
                raise PatternError(f"{pattern[at : at + 4]!r}: no look-around, flags or options are possible")
            out.append("(?:")
            at += len(named[0])
            repeatable = False
        elif letter in "*+?" or (letter == "{" and _BOUNDS.match(pattern, at)):
            if not repeatable:
                raise PatternError(f"{letter!r} has nothing before it to repeat")
            text, at = _repeat(pattern, at)
            out.append(text)
            repeatable = False
        elif letter in "{}]":
            raise PatternError(f"{letter!r} stands for itself only as \\{letter}")
        else:
            out.append(_NOT_A_LINE_END if letter == "." else letter)
            at += 1
            repeatable = letter not in "^$|"
    return "".join(out)


def _escape(pattern: str, at: int) -> tuple[str, int]:
    """The escape at a place, and the place after it."""
    letter = pattern[at + 1 : at + 2]
    if letter in _SAME_ESCAPES and letter:
        return ("/" if letter == "/" else "\\" + letter), at + 2
    if letter in _ITSELF and letter:
        # Rust takes \< and the like for word boundaries.
        return f"\\x{ord(letter):02x}", at + 2
    found = _HEX.match(pattern, at + 1)
    if found is None or 0xD800 <= int(found[0][1:], 16) < 0xE000:
        raise PatternError(f"the escape \\{letter} cannot be kept")
    return f"\\x{{{found[0][1:]}}}", found.end()


def _class(pattern: str, at: int) -> tuple[str, int]:
    out = "["
    at += 1
    if pattern.startswith("^", at):
        out += "^"
        at += 1
    begun = at
    while (letter := pattern[at : at + 1]) != "]":
        if not letter:
            raise PatternError("a character class has no end")
        if letter == "\\":
            text, at = _escape(pattern, at)
            out += text
            continue
        if letter == "[" or pattern[at : at + 2] in ("&&", "--", "~~"):
            raise PatternError(f"{letter!r} in a character class stands for itself only as \\{letter}")
        out += letter
        at += 1
    if at == begun:
        raise PatternError("an empty character class")
    return out + "]", at + 1


def _repeat(pattern: str, at: int) -> tuple[str, int]:
    found = _BOUNDS.match(pattern, at)
    if found is not None:
        bounds = [int(digits[:20]) for digits in (found[1], found[3]) if digits]
        if max(bounds) > MAX_REPEATS:
            raise PatternError(f"{found[0][:40]} repeats more than {MAX_REPEATS} times")
        if bounds != sorted(bounds):
            raise PatternError(f"{found[0]} has its bounds the wrong way round")
        text, at = found[0], found.end()
    else:
        text, at = pattern[at], at + 1
    # Which way is tried first does not matter to what matches.
    if pattern.startswith("?", at):
        at += 1
    return text, at
