"""jinja2's sandbox as transformers sets it up for chat templates, with an end: every template stops, and stays small.

    environment = limited_environment(refuse, datetime.now)
    with limits(n_letters_given=1200):
        environment.from_string(source).render(messages=[...])

A template is a stranger's program, and much of what it can do is one call into C, which no clock interrupts. So work is
counted before it is done: a step for each turn of a loop and each call, and for the size of everything that an
operator, filter, call, comparison or output takes in. What multiplies (`*`, `join`, `center`, `%9999s`) is measured
beforehand (`template_growth.py`). The count is the same on every device, where a time would not be.
"""

import json
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, Final, cast

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Templates of 2026 take 50 to 3,000 steps for a turn; 200,000 end within a second or so on a server core.
STEPS: Final = 200_000
# Letters of one value, beside 16 for each letter of the messages
LETTERS: Final = 1 << 20
LETTERS_A_STEP: Final = 64
MOST_BITS: Final = 1 << 14
_SIZED: Final = (list, tuple, dict, set, frozenset, range, KeysView, ValuesView, ItemsView)


class TooMuchError(TemplateRuntimeError):
    """The template wants more steps or letters than it may have."""


class _Budget:
    def __init__(self, n_letters_given: int) -> None:
        self.steps = STEPS + 4 * n_letters_given
        self.letters = LETTERS + 16 * n_letters_given


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def limits(n_letters_given: int = 0) -> Iterator[None]:
    """What a template may do within, for messages of so many letters."""
    token = _budget.set(_Budget(n_letters_given))
    try:
        yield
    finally:
        _budget.reset(token)


def spend(steps: int) -> None:
    budget = _budget.get()
    budget.steps -= steps
    if budget.steps < 0:
        raise TooMuchError("it does not come to an end (too many steps)")


def check_letters(n_letters: int) -> None:
    """Raises TooMuchError for a text, or the like, that is longer than one may be."""
    if n_letters > _budget.get().letters:
        raise TooMuchError("it writes too much text")


