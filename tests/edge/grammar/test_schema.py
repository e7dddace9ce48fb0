"""JSON schemas, against `jsonschema` as the reference: every answer that is allowed is valid, and every valid
document can be an answer, in the order of the schema's properties and with the white space that `json` writes."""

import contextlib
import datetime
import ipaddress
import itertools
import json
import uuid

import jsonschema
import pytest
from build_gguf import tiny_base
from grammar_walks import accepts, byte_ids, random_answer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from slm_edge.edge.errors import InputError
from slm_edge.edge.grammar.apart import plain
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.grammar.rules import schema_grammar
from slm_edge.edge.llama.vocab import Vocab


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    with Vocab.open(tiny_base(tmp_path_factory.mktemp("schema") / "base.gguf")) as opened:
        yield opened


NAMES = st.sampled_from(["a", "b", "c d", 'q"q', "back\\slash", "größe 🙂", "tab\t", "/~", ""])
# Patterns, with texts that match them.
PATTERNS = {
    r"^\d{3}$": ["123"],
    r"^[A-Z]{2}-\w+$": ["AB-x_1"],
    "x": ["x", "axb", "\nx\n"],
    r"^(a|bc)*$": ["", "abca"],
    "^a|b$": ["abc", "cb"],
    r"[^a\]]": ["b", "aa\t"],
    r"^.\S$": ["ab", "ü🙂"],
    r"^a{2,3}?\/\x41\u00e9$": ["aa/Aé", "aaa/Aé"],
    r"\\": ["a\\b"],
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-99, 99),
    st.sampled_from([0.5, -1.25, 1000.0, "", "a", "b\nc", "C:\\dir", "\\d+", "🙂", 'say "hi"', [1, {"a": "ü"}], {}]),
)


@st.composite
def strings(draw):
    schema = {"type": "string"}
    kind = draw(st.integers(0, 4))
    if kind == 1:
        schema["pattern"] = draw(st.sampled_from(list(PATTERNS)))
    elif kind == 2:
        schema["format"] = draw(st.sampled_from(["date", "date-time", "time", "uuid", "ipv4", "ipv6"]))
    elif kind == 3:
        schema["minLength"] = draw(st.integers(0, 4))
    if kind in (3, 4):
        schema["maxLength"] = schema.get("minLength", 0) + draw(st.sampled_from([0, 1, 5, 5000]))
    return schema


@st.composite
def numbers(draw):
    schema = {"type": draw(st.sampled_from(["integer", "number"]))}
    least = draw(st.sampled_from([None, *range(-120, 120, 7), -0.5, 0.25, 3.125, 9999]))
    if least is not None:
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = least
    if draw(st.booleans()):
        most = (least or 0) + draw(st.sampled_from([1, 2, 9.5, 10, 99, 1000, 12345.125]))
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = most
    return schema


@st.composite
def objects(draw, inner):
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    schema = {"type": "object", "properties": properties}
    named = draw(st.lists(st.sampled_from([*properties, "more", "b"]), max_size=3, unique=True))
    schema["required"] = named
    others = draw(st.sampled_from([None, False, True, "schema"]))
    if others is not None:
        schema["additionalProperties"] = draw(inner) if others == "schema" else others
    if draw(st.booleans()):
        schema.pop(draw(st.sampled_from(["type", "required", "properties"])))
    return schema


@st.composite
def arrays(draw, inner):
    schema = {"type": "array"}
    if draw(st.booleans()):
        schema["items"] = draw(inner)
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=3))
    if draw(st.booleans()):
        schema["minItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        schema["maxItems"] = schema.get("minItems", 0) + draw(st.integers(0, 4))
    return schema


LEAVES = st.one_of(
    strings(),
    numbers(),
    st.just({"type": "boolean"}),
    st.just({"type": ["string", "null"]}),
    st.just({"minLength": 2, "minimum": 5}),
    VALUES.map(lambda value: {"const": value}),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.just({"$ref": "#/$defs/tree"}),
    st.just(True),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several}),
        st.lists(inner, min_size=2, max_size=2).map(lambda several: {"oneOf": several}),
        st.tuples(objects(inner), objects(inner)).map(lambda pair: {"allOf": list(pair)}),
    ),
    max_leaves=8,
)
TREE = {
    "type": "object",
    "properties": {"left": {"$ref": "#/$defs/tree"}, "leaf": {"type": "integer"}},
    "additionalProperties": False,
}


