"""What a JSON schema asks and cannot be kept is refused with the path of the keyword."""

import pytest
from grammar_walks import accepts, byte_ids
from slm_edge.edge.errors import InputError
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.grammar.rules import schema_grammar


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
