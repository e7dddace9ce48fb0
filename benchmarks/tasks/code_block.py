"""Finds the program in an answer."""

import ast
import re
import symtable
from collections.abc import Iterable, Iterator

# A fence with what stands before it in its line, and its language
_FENCE = re.compile(r"^(.*?)```[ \t]*([^\n`]*?)[ \t]*\r?\n", re.MULTILINE)
_PYTHON = ("python", "python3", "py")
_THOUGHT = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.DOTALL | re.IGNORECASE)
_BEGINNINGS = ("def ", "class ", "import ", "from ", "@", "async ")
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
# What has names of its own: statements in it are no module's
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def asserts(tests: str) -> bool:
    """Whether tests are a program in which something is asserted or raised."""
    tree = _parsed(tests)
    return tree is not None and any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(tree))


def code_of(text: str, names: Iterable[str] = ()) -> str:
    """The code of an answer, which need not be all a program.

    Its first ```python block that defines one of `names`, else such a block without a language, else such a program
    among its lines; else its first ```python block, its first block without a language, all of it. What a model thinks
    before it answers (<think>) is no part of the answer.
    """
    text, names = _THOUGHT.sub("", text, count=1), set(names)
    blocks = list(_blocks(text))
    chosen = [code for language, code in blocks if language.lower() in _PYTHON]
    chosen += [code for language, code in blocks if not language]
    for code in chosen:
        if names & defined_names(code):
            return code
    loose = _among_lines(text, names)
    return loose if loose is not None else [*chosen, text][0]


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and code of each fenced block.

    A fence may stand in the code itself, in a docstring: a block goes to the first fence that makes it a program, else
    to the first. One that the answer ends without closing counts: it was cut at the token cap.
    """
    at = 0
    while opening := _FENCE.search(text, at):
        begin = opening.end()
        ends = [found.start() for found in re.finditer("```", text[begin:])] or [len(text) - begin]
        code = text[begin : begin + ends[0]]
        for end in ends:
            if _is_program(_less_indented(text[begin : begin + end], opening[1])):
                code = text[begin : begin + end]
                break
        yield opening[2], _less_indented(code, opening[1])
        at = begin + len(code) + 3


def _less_indented(code: str, before: str) -> str:
    """A block of a list item without the item's indentation, or of a quotation without its marks."""
    if not before or before.strip("> \t"):
        return code
    marks = before.rstrip() if ">" in before else before
    lines = (line.removeprefix(before if line.startswith(before) else marks) for line in code.splitlines(keepends=True))
    return "".join(lines)


def _among_lines(text: str, names: set[str]) -> str | None:
    lines = text.splitlines(keepends=True)
    for n, line in enumerate(lines):
        if line.startswith(_BEGINNINGS) and names & defined_names(code := "".join(lines[n:])):
            return code
    return None


def definitions(code: str, names: Iterable[str] = ()) -> str:
    """What a program defines, as EvalPlus takes an answer: a model's own trials of its function judge nothing.

    Imports, functions, classes and what makes or changes the variables that these use, or that are among `names`, are
    kept, with what stands in their lines: assignments, and other statements unless they call one of `names`. All else
    is left out. Of a program that was cut short, the lines before the cut that are one. What is no program at all is
    given back as it is.
    """
    lines, tree = _whole_program(code)
    if tree is None:
        return code
    names = set(names)
    kept: list[ast.stmt] = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    shared = _shared("".join(lines)) | names
    others = [node for node in tree.body if not isinstance(node, (*_DEFINITIONS, *_ASSIGNMENTS))]
    kept += [node for node in others if (_names_set(node) | _changed(node)) & shared and not _calls(node, names)]
    assigned = [node for node in tree.body if isinstance(node, _ASSIGNMENTS)]
    used = _names_used(kept) | shared
    while more := [node for node in assigned if node not in kept and (_names_set(node) | _changed(node)) & used]:
        kept += more
        used |= _names_used(more)
    shown = {number for node in kept for number in range(_first_line(node), (node.end_lineno or 0) + 1)}
    return "".join(line for number, line in enumerate(lines, 1) if number in shown)


def defined_names(code: str) -> set[str]:
    """Functions, classes and variables that a program makes at its top, up to where it is cut."""
    body = tree.body if (tree := _whole_program(code)[1]) else []
    return set().union(*map(_names_set, body))


def _parsed(code: str) -> ast.Module | None:
    """The program; None for what is none, or is nested deeper than Python's parser goes."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_program(code: str) -> bool:
    tree = _parsed(code)
    return tree is not None and bool(tree.body)


def _whole_program(code: str) -> tuple[list[str], ast.Module | None]:
    """The most lines from the start that are a program with a statement in it, and what they are."""
    lines = code.splitlines(keepends=True)
    for n in range(len(lines), 0, -1):
        tree = _parsed("".join(lines[:n]))
        if tree is not None:
            return (lines[:n], tree) if tree.body else (lines, None)
    return lines, None


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _names_used(nodes: Iterable[ast.AST]) -> set[str]:
    """Variables that statements of the module read when they run; what their functions read is `_shared`."""
    parts = (part for node in nodes for part in _in_module(node))
    return {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def _in_module(node: ast.AST) -> Iterator[ast.AST]:
    """A statement of the module and its parts that run with it."""
    yield node
    if isinstance(node, _SCOPES):
        # Decorators, defaults and bases
        parts = [*getattr(node, "decorator_list", []), *getattr(node, "bases", []), *getattr(node, "keywords", [])]
        parts += [getattr(node, "args", None)]
    else:
        parts = [*ast.iter_child_nodes(node)]
    for part in parts:
        if part is not None:
            yield from _in_module(part)


def _names_set(node: ast.AST) -> set[str]:
    """Functions, classes and variables that a statement of the module makes."""
    parts = [*_in_module(node)]
    names = {part.name for part in parts if isinstance(part, _NAMED)}
    return names | {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _changed(node: ast.AST) -> set[str]:
    """Variables of which a statement of the module sets a part, or on which it calls a method."""
    places = [part for part in _in_module(node) if isinstance(part, ast.Attribute | ast.Subscript)]
    called = {part.func for part in _in_module(node) if isinstance(part, ast.Call)}
    return {_root(place) for place in places if isinstance(place.ctx, ast.Store) or place in called}


def _root(node: ast.expr) -> str:
    """The variable whose part an expression is; "" where it is none's."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _shared(code: str) -> set[str]:
    """Variables of the module that its functions read or set, not those of their own of the same name."""
    found: set[str] = set()
    try:
        tables = symtable.symtable(code, "<answer>", "exec").get_children()
    except (SyntaxError, RecursionError):
        # A program that cannot be compiled fails whatever is kept of it.
        return found
    while tables:
        table = tables.pop()
        tables += table.get_children()
        found.update(symbol.get_name() for symbol in table.get_symbols() if symbol.is_global())
    return found


def _calls(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement of the module calls one of these functions, as a model's own trial does."""
    calls = (part.func for part in _in_module(node) if isinstance(part, ast.Call))
    return any(isinstance(func, ast.Name) and func.id in names for func in calls)
