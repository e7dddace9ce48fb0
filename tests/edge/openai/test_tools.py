"""Calls of tools and schemas: what the rules let through, how calls are read back, and what clients get."""

import json

import jsonschema
import pytest
from build_gguf import CHATML, tiny_base, tiny_pack
from build_server import PARAMETERS, QWEN, TOOLS, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.edge.openai.calls import HERMES, LLAMA, Argued, Begun, CallReader, Said, form_of
from slm_edge.edge.openai.faults import Fault
from slm_edge.edge.openai.fields import Tool, ToolFunction

ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]}
TYPED = [
    Tool(type="function", function=ToolFunction(name="count", parameters=PARAMETERS)),
    Tool(type="function", function=ToolFunction(name="now")),
]
COUNT = '{"name": "count", "arguments": {"n": 3, "unit": "a"}}'
NOW = '{"name": "now", "arguments": {}}'


def call(text):
    return f"<tool_call>\n{text}\n</tool_call>"


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    with Vocab.open(tiny_base(tmp_path_factory.mktemp("vocab") / "base.gguf")) as vocab:
        yield vocab


def takes(rules, vocab, text):
    """Whether a whole answer may be this text."""
    ids = vocab.encode(text)
    grammar = Grammar(rules, vocab)
    if grammar.n_allowed(ids) < len(ids):
        return False
    for token_id in ids:
        grammar.accept(token_id)
    return grammar.allows(vocab.eos_id)


@pytest.mark.parametrize(
    ("must", "several", "text", "right"),
    [
        (True, False, call(COUNT), True),
        (True, False, call(NOW), True),
        (True, False, call(COUNT) + "\n" + call(NOW), False),
        (True, True, call(COUNT) + "\n" + call(NOW), True),
        (True, True, "text", False),
        (True, True, "", False),
        (True, True, call(COUNT.replace("3", "12")), False),
        (True, True, call(COUNT.replace("count", "other")), False),
        (True, True, call(NOW.replace("{}", '{"n": 3}')), False),
        (False, False, "Hello", True),
        (False, False, "", True),
        (False, False, "a < b and <tool", True),
        (False, False, "Well. " + call(COUNT), True),
        (False, False, call(COUNT) + call(NOW), False),
        (False, True, call(COUNT) + "\n" + call(NOW), True),
        (False, True, "Well. " + call(COUNT) + " and " + call(NOW), True),
        (False, True, "Well. <tool_call>anything", False),
        (False, True, "Well. " + call(COUNT.replace('"a"', '"c"')), False),
    ],
)
def test_hermes_rules(vocab, must, several, text, right):
    assert takes(HERMES.rules(TYPED, must=must, several=several), vocab, text) == right


@pytest.mark.parametrize(
    ("must", "text", "right"),
    [
        (True, COUNT.replace("arguments", "parameters"), True),
        (True, "Hello", False),
        (False, "Hello {", True),
        (False, COUNT.replace("arguments", "parameters"), True),
        (False, "{anything}", False),
        (False, "", True),
    ],
)
def test_llama_rules(vocab, must, text, right):
    assert takes(LLAMA.rules(TYPED, must=must, several=True), vocab, text) == right


def test_properties_that_a_tool_does_not_name_are_none_of_its_own(vocab):
    """Without additionalProperties a schema is open; a call is not, unless it says so."""
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    open_one = {"properties": {"a": inner, "b": {"type": "array", "items": inner}}}
    text = call('{"name": "f", "arguments": {"a": {"n": 1}, "b": [{"n": 2}]}}')
    more = text.replace('"n": 1', '"n": 1, "x": 2')
    for parameters, takes_more in (
        (open_one, False),
        ({**open_one, "properties": {"a": {**inner, "additionalProperties": True}, "b": {}}}, True),
    ):
        rules = HERMES.rules(
            [Tool(type="function", function=ToolFunction(name="f", parameters=parameters))], must=True, several=False
        )
        assert takes(rules, vocab, text) and takes(rules, vocab, more) == takes_more


def test_parameters_that_no_grammar_is_made_of_are_named():
    odd = Tool(type="function", function=ToolFunction(name="f", parameters={"properties": {"x": {"not": {}}}}))
    with pytest.raises(Fault) as refused:
        HERMES.rules([TYPED[0], odd], must=True, several=True)
    assert refused.value.param.startswith("tools[1].function.parameters") and "/properties/x" in str(refused.value)


