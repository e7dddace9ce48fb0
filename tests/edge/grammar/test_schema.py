"""JSON schemas, against `jsonschema` as the reference: every answer that is allowed is valid, and every valid
document can be an answer, in the order of the schema's properties and with the white space that `json` writes."""

import datetime
import ipaddress
import itertools
import json
import uuid

import jsonschema
from grammar_walks import accepts, byte_ids, random_answer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from slm_edge.edge.errors import InputError
from slm_edge.edge.grammar.apart import plain
from slm_edge.edge.grammar.rules import schema_grammar

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
