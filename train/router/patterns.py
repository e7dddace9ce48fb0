"""Fills patterns of prompts in, and lays an order and a text out beside each other as people do."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
# A prompt's text, its label and its source
Row = tuple[str, str | None, str]
_SLOT: Final = re.compile(r"\{(\w+)\}")


def filled(pattern: str, lists: Mapping[str, Sequence[str]], draw: random.Random) -> str:
    """The pattern with each {name} drawn from the list of that name, {n}, {N} and {p} from numbers and prices."""
    kept: dict[str, str] = {}

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "n":
            return str(draw.randint(2, 30))
        if name == "N":
            return str(draw.randint(31, 900))
        if name == "p":
            amount = draw.choice([str(draw.randint(2, 95)), f"{draw.randint(1, 60)}.{draw.randint(5, 95):02}"])
            return draw.choice(["$", "$", "€"]) + amount if draw.random() < 0.7 else f"{amount} dollars"
        if name in ("Do", "does", "Does"):
            verb, _, rest = draw.choice(lists["do"]).partition(" ")
            told = f"{verb if name == 'Do' else _third_person(verb)} {rest}"
            return told if name == "does" else told[0].upper() + told[1:]
        if name not in lists:
            return match[0]
        return kept.setdefault(name, draw.choice(lists[name]))

    # What is drawn may hold slots itself.
    return _SLOT.sub(value, _SLOT.sub(value, pattern))


def _third_person(verb: str) -> str:
    return f"{verb}es" if verb.endswith(("s", "sh", "ch", "x")) else f"{verb}s"


def laid_out(order: str, text: str, labels: Sequence[str], draw: random.Random) -> str:
    """The order before or after the text, on the same line or apart, the text with a label, in quotes or bare."""
    label = draw.choice(labels)
    kind = draw.randrange(10)
    if kind < 3:
        return f"{order}\n\n{label}{text}"
    if kind == 3:
        return f"{order}\n{label}{text}"
    if kind == 4:
        return f"{order} {label.strip()} {text}".replace("  ", " ")
    if kind == 5:
        return f'{order}\n\n"{text}"'
    if kind == 6:
        return f"{label}{text}\n\n{order}"
    return f"{text} {order}" if draw.random() < 0.6 else f"{text}\n{order}"