PLAIN = st.text(alphabet='ab <{}\n"\\ö', max_size=12)
VALUES = st.recursive(
    st.integers() | PLAIN | st.booleans() | st.none(), lambda x: st.lists(x, max_size=3), max_leaves=5
)
CALLS = st.lists(
    st.tuples(PLAIN, st.sampled_from(["count", "now"]), st.dictionaries(PLAIN, VALUES, max_size=3)), max_size=3
)


@given(CALLS, PLAIN, st.data())
@settings(max_examples=200, deadline=None)
def test_calls_are_read_back_however_the_text_is_cut(calls, tail, data):
    text = ""
    for before, name, arguments in calls:
        text += f"{before}\n" + call(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))
    text += tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    reader, events = CallReader(HERMES), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += reader.feed(text[start:end])
    events += reader.finish()
    begun = [event.name for event in events if isinstance(event, Begun)]
    argued = ["".join(e.text for e in events if isinstance(e, Argued) and e.call == i) for i in range(len(calls))]
    assert begun == [name for _, name, _ in calls] and reader.n_calls == len(calls)
    assert [json.loads(one) for one in argued] == [arguments for *_, arguments in calls]
    said = "".join(event.text for event in events if isinstance(event, Said))
    right = "".join([*(before for before, *_ in calls), tail])
    # White space around calls is theirs.
    assert "".join(said.split()) == "".join(right.split())


def test_forms_are_told_by_the_template():
    assert form_of(QWEN) is HERMES and form_of(CHATML) is None
    assert form_of('{% if tools %}Environment: ipython {"name": f, "parameters": d}{% endif %}') is LLAMA


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tiny_base(tmp_path_factory.mktemp("tools") / "base.gguf", chat_template=QWEN, n_ctx_train_tokens=4096)
    with serving(base, "--parallel", 2, "-c", 2048) as server:
        yield server
        assert server.end()[0] == 0


def ask(server, **fields):
    body = {"model": "base", "messages": [{"role": "user", "content": "Count!"}], "max_tokens": 200, "tools": TOOLS}
    return server.post("/v1/chat/completions", {**body, **fields})


def arguments_of(message, names):
    found = [one["function"] for one in message["tool_calls"]]
    assert message["content"] is None and all(one["name"] in names for one in found)
    for one in found:
        values = json.loads(one["arguments"])
        if one["name"] == "count":
            jsonschema.validate(values, PARAMETERS)
    assert all(one["id"] and one["type"] == "function" for one in message["tool_calls"])
    return found


def test_a_call_is_made_where_it_must_be(server):
    for choice, names in (
        ("required", {"count", "now"}),
        ({"type": "function", "function": {"name": "count"}}, {"count"}),
    ):
        (row,) = ask(server, tool_choice=choice, parallel_tool_calls=False).json["choices"]
        assert row["finish_reason"] == "tool_calls" and len(arguments_of(row["message"], names)) == 1


