"""Finds the program in an answer."""

import ast
import re
from collections.abc import Iterable

# A fence that the answer ends without closing counts: it was cut at the token cap
_PYTHON_FENCE = re.compile(r"```[ \t]*(?:python3?|py)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_BARE_FENCE = re.compile(r"```[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)


def code_of(text: str) -> str:
    """The code of an answer: its first ```python block, else its first ``` block without a language, else all of it."""
    found = _PYTHON_FENCE.search(text) or _BARE_FENCE.search(text)
    return found.group(1) if found else text


def definitions(code: str) -> str:
    """What a program defines, as EvalPlus takes an answer: a model's own trials of its function judge nothing.

    Imports, functions, classes and the variables that these use are kept, with what stands in their lines; other
    statements of the module are left out. Of a program that was cut short, the lines before the cut that are one.
    What is no program at all is given back as it is.
    """
    lines, tree = _whole_program(code)
    if tree is None:
        return code
    kept: list[ast.stmt] = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    assigned = [node for node in tree.body if isinstance(node, _ASSIGNMENTS)]
    used = _names_used(kept)
    while more := [node for node in assigned if node not in kept and _names_set(node) & used]:
        kept += more
        used |= _names_used(more)
    shown = {number for node in kept for number in range(_first_line(node), (node.end_lineno or 0) + 1)}
    return "".join(line for number, line in enumerate(lines, 1) if number in shown)


def _whole_program(code: str) -> tuple[list[str], ast.Module | None]:
    """The most lines from the start that are a program with a statement in it, and what they are."""
    lines = code.splitlines(keepends=True)
    for n in range(len(lines), 0, -1):
        try:
            tree = ast.parse("".join(lines[:n]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return (lines, None) if not tree.body else (lines[:n], tree)
    return lines, None


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _names_used(nodes: Iterable[ast.AST]) -> set[str]:
    found = (part for node in nodes for part in ast.walk(node))
    return {part.id for part in found if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def _names_set(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
