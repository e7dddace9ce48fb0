"""/v1/responses with OpenAI's own client: items, their events in order, calls, and what would need a store."""

import json
from typing import Literal

import jsonschema
import openai
import pydantic
import pytest
from build_gguf import tiny_base
from build_server import PARAMETERS, QWEN, serving

FLAT = [{"type": "function", "name": "count", "parameters": PARAMETERS}]
ASK = [{"role": "user", "content": [{"type": "input_text", "text": "How many legs?"}]}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tiny_base(tmp_path_factory.mktemp("base") / "base.gguf", chat_template=QWEN, n_ctx_train_tokens=4096)
    with serving(base, "-c", 2048) as server:
        yield server
        code, err = server.end()
        assert code == 0 and "Traceback" not in err


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_text_is_what_chat_answers(client, server):
    made = client.responses.create(model="base", input="Hello", instructions="Be brief.", max_output_tokens=8)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model="base", messages=messages, max_tokens=8)
    assert made.output_text == chat.choices[0].message.content
    assert made.status == "incomplete" and made.incomplete_details.reason == "max_output_tokens"
    assert made.usage.output_tokens == 8 and made.usage.input_tokens == chat.usage.prompt_tokens
    assert made.usage.output_tokens_details.reasoning_tokens == 0 and made.store is False
    document = server.get("/openapi.json").json
    schema = document["components"]["schemas"]["ResponseAnswer"]
    raw = server.post("/v1/responses", {"model": "base", "input": ASK, "max_output_tokens": 2}).json
    jsonschema.validate(raw, {**schema, "components": document["components"]})


def test_events_come_in_order(client):
    with client.responses.create(model="base", input=ASK, max_output_tokens=6, stream=True) as stream:
        events = list(stream)
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas and kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert (
        said
        == events[-1].response.output_text
        == client.responses.create(model="base", input=ASK, max_output_tokens=6).output_text
    )
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1
    assert events[0].response.status == "in_progress" and events[0].response.output == []


def test_the_stream_has_names_and_no_done(server):
    body = {"model": "base", "input": "x", "max_output_tokens": 2, "stream": True}
    text = server.post("/v1/responses", body).body.decode()
    assert text.startswith("event: response.created\ndata: ") and "[DONE]" not in text


def test_calls_and_what_they_gave_back(client):
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "count"}]}
    made = client.responses.create(
        model="base", input="Count!", tools=FLAT, tool_choice=some, parallel_tool_calls=False, max_output_tokens=300
    )
    assert [one.name for one in made.output] == ["count"] and made.tool_choice.mode == "required"
    fields = {"model": "base", "tools": FLAT, "tool_choice": {"type": "function", "name": "count"}}
    made = client.responses.create(input=ASK, max_output_tokens=300, **fields)
    (call,) = made.output
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    assert call.type == "function_call" and call.name == "count" and made.status == "completed"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    again = client.responses.create(model="base", input=[*ASK, *made.output, result], tools=FLAT, max_output_tokens=4)
    assert again.usage.input_tokens > made.usage.input_tokens
    with client.responses.create(input=ASK, max_output_tokens=300, stream=True, **fields) as stream:
        events = list(stream)
    argued = "".join(one.delta for one in events if one.type == "response.function_call_arguments.delta")
    done = next(one for one in events if one.type == "response.function_call_arguments.done")
    assert argued == done.arguments == call.arguments == events[-1].response.output[0].arguments


class Digit(pydantic.BaseModel):
    n: Literal[1, 2, 3]


def test_the_helper_of_the_client_reads_the_stream(client):
    with client.responses.stream(model="base", input="Hi", max_output_tokens=100, text_format=Digit) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed.n in (1, 2, 3)


def test_a_schema_is_kept(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    kept = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    made = client.responses.create(model="base", input="Hi", text=kept, max_output_tokens=100)
    jsonschema.validate(json.loads(made.output_text), schema)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": []}, "input"),
        ({"tools": FLAT, "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": FLAT, "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "odd"}}}}, "text.format.schema"),
    ],
)
def test_what_would_need_a_store_is_refused(server, fields, param):
    reply = server.post("/v1/responses", {"model": "base", "input": "Hi", **fields})
    assert reply.status == 400 and reply.error["param"].startswith(param)