def test_of_the_tools_that_are_shown_some_may_be_called(server):
    now = [{"type": "function", "function": {"name": "now"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": now}}
    reply = ask(server, tool_choice=choice, parallel_tool_calls=False)
    (row,) = reply.json["choices"]
    assert row["message"]["tool_calls"][0]["function"]["name"] == "now"
    # All of them are shown: what was computed of the prompt serves each choice.
    assert reply.json["usage"]["prompt_tokens"] == ask(server, max_tokens=1).json["usage"]["prompt_tokens"]
    choice["allowed_tools"]["mode"] = "auto"
    assert ask(server, tool_choice=choice).status == 200


def test_a_streamed_call_has_its_parts_in_order(server):
    fields = {"tool_choice": {"type": "function", "function": {"name": "count"}}}
    whole = ask(server, **fields).json["choices"][0]["message"]["tool_calls"][0]["function"]
    *chunks, done = ask(server, stream=True, **fields).events()
    deltas = [one["choices"][0]["delta"] for one in chunks]
    calls = [one["tool_calls"][0] for one in deltas if "tool_calls" in one]
    first, *rest = calls
    assert done == "[DONE]" and first["id"] and first["type"] == "function" and first["index"] == 0
    assert first["function"] == {"name": "count", "arguments": ""}
    assert all(set(one) == {"index", "function"} and set(one["function"]) == {"arguments"} for one in rest)
    assert "".join(one["function"]["arguments"] for one in rest) == whole["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls" and chunks[-1]["choices"][0]["delta"] == {}


def test_tools_are_shown_to_the_model_and_results_too(server):
    ids = ask(server, max_tokens=1).json["usage"]["prompt_tokens"]
    assert ids > ask(server, max_tokens=1, tools=None).json["usage"]["prompt_tokens"] + 100
    assert ask(server, max_tokens=1, tool_choice="none").json["usage"]["prompt_tokens"] < ids
    made = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": '{"n": 3, "unit": "a"}'}}
    messages = [
        {"role": "user", "content": "Count!"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c1", "content": "three<|im_end|>"},
    ]
    said = server.post("/tokenize", {"messages": messages, "with_pieces": True}).json["tokens"]
    text = "".join(one["piece"] for one in said)
    assert (
        f"assistant\n{call(COUNT)}<|im_end|>" in text and "<tool_response>\nthree<|im_end|>\n</tool_response>" in text
    )
    # The result's own end of turn is text.
    assert [one["id"] for one in said].count(2) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tool_choice": {"type": "function", "allowed_tools": ALLOWED}}, "tool_choice.function"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}}, "tool_choice.allowed_tools.tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "file"}}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "description": "x" * 70000}}]}, "tools"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(server, fields, param):
    reply = ask(server, **fields)
    assert reply.status == 400 and reply.error["param"].startswith(param)


SCHEMA = {
    "type": "object",
    "properties": {"legs": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["legs", "sure"],
    "additionalProperties": False,
}


def test_an_answer_keeps_to_its_schema(server):
    kept = {"type": "json_schema", "json_schema": {"name": "legs", "schema": SCHEMA, "strict": True}}
    for stream in (False, True):
        reply = ask(server, tools=None, response_format=kept, stream=stream)
        chunks = reply.events()[:-1] if stream else []
        text = "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)
        text = text if stream else reply.json["choices"][0]["message"]["content"]
        jsonschema.validate(json.loads(text), SCHEMA)


def test_an_answer_is_any_object(server):
    reply = ask(server, tools=None, response_format={"type": "json_object"}, max_tokens=30).json["choices"][0]
    assert reply["message"]["content"].startswith("{")


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_where_other_servers_take_it(server, kind):
    kept = {"type": kind, "schema": {"const": "forty-two"}}
    made = ask(server, tools=None, response_format=kept, max_tokens=60).json["choices"][0]
    assert made["message"]["content"] == '"forty-two"'
    for more in ({"json_schema": {"name": "x", "schema": SCHEMA}}, {"type": "text"}, {"schema": {"type": "hiccup"}}):
        reply = ask(server, tools=None, response_format={**kept, **more})
        assert reply.status == 400 and reply.error["param"].startswith("response_format"), more
    reply = ask(server, tools=None, messages=[{"role": "user", "content": "word " * 5000}])
    assert reply.status == 400 and "; " in reply.error["message"]


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "object", "properties": {"x": {"not": {}}}}, "response_format.json_schema.schema"),
        ({"type": "nonsense"}, "response_format.json_schema.schema"),
        ({"$ref": "#/nowhere"}, "response_format.json_schema.schema"),
        ({"type": "string", "pattern": "(a+)+$("}, "response_format.json_schema.schema"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "response_format.json_schema.schema"),
        (None, "response_format.json_schema.schema"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_before_a_token(server, schema, param):
    kept = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = ask(server, tools=None, response_format=kept, stream=True)
    assert reply.status == 400 and reply.error["param"].startswith(param)
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 20000},
        {"type": "array", "items": {"type": "array", "maxItems": 10**6}, "minItems": 10**6},
        {"anyOf": [{"const": "x" * i} for i in range(1000)]},
    ],
)
def test_a_schema_that_would_be_a_burden_hurts_nobody(server, schema):
    kept = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert ask(server, tools=None, response_format=kept, max_tokens=2).status in (200, 400)
    assert ask(server, tools=None, max_tokens=2).status == 200


def test_a_template_without_tools_refuses_them_by_name(tmp_path):
    with serving(tiny_pack(tmp_path)) as server:
        reply = ask(server)
        assert reply.status == 400 and "no form for calling tools" in reply.error["message"]
        assert ask(server, tool_choice="none").status == 200
