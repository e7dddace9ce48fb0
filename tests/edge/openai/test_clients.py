"""OpenAI's own Python client, as it is, against a running server; and requests that schemathesis makes up."""

import asyncio
import itertools
import json

import openai
import pydantic
import pytest
import schemathesis
from build_gguf import tiny_base, tiny_pack
from build_server import PARAMETERS, QWEN, TOOLS, serving
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]
USER = [{"role": "user", "content": "How many legs have 3 cats?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tiny_pack(tmp_path_factory.mktemp("pack")), "--parallel", 4, "--max-wait", 60) as server:
        yield server
        assert server.chat().status == 200
        code, err = server.end()
        assert code == 0 and "Traceback" not in err


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["base", "math", "code"]
    assert client.models.retrieve("math").parent == "base"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("mth")
    assert refused.value.code == "model_not_found"


def test_chat_whole_and_streamed(client):
    whole = client.chat.completions.create(model="math", messages=USER, max_tokens=9, seed=1, temperature=0.7)
    stream = client.chat.completions.create(
        model="math",
        messages=USER,
        max_completion_tokens=9,
        seed=1,
        temperature=0.7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    # Of the second one's prompt some was kept from the first.
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert whole.usage.completion_tokens <= 9 and whole.model == "math"


def test_the_helper_for_streams(client):
    with client.chat.completions.stream(model="math", messages=USER, max_tokens=6) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        snapshot = stream.current_completion_snapshot.choices[0]
    assert text == snapshot.message.content and snapshot.finish_reason == "length"


def test_completions(client):
    made = client.completions.create(model="math", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert len(made.choices) == 2 and len(made.choices[0].logprobs.tokens) == 3


def test_extra_body_reaches_the_adapter_field(client):
    made = client.chat.completions.create(
        model="base", messages=USER, max_tokens=2, extra_body={"adapter": {"math": 0.7, "code": 0.3}}
    )
    assert made.model == "code:0.3+math:0.7"
    raw = client.chat.completions.with_raw_response.create(model="math", messages=USER, max_tokens=1)
    assert raw.headers["x-slm-adapter"] == "math" and raw.parse().choices


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "nobody"}, openai.NotFoundError),
        ({"temperature": 1000}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError),
        ({"frequency_penalty": 3}, openai.BadRequestError),
    ],
)
def test_refusals_are_the_clients_own_errors(client, fields, error):
    with pytest.raises(error) as refused:
        client.chat.completions.create(**{"model": "math", "messages": USER, "max_tokens": 2, **fields})
    assert refused.value.body["message"] and refused.value.request_id


def test_a_stream_that_is_closed_frees_its_place(client, server):
    for _ in range(6):
        stream = client.chat.completions.create(model="math", messages=USER, max_tokens=1900, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model="code", messages=USER, max_tokens=1).choices


def test_many_at_once(server):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = [
                client.chat.completions.create(model=model, messages=USER, max_tokens=5)
                for model in ("base", "math", "code") * 6
            ]
            return await asyncio.gather(*asked)

    texts = {}
    for made in asyncio.run(run()):
        texts.setdefault(made.model, set()).add(made.choices[0].message.content)
    assert {model: len(found) for model, found in texts.items()} == {"base": 1, "math": 1, "code": 1}


class Legs(pydantic.BaseModel):
    legs: int = pydantic.Field(ge=0, le=99)
    sure: bool


def test_schemas_and_tools_of_the_client(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", chat_template=QWEN)
    with serving(base) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        parsed = client.chat.completions.parse(model="base", messages=USER, response_format=Legs, max_tokens=200)
        assert isinstance(parsed.choices[0].message.parsed, Legs)
        made = client.chat.completions.create(
            model="base", messages=USER, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=300
        )
        (call,) = made.choices[0].message.tool_calls
        values = json.loads(call.function.arguments)
        assert call.function.name in ("count", "now") and set(values) <= set(PARAMETERS["properties"])
        answer = {"role": "tool", "tool_call_id": call.id, "content": "3"}
        again = client.chat.completions.create(
            model="base", messages=[*USER, made.choices[0].message, answer], tools=TOOLS, max_tokens=4
        )
        assert again.choices


def test_made_up_requests_end_no_worse_than_refused(server):
    """Answers have the types that the document says; nothing ends in a server's error."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    n_cases = 0
    for found, mode in itertools.product(schema.get_all_operations(), GenerationMode):
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method.upper() == "GET":
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def ask(case):
            nonlocal n_cases
            n_cases += 1
            if isinstance(case.body, dict) and "max_tokens" in case.body:
                # Long answers prove nothing more.
                case.body["max_tokens"] = 2
            case.call_and_validate(checks=CHECKS)

        ask()
    assert n_cases > 50
