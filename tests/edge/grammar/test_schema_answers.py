"""Schemas as people write them: which answers each allows, and which it does not."""

import contextlib
import json

import jsonschema
import pytest
from grammar_walks import accepts, byte_ids, random_answer
from slm_edge.edge.errors import InputError
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.grammar.rules import schema_grammar

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
