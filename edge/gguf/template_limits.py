"""jinja2's sandbox as transformers sets it up for chat templates, with an end: every template stops, and stays small.

    environment = limited_environment(refuse, datetime.now)
    with limits(n_letters_given=1200):
        environment.from_string(source).render(messages=[...])

A template is a stranger's program, and much of what it can do is one call into C, which no clock interrupts. So work is
counted before it is done (`template_budget.py`). The count is the same on every device, where a time would not be.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, cast

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template_budget import (
    LETTERS_A_STEP,
    MOST_BITS,
    TooMuchError,
    check_counts,
    check_grown,
    check_joined,
    check_letters,
    glance,
    limited_filter,
    limited_test,
    open_ended,
    spend,
    stepped,
    weigh,
    weighed,
)

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
            if isinstance(own, str):
                check_counts(args, kwargs)
                if name == "join" and args:
                    values = args[0] if isinstance(args[0], list | tuple | dict | str) else list(stepped(args[0]))
                    args = (values, *args[1:])
                    check_joined(own, values)
                else:
                    check_grown(name, own, args, kwargs, weigh(own))
            elif isinstance(own, int | float | bytes):
                check_counts(args, kwargs)
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
