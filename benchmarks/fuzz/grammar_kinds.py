"""Grammars as users write them (GBNF, regular expressions, Lark): made from fragments, through those who read them."""

import random
from pathlib import Path
from typing import Any, Final

from ...edge.grammar.matcher import Grammar
from ...edge.grammar.rules import Rules, gbnf_grammar, lark_grammar, regex_grammar
from .damage import damaged_bytes
from .text_kinds import Vocabulary, walk

_ATOMS: Final = (
    *('"a"', '"é💡"', '"\\n\\x41\\u00e9\\U0001F4A1"', '""', "[a-z]", "[^\\]]", "[-a]", "[\\x00-\\U0010FFFF]", "."),
    *("A", "B", "root", "nowhere", "A-b", "# a remark\n", '"\\q"', "[z-a]", "[", '"', "<think>", "<|im_end|>", "~"),
)
_TIMES: Final = (
    *("", "", "", "*", "+", "?", "{3}", "{2,}", "{0,4}", "{,2}", "{4,2}", "{1000}", "{20000}", "{2000000000}"),
    *("*+?", "{", "{a}"),
)
_REGEXES: Final = (
    *("a", "é", ".", "\\d", "\\p{L}", "\\w+", "[a-z]", "[^a]", "[[:alpha:]]", "\\b", "^", "$", "(?i)", "(?=a)", "\\1"),
    *("(?P<x>a)", "a{2,5}", "a{1000}", "(a{99}){99}", "((a*)*)*", "(", ")", "[", "\\", "|", "\\x{10FFFF}", "(?:a|b)*c"),
)
_LARKS: Final = (
    *(
        "start: A",
        "start: A | start A",
        "start: %json {}",
        'start: %json {"type": "x"}',
        "A: /[a-z]+/",
        'A: "a"',
        "b: A b",
    ),
    *(
        "start[max_tokens=3]: A",
        "%ignore /\\s+/",
        "%import common.INT",
        "start: <think>",
        'start: %regex {"x": 1}',
        "A: /(/",
    ),
    *('start: "a"{3,9}', "start: nowhere", "start: A & ~A", "A[lazy]: /.*/", "start: %lark { start: A }", "// nothing"),
)


class GrammarKind:
    """Grammars."""

    kind = "grammar"

    def prepare(self, folder: Path) -> None:
        """The vocabulary."""
        self._vocabulary = Vocabulary()

    def make(self, draw: random.Random, folder: Path) -> None:
        """A text in one of the three languages, now and then damaged."""
        language = draw.choice(("gbnf", "gbnf", "regex", "lark"))
        text = {"gbnf": _gbnf, "regex": _regex, "lark": _lark}[language](draw).encode()
        (folder / f"rules.{language}").write_bytes(damaged_bytes(draw, text) if draw.random() < 0.2 else text)

    def use(self, folder: Path) -> object:
        """Read, and where it needs no trial in a process of its own, masked a few times."""
        rules = self._read(folder)
        return rules.plain and walk(Grammar(rules, self._vocabulary))

    def run(self, folder: Path) -> object:
        """Masked a few times, behind the trial in a process of its own."""
        return walk(Grammar(self._read(folder), self._vocabulary))

    def _read(self, folder: Path) -> Rules:
        (path,) = folder.iterdir()
        read: dict[str, Any] = {".gbnf": gbnf_grammar, ".regex": regex_grammar, ".lark": lark_grammar}
        made: Rules = read[path.suffix](path.read_text(encoding="utf-8", errors="surrogateescape"))
        return made


def _gbnf(draw: random.Random) -> str:
    if draw.random() < 0.03:
        depth = draw.choice((60, 64, 70, 5000, 20000))
        return f"root ::= {'(' * depth}{draw.choice(_ATOMS)}{')' * depth}"
    if draw.random() < 0.02:
        return "\n".join(f"r{i} ::= r{i + 1}" for i in range(draw.choice((100, 2500)))) + "\nroot ::= r0"
    names = ("root", *draw.sample(("A", "B", "A-b", "root", "_", "1a"), draw.randrange(3)))
    return "\n".join(f"{name} ::= {_alternatives(draw)}" for name in names)


def _alternatives(draw: random.Random, depth: int = 0) -> str:
    rows = [" ".join(_part(draw, depth) for _ in range(draw.randrange(1, 4))) for _ in range(draw.choice((1, 1, 2, 3)))]
    return draw.choice((" | ", " |\n  ", "|")).join(rows)


def _part(draw: random.Random, depth: int) -> str:
    atom = f"({_alternatives(draw, depth + 1)})" if depth < 4 and draw.random() < 0.25 else draw.choice(_ATOMS)
    return atom + draw.choice(_TIMES)


def _regex(draw: random.Random) -> str:
    return "".join(draw.choice(_REGEXES) for _ in range(draw.choice((1, 2, 4, 9, 200))))


def _lark(draw: random.Random) -> str:
    return "\n".join(draw.choice(_LARKS) for _ in range(draw.randrange(1, 5)))