def weigh(value: Any) -> int:
    """Letters and elements of a value with all within, which are counted as work."""
    if isinstance(value, str):
        spend(1 + len(value) // LETTERS_A_STEP)
        check_letters(len(value))
        return len(value)
    total = 0
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str | bytes):
            size = len(one)
            spend(1 + size // LETTERS_A_STEP)
        elif isinstance(one, dict):
            size = 2 * len(one) + 1
            todo += one.keys()
            todo += one.values()
            spend(size)
        elif isinstance(one, list | tuple | set | frozenset):
            size = len(one) + 1
            spend(size)
            todo += one
        elif isinstance(one, int):
            size = 1 + (one.bit_length() >> 3)
            spend(1)
        else:
            size = glance(one)
        total += size
        check_letters(total)
    return total


def glance(value: Any) -> int:
    """As `weigh`, for what does not look into elements."""
    if isinstance(value, str | bytes):
        return weigh(value)
    size = 1 + len(value) if isinstance(value, _SIZED) else 1
    spend(size)
    return size


def weighed(value: Any, shallow: bool = False) -> Any:
    (glance if shallow else weigh)(value)
    return open_ended(value)


def open_ended(value: Any) -> Any:
    """An iterator, whose length nobody knows, counted as it is read; any other value as it is."""
    return stepped(value) if isinstance(value, Iterator) else value


def stepped(values: Any, steps: int = 1) -> Iterator[Any]:
    for value in values:
        spend(steps)
        yield value


def limited_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    n_own = 1 if hasattr(filter_, "jinja_pass_arg") else 0

    @wraps(filter_)
    def limited(*args: Any, **kwargs: Any) -> Any:
        from .template_growth import filtered

        return filtered(name, filter_, args, kwargs, n_own)

    return limited


def limited_test(test: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(test)
    def limited(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            weigh(value)
        return test(*args, **kwargs)

    return limited


_COMPARES: Final = frozenset(
    "in eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >=".split()  # noqa: SIM905
)
_CODECS: Final = frozenset("utf-8 utf8 ascii latin-1 strict replace ignore".split())  # noqa: SIM905
# Given by those who render templates, whatever else a template does with these names
_STANDARD: Final = ("tools", "documents", "enable_thinking", "thinking", "date_string")
_WEIGHED, _STEPPED = " weighed", " stepped"


class _Namespace(Namespace):
    """jinja's, which is printed without what it holds: two that hold each other have no end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Counted(NodeTransformer):
    """Puts the counting filters around what loops, builds, compares and prints."""

    def visit_For(self, node: nodes.For, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        steps = 1 + n_data_letters(node) // LETTERS_A_STEP
        node.iter = _filtered(node.iter, _STEPPED, [nodes.Const(steps)])
        return node

    def visit_Output(self, node: nodes.Output, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        node.nodes = [one if isinstance(one, nodes.TemplateData) else _weighing(one) for one in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        node.nodes = [_weighing(one) for one in node.nodes]
        return node

    def visit_List(self, node: nodes.List, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        node.items = [_weighing(one) for one in node.items]
        return node

    def visit_Tuple(self, node: nodes.Tuple, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        if node.ctx == "load":
            node.items = [_weighing(one) for one in node.items]
        return node

    def visit_Pair(self, node: nodes.Pair, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        node.value = _weighing(node.value)
        return node

    def visit_Compare(self, node: nodes.Compare, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        node.expr = _weighing(node.expr)
        for operand in node.ops:
            operand.expr = _weighing(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node, *args, **kwargs)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _WEIGHED, [nodes.Const(True)])
        return node


def _filtered(node: Any, name: str, args: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)


def _weighing(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, _WEIGHED, [])


def n_data_letters(node: nodes.Node) -> int:
    """Letters of the text that stands in a part of a template as it is printed."""
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def names_from_outside(tree: nodes.Template) -> frozenset[str]:
    """Variables that a template does not make itself, and `strftime_now` where it is called."""
    names = list(tree.find_all(nodes.Name))
    made = {name.name for name in names if name.ctx == "store"}
    asked = [node.node for node in tree.find_all(nodes.Test) if node.name in ("defined", "undefined")]
    asked += [node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d") and node.node]
    told = {node.name for node in asked if isinstance(node, nodes.Name)}
    told |= set(_STANDARD)
    read = {name for name in meta.find_undeclared_variables(tree) if name in told or name not in made}
    # Globals are no variables in jinja2's eyes.
    return frozenset(read | ({"strftime_now"} & {name.name for name in names}))


class _Generation(Extension):
    """{% generation %} marks what an assistant wrote, for training; its body is printed."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block has a scope of its own, as it has in transformers.
        call = self.call_method("_body", lineno=line)
        return [nodes.CallBlock(call, [], [], body).set_lineno(line)]

    @staticmethod
    def _body(caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    data_steps = 0

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self.data_steps = n_data_letters(tree) // LETTERS_A_STEP
        _Counted().visit(tree)
        return tree.set_environment(self)  # type: ignore[return-value]

    def call_binop(self, context: Any, symbol: str, left: Any, right: Any) -> Any:
        weights = weigh(left), weigh(right)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (max(right, 1) if symbol == "**" else 1) + right.bit_length()
            if bits > MOST_BITS:
                raise TooMuchError("it computes with a number of thousands of digits")
        elif symbol == "*":
            counts = [abs(one) for one in (left, right) if isinstance(one, int)]
            check_letters(max(weights) * max(counts, default=0) if not isinstance(left, float) else 0)
        elif symbol == "%":
            from .template_growth import check_grown

            check_grown("mod", left, (right,), {}, weights[0])
        return super().call_binop(context, symbol, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        spend(1 + len(args) + len(kwargs))
        args = tuple(map(open_ended, args))
        if isinstance(__obj, Macro | BlockReference | LoopContext):
            spend(__self.data_steps)
            if isinstance(__obj, LoopContext) and args:
                args = (stepped(args[0]), *args[1:])
        else:
            # The sandbox puts its own function around str.format, which keeps the method.
            method = getattr(__obj, "__wrapped__", __obj)
            own, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
            if name in ("encode", "decode") and not _CODECS.issuperset(map(str, (*args, *kwargs.values()))):
                # Some, as punycode, take the square of a text's length.
                raise LookupError(f"unknown encoding: {args}")
            if isinstance(own, str | int | float | bytes):
                from .template_growth import check_counts, check_grown, check_joined

                check_counts(args, kwargs)
            if isinstance(own, str):
                if name == "join" and args:
                    values = args[0] if isinstance(args[0], list | tuple | dict | str) else list(stepped(args[0]))
                    args = (values, *args[1:])
                    check_joined(own, values)
                else:
                    check_grown(name, own, args, kwargs, weigh(own))
            elif isinstance(own, list | tuple | dict | range):
                (weigh if name in ("index", "count") else glance)(own)
            if __obj is not _Namespace:
                for one in (*args, *kwargs.values()):
                    weigh(one)
        return super().call(__context, __obj, *args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML; templates for transformers expect plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _lipsum(*args: Any, **kwargs: Any) -> str:
    raise TemplateRuntimeError("lipsum() writes chance text")


def limited_environment(
    raise_exception: Callable[[str], None], now: Callable[[], datetime]
) -> ImmutableSandboxedEnvironment:
    """The environment of transformers' `apply_chat_template`, counted; to be used within `limits`.

    Args:
        raise_exception: a template's refusal of messages.
        now: the time for `strftime_now`.
    """
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.filters = {name: limited_filter(name, one) for name, one in environment.filters.items()}
    environment.filters[_WEIGHED] = weighed
    environment.filters[_STEPPED] = stepped
    for name in _COMPARES:
        environment.tests[name] = limited_test(cast(Callable[..., Any], environment.tests[name]))
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    environment.globals["namespace"] = _Namespace
    environment.globals["lipsum"] = _lipsum
    return environment
