"""GBNF, the grammars of llama.cpp, as Lark for llguidance, with the same language to the letter.

llguidance's own converter is not used: it renames rules into collisions, knows no \\u escapes, takes "." for anything
but a line break, and makes whole sub-rules lexemes. llguidance takes the longest lexeme that matches and never goes
back, so that [a-z]+ [a-z]+ would no longer find "abc". Here a grammar without recursion becomes one regular expression,
and of any other each character is a lexeme of its own, which leaves nothing to be cut too long.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ..errors import InputError

MAX_RULES: Final = 5000
MAX_DEPTH: Final = 100
# llama.cpp's own bound; "no more than" a number above it was no bound there.
MAX_REPEATS: Final = 2000
# So many parts that may be left out, one after the other, take a second for each token of an answer.
MAX_REPETITIONS: Final = 1000
# Of one regular expression for all rules; more is written as terminals that name each other.
MAX_WHOLE_CHARS: Final = 200_000
MAX_WHOLE_GROUPS: Final = 5_000
# Deeper chains of rules would be too deep for llguidance's own recursion.
MAX_CHAIN: Final = 500
_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_INT: Final = re.compile(r"[0-9]{1,19}")
_SPACE: Final = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES: Final = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_TOKEN: Final = re.compile(r"(!?)<(\[[0-9]{1,9}\]|[^<>\s]{1,200})>")
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX: Final = {"x": 2, "u": 4, "U": 8}
_LAST: Final = 0x10FFFF


@dataclass
class _Node:
    """A part of a rule.

    Attributes:
        kind: "chars" (`text` is a list of regular expressions of one character each), "ref" (`text` is its name),
            "token", "seq", "alt" or "repeat".
        most: of a repetition; None for no end.
    """

    kind: str
    text: str = ""
    chars: list[str] = field(default_factory=list)
    parts: list["_Node"] = field(default_factory=list)
    least: int = 0
    most: int | None = None


def gbnf_to_lark(text: str) -> tuple[str, int]:
    """A Lark grammar with the rule `start`, and the number of its rules.

    Raises:
        InputError: the text is no GBNF, nests too deeply or has too many rules; the message says where.
    """
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise InputError("the grammar has no rule named root", hint="the answer is what root says")
    for name, node in rules.items():
        for other in _names(node):
            if other not in rules:
                raise InputError(f"the grammar names the rule {other!r} in {name!r}, and no rule has that name")
    used, recursive = _reached(rules)
    n_repeats = sum(one.kind == "repeat" for name in used for one in _walk(rules[name]))
    if recursive and n_repeats > MAX_REPETITIONS:
        raise InputError(f"the grammar has {n_repeats} repetitions; {MAX_REPETITIONS} are possible with recursion")
    has_tokens = any(_has_token(rules[name]) for name in used)
    one_regex = not recursive and not has_tokens
    if one_regex and (whole := _Whole(rules).of("root")) is not None:
        return f"start: /{whole or '(?:)'}/\n", len(used)
    ids = {name: f"{'R' if one_regex else 'r'}{i}" for i, name in enumerate(used)}
    lines = [f"start: {ids['root']}"]
    lines += [f"{ids[name]}: {_emit(rules[name], ids)}" for name in used]
    return "\n".join(lines) + "\n", len(used)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rules(self) -> dict[str, _Node]:
        """All rules by name; of two with one name the later, as in llama.cpp."""
        rules: dict[str, _Node] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._match(_NAME, "the name of a rule")
            self._skip()
            if not self._text.startswith("::=", self._at):
                self._fail("::= is missing")
            self._at += 3
            self._skip(lines=True)
            rules[name] = self._alternatives(0)
            if len(rules) > MAX_RULES:
                raise InputError(f"the grammar has more than {MAX_RULES} rules")
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("a line break is missing")
            self._skip(lines=True)
        return rules

    def _fail(self, reason: str) -> None:
        line = self._text.count("\n", 0, self._at) + 1
        near = self._text[self._at : self._at + 30].split("\n")[0]
        raise InputError(
            "the grammar is not valid GBNF", problems=[f"line {line}: {reason}" + (f" at {near!r}" if near else "")]
        )

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(f"{what} is missing")
        assert found is not None
        self._at = found.end()
        return found[0]

    def _skip(self, lines: bool = False) -> None:
        found = (_SPACE_AND_LINES if lines else _SPACE).match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else ""

    def _alternatives(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise InputError(f"the grammar nests brackets deeper than {MAX_DEPTH} levels")
        parts = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip(lines=True)
            parts.append(self._sequence(depth))
        return parts[0] if len(parts) == 1 else _Node("alt", parts=parts)

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        nested = depth > 0
        while letter := self._peek():
            if letter == '"':
                parts.append(self._literal())
            elif letter == "[":
                parts.append(_Node("chars", chars=[self._class()]))
            elif letter == ".":
                self._at += 1
                parts.append(_Node("chars", chars=[_class([(0, _LAST)])]))
            elif letter == "(":
                self._at += 1
                self._skip(lines=True)
                parts.append(self._alternatives(depth + 1))
                if self._peek() != ")":
                    self._fail("a closing bracket is missing")
                self._at += 1
            elif letter in "*+?{":
                self._repeat(parts, nested)
            elif letter in "<!":
                parts.append(self._token())
            elif _NAME.match(letter):
                parts.append(_Node("ref", text=self._match(_NAME, "a name")))
            else:
                break
            self._skip(lines=nested)
        return parts[0] if len(parts) == 1 else _Node("seq", parts=parts)

    def _repeat(self, parts: list[_Node], nested: bool) -> None:
        if not parts:
            self._fail("there is nothing before it to repeat")
        letter = self._peek()
        self._at += 1
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(letter, (0, None))
        if letter == "{":
            self._skip(lines=nested)
            least = int(self._match(_INT, "a number"))
            most = least
            self._skip(lines=nested)
            if self._peek() == ",":
                self._at += 1
                self._skip(lines=nested)
                most = int(self._match(_INT, "a number")) if self._peek().isdigit() else None
                self._skip(lines=nested)
            if self._peek() != "}":
                self._fail("} is missing")
            self._at += 1
        if least > MAX_REPEATS:
            self._fail(f"{least} repetitions are asked for; {MAX_REPEATS} are possible")
        if most is not None and most < least:
            self._fail(f"{most} repetitions at most are fewer than {least} at least")
        most = None if most is not None and most > MAX_REPEATS else most
        # Of a repetition that may be empty no more need be said, and "repeat" within "repeat" is not deeper than it is.
        parts[-1] = _Node("repeat", parts=[parts[-1]], least=least, most=most)
        if _depth(parts[-1]) > MAX_DEPTH:
            raise InputError(f"the grammar nests repetitions deeper than {MAX_DEPTH} levels")

    def _token(self) -> _Node:
        found = _TOKEN.match(self._text, self._at)
        if found is None or (found[1] and not found[2].startswith("[")):
            self._fail("a token is written <[1000]> or <name>, another one than it !<[1000]>")
        assert found is not None
        self._at = found.end()
        inside = found[2]
        return _Node("token", text=f"<[^{inside[1:-1]}]>" if found[1] else f"<{inside}>")

    def _literal(self) -> _Node:
        self._at += 1
        chars = []
        while (letter := self._peek()) != '"':
            if not letter:
                self._fail("the text has no end")
            chars.append(_class([(code := self._char(), code)]))
        self._at += 1
        return _Node("chars", chars=chars)

    def _class(self) -> str:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while (letter := self._peek()) != "]":
            if not letter:
                self._fail("the character class has no end")
            first = last = self._char()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._char()
                if last < first:
                    self._fail("a range of characters runs backwards")
            ranges.append((first, last))
        self._at += 1
        if not ranges and not negated:
            self._fail("a character class is empty")
        return _class(ranges, negated) if ranges else _class([(0, _LAST)])

    def _char(self) -> int:
        letter = self._text[self._at]
        self._at += 1
        if letter != "\\":
            return ord(letter)
        kind = self._peek()
        self._at += 1
        if kind in _HEX:
            digits = self._text[self._at : self._at + _HEX[kind]]
            if re.fullmatch(f"[0-9A-Fa-f]{{{_HEX[kind]}}}", digits) and (code := int(digits, 16)) <= _LAST:
                self._at += len(digits)
                if not 0xD800 <= code < 0xE000:
                    return code
                self._at -= len(digits)
            self._fail(f"\\{kind} is followed by no character's number")
        if kind not in _ESCAPES:
            self._at -= 2
            self._fail("an unknown escape")
        return ord(_ESCAPES[kind])


def _class(ranges: list[tuple[int, int]], negated: bool = False) -> str:
    """A regular expression for one character; all are written as numbers, so that none means anything."""
    inside = "".join(f"\\x{{{a:X}}}" if a == b else f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges)
    return f"/[{'^' if negated else ''}{inside}]/"


def _walk(node: _Node) -> Iterator[_Node]:
    stack = [node]
    while stack:
        one = stack.pop()
        yield one
        stack += one.parts


def _names(node: _Node) -> list[str]:
    return [one.text for one in _walk(node) if one.kind == "ref"]


def _has_token(node: _Node) -> bool:
    return any(one.kind == "token" for one in _walk(node))


def _depth(node: _Node) -> int:
    """How many repetitions stand directly within each other."""
    depth = 0
    while node.kind == "repeat":
        depth, node = depth + 1, node.parts[0]
    return depth


def _reached(rules: dict[str, _Node]) -> tuple[list[str], bool]:
    """The rules that `root` needs, itself first, and whether any of them leads back to itself."""
    order: list[str] = []
    longest: dict[str, int] = {}
    open_rules: set[str] = set()
    recursive = False
    stack: list[tuple[str, Iterator[str]]] = []

    def enter(name: str) -> None:
        order.append(name)
        open_rules.add(name)
        longest[name] = 0
        stack.append((name, iter(dict.fromkeys(_names(rules[name])))))

    enter("root")
    while stack:
        name, others = stack[-1]
        for other in others:
            if other in open_rules:
                recursive = True
            elif other not in longest:
                enter(other)
                break
            else:
                longest[name] = max(longest[name], longest[other] + 1)
        else:
            stack.pop()
            open_rules.discard(name)
            if stack:
                above = stack[-1][0]
                longest[above] = max(longest[above], longest[name] + 1)
        if len(stack) > MAX_CHAIN or longest[name] > MAX_CHAIN:
            raise InputError(f"the grammar's rules name each other in a chain of more than {MAX_CHAIN}")
    return order, recursive


class _Whole:
    """Rules written out in full: one regular expression, which the parser of regular expressions puts in order.

    Of terminals that name each other llguidance makes unions itself, and fails on one in forty of classes that overlap
    beyond ASCII. That is left to grammars whose rules would come to too long a text.
    """

    def __init__(self, rules: dict[str, _Node]) -> None:
        self._rules = rules
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str | None:
        """The expression of a rule; None where it would be too long or too deep."""
        try:
            text = self._name(name)
        except (OverflowError, RecursionError):
            return None
        depth = deepest = 0
        for bracket in re.finditer(r"[()]", text):
            depth += 1 if bracket[0] == "(" else -1
            deepest = max(deepest, depth)
        return text if deepest <= MAX_DEPTH else None

    def _name(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = self._text(self._rules[name])
        return self._known[name]

    def _text(self, node: _Node) -> str:
        if node.kind == "chars":
            return "".join(one.strip("/") for one in node.chars)
        if node.kind == "ref":
            return self._name(node.text)
        inner = [self._text(part) for part in node.parts]
        text = "".join(inner) if node.kind == "seq" else "(?:" + "|".join(inner) + ")" + _ending(node)
        if len(text) > MAX_WHOLE_CHARS or text.count("(?:") > MAX_WHOLE_GROUPS:
            raise OverflowError
        return text


def _ending(node: _Node) -> str:
    """How often a node stands there, as regular expressions and Lark have it."""
    if node.kind != "repeat":
        return ""
    ends = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return ends.get((node.least, node.most), f"{{{node.least},{'' if node.most is None else node.most}}}")


def _emit(node: _Node, ids: dict[str, str]) -> str:
    if node.kind == "chars":
        return " ".join(node.chars) if node.chars else '""'
    if node.kind == "ref":
        return ids[node.text]
    if node.kind == "token":
        return node.text
    inner = [_emit(part, ids) for part in node.parts]
    if node.kind == "alt":
        return "(" + " | ".join(inner) + ")"
    if node.kind == "seq":
        return "(" + " ".join(inner) + ")" if inner else '""'
    return f"({inner[0]})" + _ending(node)
