"""Bodies of requests: what is taken, what is refused and where, and what is named as ignored."""

import json

import pytest
from slm_edge.edge.openai.checks import ONLY, decoded
from slm_edge.edge.openai.conversation import conversation, settings_of
from slm_edge.edge.openai.faults import Fault
from slm_edge.edge.openai.fields import ChatRequest, CompletionRequest

PLAIN = {"model": "math", "messages": [{"role": "user", "content": "Hello"}]}


def chat(**fields):
    return decoded(json.dumps({**PLAIN, **fields}).encode(), ChatRequest)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content[0].text"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"reasoning_effort": "max"}, "reasoning_effort"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"model": ""}, "model"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(fields, param):
    with pytest.raises(Fault) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert refused.value.as_dict()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[]", b'{"model":NaN}', b'{"a":' * 5000, b'{"model":"m","temperature":1e999}', b'"\\ud800"'],
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(Fault) as refused:
        decoded(body, ChatRequest)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", True),
        ("service_tier", "flex"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("web_search_options", {}),
        ("functions", [{"name": "f"}]),
        ("grammar", "root ::= x"),
        ("guided_grammar", "root ::= x"),
        ("lora", [{"id": 0, "scale": 1}]),
        ("chat_template", "{{ x }}"),
    ],
)
def test_what_would_change_the_answer_and_cannot_be_kept_is_refused_by_name(name, value):
    with pytest.raises(Fault) as refused:
        chat(**{name: value})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", name)


def test_every_refusal_passes_its_harmless_values_and_null():
    for name, (values, _) in ONLY.items():
        if name in ChatRequest.__struct_fields__:
            for value in (None, *values):
                assert chat(**{name: value})[1] == []


def test_what_is_unknown_is_named_and_null_is_as_left_out():
    messages = [{"role": "user", "name": "Ann", "content": [{"type": "text", "text": "x", "mood": 1}]}]
    request, ignored = chat(messages=messages, keep_alive="5m", typo=None, temperature=None, max_tokens=None)
    assert ignored == ["messages[0].name", "messages[0].content[0].mood", "keep_alive"]
    assert request.temperature is None


def test_settings_of_a_request():
    request, _ = chat(temperature=0.5, top_k=-1, seed=-1, stop="END")
    settings = settings_of(request, -1, 2048)
    assert settings["max_tokens"] == 2048 and settings["top_k"] == 0 and settings["stop"] == "END"
    assert 0 <= settings["seed"] < 1 << 32
    assert settings_of(request, 0, 2048)["max_tokens"] is None


def test_messages_become_a_conversation():
    request, _ = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Add 2 and 3."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "5"},
        ]
    )
    made = conversation(request.messages)
    assert made[0] == {"role": "system", "content": "Be brief.\n\nBe\nkind."}
    assert made[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}} and made[2]["content"] == ""
    assert made[3] == {"role": "tool", "content": "5", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": "other", "content": "5"}, "messages[1].tool_call_id"),
        ({"role": "tool", "content": "5"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[1].content[0]"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"role": "user", "content": "x", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}]},
            "messages[1].tool_calls",
        ),
    ],
)
def test_messages_that_are_none_are_refused(message, param):
    request, _ = chat(messages=[*PLAIN["messages"], message])
    with pytest.raises(Fault) as refused:
        conversation(request.messages)
    assert refused.value.param == param


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
def test_a_completions_prompt_has_four_shapes(prompt):
    assert decoded(json.dumps({"model": "m", "prompt": prompt}).encode(), CompletionRequest)[0].prompt == prompt