def with_definitions(schema):
    return {**schema, "$defs": {"tree": TREE}} if isinstance(schema, dict) else schema


def matters(schema, value):
    """Whether `jsonschema` takes a document, formats included."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(value)


def reason_of(schema):
    """What llguidance and we say of a schema; None where it is taken."""
    try:
        return schema_grammar(schema), None
    except InputError as error:
        return None, str(error)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS.map(with_definitions), seeds=st.lists(st.integers(0, 1 << 30), min_size=3, max_size=3))
def test_every_allowed_answer_is_json_and_valid(vocab, schema, seeds):
    rules, _ = reason_of(schema)
    assume(rules is not None)
    for seed in seeds:
        try:
            answer = random_answer(rules, vocab, seed)
        except InputError as error:
            assert "cannot be used" in str(error)
            return
        if answer is not None:
            text = answer.decode("utf-8")
            value = json.loads(text)
            assert matters(schema, value), (schema, text)


def document(draw, schema, depth=0):
    """A document that a schema is likely to take, its names in the order of the schema."""
    if schema is True or depth > 5:
        return draw(VALUES)
    if schema is False:
        return None
    if "$ref" in schema:
        return document(draw, TREE, depth + 2)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return document(draw, draw(st.sampled_from(schema[several])), depth + 1)
    if "allOf" in schema:
        first, second = schema["allOf"]
        merged = {**second, **first}
        for key in ("properties", "required"):
            both = (first.get(key), second.get(key))
            if both[0] is not None and both[1] is not None:
                merged[key] = {**both[1], **both[0]} if key == "properties" else [*both[0], *both[1]]
                if key == "properties":
                    merged[key] = {name: merged[key][name] for name in dict.fromkeys([*both[0], *both[1]])}
        return document(draw, merged, depth + 1)
    kind = schema.get("type")
    kind = draw(st.sampled_from(kind)) if isinstance(kind, list) else kind
    if kind is None:
        kind = "object" if {"properties", "required"} & schema.keys() else draw(st.sampled_from(["string", "number"]))
    if kind == "object":
        return some_object(draw, schema, depth)
    if kind == "array":
        first = schema.get("prefixItems", [])
        n = draw(st.integers(schema.get("minItems", 0), schema.get("maxItems", schema.get("minItems", 0) + 3)))
        items = schema.get("items", True)
        return [document(draw, first[i] if i < len(first) else items, depth + 1) for i in range(n)]
    if kind == "string":
        return some_string(draw, schema)
    if kind in ("integer", "number"):
        least = schema.get("minimum", schema.get("exclusiveMinimum", -500))
        most = schema.get("maximum", schema.get("exclusiveMaximum", least + 1000))
        whole = draw(st.integers(int(least) - 1, int(most) + 1))
        return whole if kind == "integer" else whole + draw(st.sampled_from([0, 0.5, 0.125]))
    return {"boolean": True, "null": None}[kind]


def orders(value, most=300):
    """A document with its names in every order, up to some hundred."""
    if isinstance(value, dict):
        inner = itertools.product(*(list(orders(item, 20)) for item in value.values()))
        whole = (dict(zip(value, items, strict=True)) for items in inner)
        found = ({name: one[name] for name in names} for one in whole for names in itertools.permutations(one))
    elif isinstance(value, list):
        found = (list(items) for items in itertools.product(*(list(orders(item, 20)) for item in value)))
    else:
        found = iter([value])
    return itertools.islice(found, most)


def some_object(draw, schema, depth):
    properties, required = schema.get("properties", {}), schema.get("required", [])
    others = schema.get("additionalProperties", True)
    found = {}
    for name, inner in properties.items():
        if name in required or draw(st.booleans()):
            found[name] = document(draw, inner, depth + 1)
    for name in required:
        if name not in properties:
            found[name] = document(draw, others, depth + 1)
    if others is not False and draw(st.booleans()):
        found["other"] = document(draw, others, depth + 1)
    return found


def some_string(draw, schema):
    if "pattern" in schema:
        return draw(st.sampled_from(PATTERNS[schema["pattern"]]))
    if "format" in schema:
        moment = draw(st.datetimes(timezones=st.just(datetime.UTC))).replace(microsecond=0)
        return {
            "date": moment.date().isoformat(),
            "time": moment.timetz().isoformat(),
            "date-time": moment.isoformat().replace("+00:00", "Z"),
            "uuid": str(uuid.UUID(int=draw(st.integers(0, (1 << 128) - 1)))),
            "ipv4": str(ipaddress.IPv4Address(draw(st.integers(0, (1 << 32) - 1)))),
            "ipv6": str(ipaddress.IPv6Address(draw(st.integers(0, (1 << 128) - 1)))),
        }[schema["format"]]
    most = min(schema.get("maxLength", 9), 9)
    letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
    letters |= st.sampled_from(list('\n\t\r\b\f"\\/é🙂'))
    return draw(st.text(letters, min_size=schema.get("minLength", 0), max_size=max(most, schema.get("minLength", 0))))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS.map(with_definitions), data=st.data())
def test_every_valid_document_is_allowed(vocab, schema, data):
    rules, said = reason_of(schema)
    value = document(data.draw, schema)
    if not matters(schema, value):
        return
    if rules is None:
        assert "no grammar is made of" in said, said
        return
    style = data.draw(st.sampled_from([{}, {"indent": 2}, {"indent": "\t"}, {"separators": (",", ":")}]))
    # Whole numbers are written as such.
    text = json.dumps(plain(value), ensure_ascii=False, **style)
    try:
        # The document may be valid by another of several schemas than the one it was made for, in whose order it is.
        assert any(
            accepts(rules, vocab, byte_ids(vocab), json.dumps(one, ensure_ascii=False, **style).encode())
            for one in orders(plain(value))
        ), (schema, text)
    except InputError as error:
        # What llguidance cannot do is said, and is none of what everyone writes.
        assert any(words in str(error) for words in ("oneOf", "circular", "stack level", "regex")), (schema, str(error))


CONTROL = [("a\nb", "a\\nb"), ("a\tb", "a\\tb"), ("a\x01b", "a\\u0001b")]


@pytest.mark.parametrize("closed", [True, False])
def test_f1_no_raw_control_character_in_a_string(vocab, closed):
    schema = {"type": "object", "properties": {"poem": {"type": "string"}}, "required": ["poem"]}
    rules = schema_grammar(schema | ({"additionalProperties": False} if closed else {}))
    ids = byte_ids(vocab)
    for value, escaped in CONTROL:
        assert not accepts(rules, vocab, ids, f'{{"poem": "{value}"}}'.encode())
        # What can be spelt with \u alone is no answer where additional names could be spelt so as well.
        allowed = closed or "\\u" not in escaped
        assert accepts(rules, vocab, ids, f'{{"poem": "{escaped}"}}'.encode()) is allowed
    with contextlib.suppress(StopIteration):
        assert json.loads(next(iter([random_answer(rules, vocab, 1) or b"{}"])))


@pytest.mark.parametrize(
    "schema",
    [
        {"const": "C:\\dir"},
        {"const": "a\nb"},
        {"const": "a\tb"},
        {"const": "a\x01b"},
        {"const": "🙂"},
        {"const": "你好"},
        {"enum": ["\\d+", "\\w+"]},
        {"enum": ['a"b', "c"]},
        {"const": 'say "hi"'},
        {"const": {"a\\b": [1, 2.5, None, {"ü": "\\"}]}},
        {"type": "object", "properties": {"a\\b": {"const": 1}}, "required": ["a\\b"], "additionalProperties": False},
        {"type": "object", "properties": {"größe 🙂": {"const": 1}}, "required": ["größe 🙂"], "maxProperties": 1},
        {"type": "object", "properties": {'a"b': {"const": 1}}, "required": ['a"b'], "additionalProperties": False},
    ],
    ids=str,
)
def test_f2_names_and_values_are_spelt_rightly(vocab, schema):
    answers = {random_answer(schema_grammar(schema), vocab, seed) for seed in range(8)} - {None}
    assert answers
    for answer in answers:
        jsonschema.validate(json.loads(answer), schema)


def test_f3_what_is_required_is_there(vocab):
    ids = byte_ids(vocab)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"]}
    assert not accepts(schema_grammar(schema), vocab, ids, b'{"a":1}')
    assert accepts(schema_grammar(schema), vocab, ids, b'{"a":1,"b":[]}')
    assert not accepts(schema_grammar({"type": "object", "required": ["b"]}), vocab, ids, b"{}")
    email = schema_grammar({"type": "string", "format": "email"})
    assert accepts(email, vocab, ids, b'"a@b.c"') and not accepts(email, vocab, ids, b'"a"')


@pytest.mark.parametrize(
    "schema, answer",
    [
        ({"type": "string", "maxLength": 2000}, '"' + "a" * 2000 + '"'),
        ({"type": "string", "pattern": r"^\d{3}$"}, '"123"'),
        ({"type": "string", "pattern": "b"}, '"abc"'),
        ({"$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, '{"c": {"c": {}}}'),
        ({"items": [{"type": "integer"}], "additionalItems": False}, "[1]"),
        ({"type": "integer", "minimum": -5, "exclusiveMaximum": 100, "format": "int32"}, "99"),
        ({"title": "T", "x-order": 1, "deprecated": True, "uniqueItems": False, "type": "null"}, "null"),
        ({"$ref": "#/properties/a~1b%20c", "properties": {"a/b c": {"type": "integer"}}}, "1"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://x/y", "type": "integer"}, "1"),
        (True, '{"any": ["thing", 1.5e3, {}]}'),
    ],
)
def test_f4_valid_schemas_are_taken(vocab, schema, answer):
    assert accepts(schema_grammar(schema), vocab, byte_ids(vocab), answer.encode())


@pytest.mark.parametrize(
    "schema, path",
    [
        ({"properties": {"s": {"format": "regex"}}}, "/properties/s/format"),
        ({"items": {"multipleOf": 3}}, "/items/multipleOf"),
        ({"uniqueItems": True}, "/uniqueItems"),
        ({"anyOf": [{"not": {}}]}, "/anyOf/0/not"),
        ({"type": "object", "minProperties": 2}, "/minProperties"),
        ({"$defs": {"x": {"contains": {}}}, "$ref": "#/$defs/x"}, "/$defs/x/contains"),
        ({"x": 1}, "/x"),
        ({"type": "no"}, "/type"),
        ({"properties": 5}, "/properties"),
        ({"properties": {"a/b": 5}}, "/properties/a~1b"),
        ({"required": "a"}, "/required"),
        ({"enum": []}, "/enum"),
        ({"maximum": "1"}, "/maximum"),
        ({"maximum": 10**30}, "/maximum"),
        ({"const": [1, 2**60]}, "/const/1"),
        ({"minimum": 1e-300}, "/minimum"),
        ({"exclusiveMinimum": True}, "/exclusiveMinimum"),
        ({"minLength": -1}, "/minLength"),
        ({"maxItems": 10**30}, "/maxItems"),
        ({"$ref": "#/nowhere"}, "/$ref"),
        ({"$ref": "http://elsewhere/x"}, "/$ref"),
        ({"$ref": "#/type", "type": "integer"}, "/$ref"),
        ({"properties": {"a": {"$id": "b", "$ref": "#"}}}, "/properties/a/$id"),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$ref": "#/$defs/a",
                "$defs": {"a": {}},
                "type": "null",
            },
            "/$ref",
        ),
        ({"properties": {"\x01": {}}}, "/properties/\x01"),
        ({"pattern": "[[:alpha:]]"}, "/pattern"),
        ({"pattern": "[a&&b]"}, "/pattern"),
        ({"pattern": "(?i)a"}, "/pattern"),
        ({"pattern": "(?=a)a"}, "/pattern"),
        ({"pattern": r"(a)\1"}, "/pattern"),
        ({"pattern": r"\bword"}, "/pattern"),
        ({"pattern": "a{2}{3}"}, "/pattern"),
        ({"pattern": "^a{99999999999999999999}$"}, "/pattern"),
        ({"pattern": "^a{5,2}$"}, "/pattern"),
        (False, "/"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused_with_its_path(schema, path):
    with pytest.raises(InputError, match="JSON schema") as caught:
        schema_grammar(schema)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [path]


@pytest.mark.parametrize(
    "schema, path",
    [
        ({"properties": {"a": {"items": {"type": "integer", "minimum": 5, "maximum": 3}}}, "required": ["a"]}, "/"),
        ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "/properties/a"),
        ({"items": {"properties": {"a": {}}, "maxProperties": 1}}, "/items"),
        ({"type": "string", "const": 5}, "/"),
    ],
    ids=str,
)
def test_what_llguidance_refuses_has_a_path_too(vocab, schema, path):
    if path == "/" and "properties" in schema:
        # An array may be empty: nothing is wrong with it.
        assert accepts(schema_grammar(schema), vocab, byte_ids(vocab), b'{"a":[]}')
        return
    with pytest.raises(InputError, match="JSON schema cannot be used") as caught:
        Grammar(schema_grammar(schema), vocab)
    assert caught.value.problems[0].startswith(f"{path}: ")


def test_one_of_schemas_that_exclude_each_other_through_names(vocab):
    """The unions of data classes; llguidance does not look through $ref."""
    shape = {"type": "object", "additionalProperties": False, "required": ["kind"]}
    schema = {
        "$defs": {name: {**shape, "properties": {"kind": {"const": name}}} for name in ("cat", "dog")},
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": ["null", "integer"]}],
        "discriminator": {"propertyName": "kind"},
    }
    rules, ids = schema_grammar(schema), byte_ids(vocab)
    for answer, right in (('{"kind":"cat"}', True), ('{"kind":"cow"}', False), ("null", True), ("1.5", False)):
        assert accepts(rules, vocab, ids, answer.encode()) is right
    schema["oneOf"].append({"type": "number", "maximum": 0})
    with pytest.raises(InputError, match="oneOf"):
        Grammar(schema_grammar(schema), vocab)


def test_names_cannot_be_spelt_past_their_rules(vocab):
    """llguidance would take "\\u0061" for another name than "a"."""
    ids = byte_ids(vocab)
    for schema in ({"properties": {"a": {"type": "integer"}}}, {"patternProperties": {"^a$": {"type": "integer"}}}):
        rules = schema_grammar(schema)
        assert not accepts(rules, vocab, ids, rb'{"\u0061": "x"}')
        assert accepts(rules, vocab, ids, rb'{"a": 1}')
    closed = schema_grammar({"properties": {"a": {"type": "string"}}, "additionalProperties": False})
    assert accepts(closed, vocab, ids, rb'{"a": "\u00e9\ud83d\ude42"}')
    assert not accepts(closed, vocab, ids, rb'{"a": "\ud83d"}')


def test_a_schema_cannot_set_options(vocab):
    rules = schema_grammar({"type": "integer", "x-guidance": {"lenient": True, "whitespace_pattern": "a"}})
    assert not accepts(rules, vocab, byte_ids(vocab), b"a1")


def test_white_space_has_an_end(vocab):
    rules, ids = schema_grammar({"type": "array"}), byte_ids(vocab)
    assert accepts(rules, vocab, ids, b"[\n    1,\n    2\n]")
    assert not accepts(rules, vocab, ids, b"[" + b" " * 200 + b"]")
    assert not accepts(rules, vocab, ids, b"[1]\n")
