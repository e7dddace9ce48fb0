"""Chat templates, JSON schemas and rows of data: made from fragments, through those who read them."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...edge.errors import SlmEdgeError
from ...edge.files.journal import rows_of
from ...edge.gguf.chat_template import ChatTemplate, Message
from ...edge.grammar.matcher import Grammar
from ...edge.grammar.rules import read_schema
from ...edge.router.examples import read_examples
from ..report.samples_file import read_samples
from ..tasks.benchmark import Item
from ..tasks.registry import MODULES, task
from .damage import TEXTS, damaged_bytes, damaged_value, odd_value

_CONVERSATIONS: Final[tuple[list[Message], ...]] = (
    [{"role": "user", "content": "Hello {{ 1 }}"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "é💡" * 50}, {"role": "assistant", "content": "x"}],
)
_NAMES: Final = ("messages", "message", "bos_token", "eos_token", "add_generation_prompt", "x", "loop", "ns", "tools")
_FILTERS: Final = (
    *("trim", "upper", "length", "tojson", "tojson(indent=4)", "tojson(999999)", "string", "int", "float", "list"),
    *("join(',')", "first", "last", "reverse", "sort", "unique", "center(99999999)", "indent(99999999)", "format(1)"),
    *("batch(3)", "slice(99999999)", "sum", "map(attribute='role')", "selectattr('role')", "groupby('role')", "safe"),
    *("items", "dictsort", "random", "wordwrap(1)", "replace('', 'xx')", "truncate(1)", "xmlattr", "urlize", "pprint"),
    *("attr('__class__')", "default('d')", "round(9999)", "filesizeformat", "e", "nosuchfilter", "abs", "min", "max"),
)
_ATOMS: Final = (
    *("0", "1", "-1", "99999999999", "1e308", "1e999", "''", "'a'", "'<|im_start|>'", "[]", "{}", "none", "true"),
    *("range(3)", "range(10**12)", "range(99999)", "namespace()", "dict(a=1)", "lipsum(99)", "cycler(1)", "joiner()"),
    *("messages[0]", "messages[-1].content", "messages[99]", "message['role']", "message.__class__", "x.__init__"),
    *("raise_exception('no')", "raise_exception()", "strftime_now('%Y')", "strftime_now('%' * 999)", "strftime_now(1)"),
    *("'%999999999s'", "'{:>999999999}'", "('a' * 9999999)", "(9 ** 99999)", "self", "varargs", "caller()", "m()"),
    *("'x'.zfill(999999999)", "'abc'.replace('', 'a' * 99999)", "'a'.join(['b'] * 9999)", "'x'.encode('utf-7')"),
)
_TESTS: Final = ("defined", "string", "mapping", "iterable", "odd", "divisibleby(0)", "sameas(x)", "in(x)", "nosuch")
_TAGS: Final = ("break", "continue", "include", "extends", "import", "block b", "raw")
_FORMS: Final = (
    *("{{ ONE }}", "{{ ONE }}", "{% for message in messages %}BODY{% endfor %}", "{% set NAME = ONE %}"),
    *("{% for NAME in ONE %}BODY{% else %}y{% endfor %}", "{% for x in ONE recursive %}{{ loop(ONE) }}{% endfor %}"),
    *("{% for x in range(99999) %}BODY{% endfor %}", "{% if ONE %}BODY{% elif ONE %}z{% endif %}"),
    *("{% set ns.NAME = ONE %}", "{% set x %}BODYBODY{% endset %}{{ x ~ x }}", "{% call m() %}BODY{% endcall %}"),
    *("{% macro m(a=ONE) %}BODY{{ m(a) }}{% endmacro %}{{ m() }}", "{%- generation -%}BODY{%- endgeneration -%}"),
    *("{% filter FILTER %}BODY{% endfilter %}", "{% with x = ONE %}BODY{% endwith %}", "{% TAG ONE %}"),
    *("{#", "{%", "}}", "{{", "text\r\n", "\0", "{% endfor %}", "{{ ''.__class__.__mro__ }}", "{{ " + "(" * 300),
    *("{{ " + "(" * 5000, "{% if 1 %}" * 15, "{% if 1 %}" * 2000),
)


class TemplateKind:
    """Chat templates."""

    kind = "template"

    def prepare(self, folder: Path) -> None:
        """Nothing: templates grow from their fragments."""

    def make(self, draw: random.Random, folder: Path) -> None:
        """A text of fragments, now and then damaged."""
        text = "".join(_statement(draw) for _ in range(draw.randrange(1, 5))).encode()
        (folder / "template.jinja").write_bytes(damaged_bytes(draw, text) if draw.random() < 0.2 else text)

    def use(self, folder: Path) -> object:
        """Compiled and rendered on two conversations."""
        text = (folder / "template.jinja").read_text(encoding="utf-8", errors="surrogateescape")
        template = ChatTemplate(text, "<s>", "</s>")
        said = []
        for i, messages in enumerate(_CONVERSATIONS):
            try:
                said.append(template.render(messages, add_generation_prompt=i == 0))
            except SlmEdgeError as error:
                said.append(str(error))
        return said

    def run(self, folder: Path) -> object:
        """There is no more to it."""


def _expression(draw: random.Random, depth: int = 0) -> str:
    way = draw.randrange(9 if depth < 3 else 3)

    def inner() -> str:
        return _expression(draw, depth + 1)

    if way <= 1:
        return draw.choice(_ATOMS)
    if way == 2:
        return draw.choice(_NAMES)
    if way == 3:
        return f"{inner()} | {draw.choice(_FILTERS)}"
    if way == 4:
        return (
            f"({inner()} {draw.choice(('+', '-', '*', '/', '//', '%', '**', '~', '==', '<', 'in', 'and'))} {inner()})"
        )
    if way == 5:
        return f"{inner()}[{draw.choice((inner(), '1:', '::-1', '::0', '-5:5'))}]"
    if way == 6:
        return f"({inner()} if {inner()} is {draw.choice(_TESTS)} else {inner()})"
    if way == 7:
        call = draw.choice(("split", "strip", "items", "format", "append", "get", "upper", "__str__", "keys", "pop"))
        return f"{inner()}.{call}({inner() if draw.random() < 0.5 else ''})"
    return f"[{inner()}, {inner()}]" if draw.random() < 0.5 else f"{{'a': {inner()}}}"


def _statement(draw: random.Random, depth: int = 0) -> str:
    form = draw.choice(_FORMS)
    for sign in ("BODY", "ONE", "NAME", "FILTER", "TAG"):
        while sign in form:
            if sign == "BODY":
                n = draw.randrange(1, 3) if depth < 4 else 0
                made = "".join(_statement(draw, depth + 1) for _ in range(n)) or "x"
            elif sign == "ONE":
                made = _expression(draw)
            else:
                made = draw.choice({"NAME": _NAMES, "FILTER": _FILTERS, "TAG": _TAGS}[sign])
            form = form.replace(sign, made, 1)
    return form


class Vocabulary:
    """Every byte, some words, and an end, for masks without a model."""

    def __init__(self) -> None:
        words = ['"a"', '":', "{\n", "null", "true", "12", "é", '\\"', "\\u00", "]}", "  "]
        self._tokens = [*(bytes([byte]) for byte in range(256)), *(word.encode() for word in words), b"<end>"]
        self.n_tokens = len(self._tokens)

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        return self._tokens, self.ends()

    def ends(self) -> list[int]:
        return [self.n_tokens - 1]


class SchemaKind:
    """JSON schemas."""

    kind = "schema"

    def prepare(self, folder: Path) -> None:
        """The vocabulary."""
        self._vocabulary = Vocabulary()

    def make(self, draw: random.Random, folder: Path) -> None:
        """A schema as generators write it, most often with places damaged."""
        schema = made_schema(draw)
        if draw.random() < 0.6:
            schema = damaged_value(draw, schema, draw.choice((1, 1, 2, 4)))
        text = _json(schema)
        (folder / "schema.json").write_bytes(damaged_bytes(draw, text) if draw.random() < 0.05 else text)

    def use(self, folder: Path) -> object:
        """Read, and where it needs no trial in a process of its own, masked a few times."""
        rules = read_schema(folder / "schema.json")
        return rules.plain and walk(Grammar(rules, self._vocabulary))

    def run(self, folder: Path) -> object:
        """Masked a few times, behind the trial in a process of its own."""
        return walk(Grammar(read_schema(folder / "schema.json"), self._vocabulary))


def walk(grammar: Grammar) -> int:
    """Takes a few tokens that a grammar allows; how many there were."""
    draw = random.Random(0)
    for step in range(6):
        allowed = grammar.allowed().nonzero()[0].tolist()
        if not allowed:
            return step
        grammar.accept(draw.choice(allowed))
    return 6


def made_schema(draw: random.Random, depth: int = 0) -> Any:
    def inner() -> Any:
        return made_schema(draw, depth + 1)

    n = draw.choice((0, 1, 2, 3, 5, 20000, 10**9)) if draw.random() < 0.1 else draw.randrange(6)
    pattern = draw.choice(
        ("^a+$", "[a-z]{2,5}", "(a|b)*c", "^(?:x{9}){9}$", "a{1000}", "(((a*)*)*)*$", "\\d+\\.\\p{L}", "[", "^.*$")
    )
    leaves: tuple[Any, ...] = (
        {"type": "string"},
        {"type": "string", "minLength": n, "maxLength": n + draw.randrange(9)},
        {"type": "string", "pattern": pattern},
        {"type": "string", "format": draw.choice(("date", "date-time", "email", "uuid", "ipv6", "regex", "x"))},
        {
            "type": draw.choice(("integer", "number")),
            "minimum": draw.randrange(-9, 9),
            "maximum": draw.randrange(99999),
        },
        {"type": "number", "multipleOf": draw.choice((1, 0.1, 3, 0, 1e-9)), "exclusiveMinimum": 0},
        {"enum": [odd_value(draw, 2) for _ in range(draw.randrange(4))]},
        {"const": odd_value(draw, 2)},
        {"type": ["null", "boolean", "integer"]},
        {"$ref": draw.choice(("#", "#/$defs/a", "#/$defs/b", "#/properties/a", "http://x/y", "#/$defs/%61"))},
        True,
        False,
        {},
    )
    if depth > 3 or draw.random() < 0.35:
        return draw.choice(leaves)
    names = draw.sample(["a", "b", "name", "é", '"', "\\", "", "a b", "x" * 300, "$ref"], draw.randrange(1, 5))
    made = _holder(draw, inner, names, pattern, n)
    if depth == 0:
        made["$defs"] = {name: inner() for name in ("a", "b")}
        if draw.random() < 0.02:
            made["properties"] = {f"p{i}": leaves[0] for i in range(draw.choice((100, 3000)))}
    return made


def _holder(draw: random.Random, inner: Callable[[], Any], names: list[str], pattern: str, n: int) -> dict[str, Any]:
    """A schema that holds others."""
    way = draw.randrange(11)
    if way <= 1:
        properties = {name: inner() for name in names}
        return {"type": "object", "properties": properties, "required": names[: draw.randrange(3)]}
    if way == 2:
        return {"type": "object", "additionalProperties": inner(), "minProperties": n, "propertyNames": inner()}
    if way == 3:
        return {"type": "object", "patternProperties": {pattern: inner()}, "properties": {"a": inner()}}
    if way == 4:
        return {"type": "array", "items": inner(), "minItems": n, "maxItems": n + draw.randrange(5)}
    if way == 5:
        return {"type": "array", "prefixItems": [inner(), inner()], "items": False, "uniqueItems": draw.random() < 0.5}
    if way <= 8:
        return {draw.choice(("anyOf", "oneOf", "allOf")): [inner() for _ in range(draw.randrange(1, 4))]}
    if way == 9:
        return {"not": inner()} if draw.random() < 0.5 else {"if": inner(), "then": inner(), "else": inner()}
    return {"type": "object", "dependentSchemas": {"a": inner()}, "unevaluatedProperties": False}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=len(str(value)[:50]) % 2 == 0).encode("utf-8", "surrogatepass")


_ROWS: Final[dict[str, dict[str, Any]]] = {
    "gsm8k": {"question": "2 + 2?", "answer": "4\n#### 4"},
    "mbpp": {"text": "Add.", "test_setup_code": "", "task_id": 11, "test_list": ["assert f(1) == 1"], "code": "x"},
    "dolly": {"instruction": "Sum up.", "context": "A cat.", "response": "Cat.", "category": "summarization"},
    "svamp": {"ID": "c-1", "Body": "Two.", "Question": "How many?", "Answer": 2.0},
    "humaneval": {
        "completion": "x",
        "task_id": "H/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "assert f()",
        "prompts": "x",
    },
    "hellaswag": {"ind": 1, "ctx": "He", "activity_label": "x", "ctx_a": "a", "ctx_b": "b", "endings": ["a"] * 4},
}
_ROWS["hellaswag"] |= {"label": 1, "split": "val", "source_id": "x~y"}
_ROWS["dolly"] |= {"prompt": "What?", "completion": "x"}


class RowsKind:
    """Files of rows: test sets, examples, samples and journals."""

    kind = "rows"

    def prepare(self, folder: Path) -> None:
        """Rows are made of one each; what ROUGE needs is imported, which takes seconds that are no reader's."""
        task("dolly").score(Item("", [], {"answer": "x"}), "x")

    def make(self, draw: random.Random, folder: Path) -> None:
        """The files of one test set, of rows that are right or damaged."""
        name = draw.choice(list(MODULES))
        valid = _ROWS[name.split("-")[0]]
        (folder / "name").write_text(name)
        for file in task(name).files:
            rows: list[Any] = [
                damaged_value(draw, valid) if draw.random() < 0.05 else dict(valid)
                for _ in range(draw.choice((1, 9, 12)))
            ]
            if name == "mbpp" or name.startswith("human"):
                for i, row in enumerate(rows):
                    if isinstance(row, dict) and draw.random() < 0.9:
                        row["task_id"] = 11 + i if name == "mbpp" else f"H/{i}"
            listed = file.endswith(".json") or draw.random() < 0.1
            end = draw.choice((b"\n", b"\n", b"\r\n", b"\n\n", "\u2028".encode()))
            data = _json(rows) if listed else end.join(map(_json, rows)) + (b"\n" if draw.random() < 0.8 else b"")
            if draw.random() < 0.15:
                data = damaged_bytes(draw, data)
            if draw.random() < 0.05:
                data = draw.choice((b"\xef\xbb\xbf" + data, data.decode("utf-8", "replace").encode("utf-16"), b""))
            if file.endswith(".gz"):
                data = gzip.compress(data, mtime=0)
                data = damaged_bytes(draw, data) if draw.random() < 0.2 else data
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(data)

    def use(self, folder: Path) -> object:
        """Every reader of rows reads every file; a test set judges an answer, unless that would run a program."""
        found = task((folder / "name").read_text())
        done: list[object] = []
        for file in found.files:
            path = folder / file
            for read in (read_examples, lambda path: read_samples(path, {"H/0": 1}), _journal):
                try:
                    done.append(read(path))
                except SlmEdgeError as error:
                    done.append(str(error))
        for item in found.items(folder):
            done += [item.messages, item.raw]
            if not found.runs_code and found.way == "answers":
                done.append(found.score(item, TEXTS[len(done) % len(TEXTS)]))
        return done

    def run(self, folder: Path) -> object:
        """There is no more to it."""


def _journal(path: Path) -> object:
    return rows_of(path.read_bytes(), path)
