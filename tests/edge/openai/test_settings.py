"""What a request's fields become before the engine: penalties, biases, rules, what the chat template is told."""

import json

import pytest
from build_gguf import tiny_base
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.edge.openai.checks import decoded
from slm_edge.edge.openai.conversation import rules_asked, settings_of, template_args_of
from slm_edge.edge.openai.faults import Fault
from slm_edge.edge.openai.fields import ChatRequest
from slm_edge.edge.scheduler.stats import EngineFacts

PLAIN = {"model": "math", "messages": [{"role": "user", "content": "Hello"}]}


def chat(**fields):
    request, ignored = decoded(json.dumps({**PLAIN, **fields}).encode(), ChatRequest)
    assert ignored == []
    return request


def test_penalties_and_biases_of_a_request():
    given = {"frequency_penalty": 0.5, "presence_penalty": -2, "logit_bias": {"5": 1, "70": -100}}
    settings = settings_of(chat(**given), None, 2048)
    assert settings["frequency_penalty"] == 0.5 and settings["presence_penalty"] == -2
    assert settings["logit_bias"] == {5: 1.0, 70: -100.0} and settings["repeat_penalty"] is None
    assert settings_of(chat(logit_bias={}), None, 2048)["logit_bias"] is None


def test_the_two_penalties_for_repetition_count_different_tokens():
    last = settings_of(chat(repeat_penalty=1.1, repeat_last_n=9), None, 2048)
    assert (last["repeat_penalty"], last["repeat_last_n"]) == (1.1, 9)
    all_of_it = settings_of(chat(repetition_penalty=1.2), None, 2048)
    assert (all_of_it["repeat_penalty"], all_of_it["repeat_last_n"]) == (1.2, -1)
    with pytest.raises(Fault) as refused:
        settings_of(chat(repetition_penalty=1.2, repeat_penalty=1.1), None, 2048)
    assert refused.value.param == "repeat_penalty"


@pytest.mark.parametrize("name", ["x", "-1", "1.0", "٣", " 3", "99999999999"])
def test_a_bias_is_for_a_tokens_id(name):
    with pytest.raises(Fault) as refused:
        settings_of(chat(logit_bias={name: 1}), None, 2048)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "logit_bias")


def says(vocab, rules, text):
    """Whether an answer with these rules can be that text and end there."""
    grammar = Grammar(rules, vocab)
    try:
        ids = vocab.encode(text, special=False)
        # The vocabulary writes a space before the first word.
        for token_id in ids[1:] if vocab.piece(ids[0]) == b" " else ids:
            if not grammar.allows(token_id):
                return False
            grammar.accept(token_id)
        return bool(grammar.allowed()[vocab.ends()].any())
    finally:
        grammar.close()


@pytest.mark.parametrize(
    ("fields", "place", "right", "wrong"),
    [
        ({"guided_choice": ["yes", 'a "b" \\ c\nd [x] é🙂']}, "guided_choice", 'a "b" \\ c\nd [x] é🙂', "ye"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "structured_outputs.choice", "no", "nono"),
        ({"guided_regex": "[0-9]{2}/x"}, "guided_regex", "12/x", "1/x"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", "aaa", "b"),
        ({"guided_json": {"type": "boolean"}}, "guided_json", "true", "1"),
        ({"guided_json": '{"type": "integer"}'}, "guided_json", "12", "true"),
        ({"json_schema": {"enum": [1, 2]}}, "json_schema", "2", "3"),
        ({"structured_outputs": {"json": {"type": "null"}}}, "structured_outputs.json", "null", "1"),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object", '{"a": 1}', "[1]"),
    ],
)
def test_rules_in_the_fields_of_other_servers(tmp_path, fields, place, right, wrong):
    rules, where = rules_asked(chat(**fields))
    assert where == place
    with Vocab.open(tiny_base(tmp_path / "base.gguf")) as vocab:
        assert says(vocab, rules, right) and not says(vocab, rules, wrong)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_json": {"type": "sphere"}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"json": {}, "json_object": True}}, "structured_outputs.json_object"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused_by_their_field(fields, param):
    request = chat(**fields)
    with pytest.raises(Fault) as refused:
        rules_asked(request, request.response_format)
    assert refused.value.status == 400 and refused.value.param.startswith(param)


def test_the_field_of_a_schema_is_told():
    for given, place in (
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, "response_format.json_schema.schema"),
        ({"type": "json_object", "schema": {}}, "response_format.schema"),
    ):
        request = chat(response_format=given)
        assert rules_asked(request, request.response_format)[1] == place


def facts(*arguments, thinks):
    return EngineFacts("llama", "b", "f", 2048, 1, False, None, (), frozenset(arguments), thinks)


SWITCHED = facts("enable_thinking", "think", "tools", thinks=True)
ALWAYS, NEVER = facts("tools", thinks=True), facts("tools", "mood", thinks=False)
GRADED = facts("reasoning_effort", "tools", thinks=True)


@pytest.mark.parametrize(
    ("kwargs", "effort", "of", "told"),
    [
        (None, None, SWITCHED, None),
        ({}, None, SWITCHED, None),
        ({"enable_thinking": False}, None, SWITCHED, {"think": False}),
        ({"thinking": True}, None, SWITCHED, {"think": True}),
        ({"enable_thinking": None}, None, SWITCHED, None),
        (None, "none", SWITCHED, {"think": False}),
        (None, "medium", SWITCHED, None),
        ({"enable_thinking": True}, "none", SWITCHED, {"think": True}),
        ({"enable_thinking": False}, None, NEVER, None),
        ({"enable_thinking": True}, None, ALWAYS, None),
        (None, "minimal", NEVER, None),
        ({"mood": "dark"}, None, NEVER, {"mood": "dark"}),
        (None, "high", GRADED, {"reasoning_effort": "high"}),
    ],
)
def test_what_the_chat_template_is_told(kwargs, effort, of, told):
    assert template_args_of(kwargs, effort, "reasoning_effort", of) == told


@pytest.mark.parametrize(
    ("kwargs", "effort", "of", "param"),
    [
        ({"enable_thinking": True}, None, NEVER, "chat_template_kwargs.enable_thinking"),
        ({"enable_thinking": False}, None, ALWAYS, "chat_template_kwargs.enable_thinking"),
        ({"mod": 1}, None, NEVER, "chat_template_kwargs.mod"),
        ({"messages": []}, None, NEVER, "chat_template_kwargs.messages"),
        ({"tools": []}, None, NEVER, "chat_template_kwargs.tools"),
        (None, "high", SWITCHED, "reasoning_effort"),
        (None, "none", ALWAYS, "reasoning_effort"),
        (None, "medium", NEVER, "reasoning_effort"),
    ],
)
def test_what_the_template_cannot_keep_is_refused(kwargs, effort, of, param):
    with pytest.raises(Fault) as refused:
        template_args_of(kwargs, effort, "reasoning_effort", of)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
