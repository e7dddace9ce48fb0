"""Signs of a program in a prompt: lines of code, those of other languages than Python, identifiers, docstrings."""

import re
from typing import Final

IDENTIFIER: Final = re.compile(r"\b[a-z]+_[a-z_0-9]+\b|\b[a-z]+[A-Z][a-zA-Z]+\b|\b[a-zA-Z_][\w.]*\(")
CODE_LINE: Final = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(|class \w+[:({ ]|import \w+|from \w[\w.]* import|return\b.|"
    r"assert |>>> ?|```|#include|@\w+\n|"
    r"if .*[:{)]$|for .*[:{)]$|while .*[:{)]$|(?:export |pub |static |async )*(?:function|func|fn|fun|sub) \w+ ?[(<]|"
    r"(?:const|let|var|val|auto) \w+(?:: ?\w+)? ?=|(?:public|private|static|template|struct|enum|"
    r"impl|trait|interface|package) ?[\w<]|"
    r"(?:int|void|char|double|float|bool|long|string|unsigned|size_t|String|std::\w+)[*&\[\]<>\w]* \**\w+ ?[(=;]|"
    r"SELECT .+ FROM |CREATE TABLE|INSERT INTO|//|/\*|\*/|[}\])]+[;,]?$|#!|\$ \w|<\w+[^<>]*>|self\.|"
    r"elif |else:|try:|except|print\(|[a-z_]\w{2,} ?= ?[\[{(\"'\d])",
    re.MULTILINE,
)
PYTHON_HEAD: Final = re.compile(r"^[ \t]*(?:async )?def \w+\(", re.MULTILINE)
DOCSTRING: Final = re.compile(r"\"\"\"|'''|/\*\*|^[ \t]*(?:///|---? )", re.MULTILINE)
# What stands in programs of other languages, in queries, pages and command lines, and hardly ever in Python: ends and
# starts of lines, words that start a line with a bracket or an equals sign, and signs anywhere
_FOREIGN_ENDS: Final = (";", "{", ";}", "};", "});")
_FOREIGN_STARTS: Final = ("//", "/*", "#include", "#!/bin", "$ ", "<", "}", "SELECT ", "INSERT INTO", "CREATE TABLE")
_FOREIGN_WORDS: Final = ("const ", "let ", "var ", "public ", "fn ", "func ", "function ", "int ", "void ", "static ")
_FOREIGN_SIGNS: Final = ("console.log", "System.out", "printf(", "cout <<", " && ", " || ", ") => ", "</", " FROM ")


def foreign_signs(view: str, lines: list[str]) -> int:
    """How many lines and signs are of another language than Python; `lines` are those of `view`."""
    n_lines = sum(
        line.endswith(_FOREIGN_ENDS)
        or line.startswith(_FOREIGN_STARTS)
        or (line.startswith(_FOREIGN_WORDS) and ("=" in line or "(" in line))
        for line in map(str.strip, lines)
    )
    return n_lines + sum(map(view.count, _FOREIGN_SIGNS))
