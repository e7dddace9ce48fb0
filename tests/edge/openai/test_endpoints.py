"""What clients get over a real socket, compared with what a session answers by itself."""

import json
import socket
import threading
import time

import pytest
from build_gguf import tiny_pack
from build_router import small_router
from build_server import serving
from slm_edge.edge.engines import open_session
from slm_edge.edge.router.in_pack import put_router

USER = [{"role": "user", "content": "How many legs have 3 cats?"}]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def server(pack):
    with serving(pack, "--parallel", 4, "--alias", "gpt-4o-mini=math", "--alias", "plain=base", "--json-log") as server:
        yield server
        code, err = server.end()
        assert code == 0
        # What was asked and said is not in the log; who answered is.
        assert "legs" not in err and '"path": "/v1/chat/completions"' in err and "Traceback" not in err


@pytest.fixture(scope="module")
def answers(pack):
    """What one session answers to USER, by adapter, with the numbers."""
    with open_session(pack, threads=1) as session:
        mix = {"math": 0.7, "code": 0.3}
        names = {"base": None, "math": "math", "code": "code", "mix": mix}
        return {name: session.ask(USER, adapter=one, max_tokens=12) for name, one in names.items()}


def chat(server, **fields):
    return server.post("/v1/chat/completions", {"model": "base", "messages": USER, "max_tokens": 12, **fields})


def test_models(server, pack):
    listed = server.get("/v1/models").json
    assert [row["id"] for row in listed["data"]] == ["base", "math", "code", "gpt-4o-mini", "plain"]
    base, math, _, alias, _ = listed["data"]
    assert base["parent"] is None and math["parent"] == "base" and alias["root"] == "math"
    assert all(row["object"] == "model" and isinstance(row["created"], int) for row in listed["data"])
    assert str(pack) not in json.dumps(listed)
    assert server.get("/v1/models/math").json == math
    assert server.get("/v1/models/gpt-4o-mini").json["slm_edge"] == math["slm_edge"]
    missing = server.get("/v1/models/mth")
    assert missing.status == 404 and missing.error["code"] == "model_not_found" and "math" in missing.error["message"]


@pytest.mark.parametrize(
    ("model", "who"), [("base", "base"), ("tiny llama", "base"), ("math", "math"), ("code", "code")]
)
def test_an_answer_is_what_a_session_gives(server, answers, model, who):
    reply = chat(server, model=model)
    said, right = reply.json, answers[who]
    assert reply.status == 200 and said["object"] == "chat.completion"
    (choice,) = said["choices"]
    assert choice["message"] == {"role": "assistant", "content": right.text, "refusal": None}
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    assert said["usage"]["prompt_tokens"] == right.n_prompt_tokens
    assert said["usage"]["completion_tokens"] == right.n_tokens == 12
    assert said["usage"]["total_tokens"] == right.n_prompt_tokens + 12
    assert said["model"] == ("base" if who == "base" else who) and said["slm_edge"]["adapter"] == right.adapter
    assert reply.headers["x-slm-adapter"] == who and float(reply.headers["x-slm-queue-ms"]) >= 0
    digest = server.get("/v1/models/" + who).json["slm_edge"].get("digest")
    assert reply.headers.get("x-slm-adapter-digest") == digest == said["slm_edge"]["digest"]


def test_an_alias_answers_under_the_models_own_name(server, answers):
    said = chat(server, model="gpt-4o-mini").json
    assert said["model"] == "math" and said["choices"][0]["message"]["content"] == answers["math"].text


@pytest.mark.parametrize(
    "adapter",
    [{"math": 0.7, "code": 0.3}, "math:0.7+code:0.3", {"code": 0.3, "math": 0.7}],
    ids=["map", "text", "turned"],
)
def test_a_mix_by_the_field_adapter(server, answers, adapter):
    said = chat(server, adapter=adapter).json
    assert said["choices"][0]["message"]["content"] == answers["mix"].text
    assert said["model"] == said["slm_edge"]["adapter"] == "code:0.3+math:0.7"


def test_an_adapter_by_its_digest(server, answers):
    digest = server.get("/v1/models/math").json["slm_edge"]["digest"]
    assert chat(server, adapter={"digest": digest}).json["choices"][0]["message"]["content"] == answers["math"].text
    gone = chat(server, adapter={"digest": "sha256:" + "0" * 64})
    assert gone.status == 404 and gone.error["param"] == "adapter.digest"


def test_a_stream_has_the_events_in_order(server, answers):
    reply = chat(server, model="math", stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-slm-adapter"] == "math"
    *chunks, done = reply.events()
    assert done == "[DONE]"
    first, *middle, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"]["content"] for one in middle) == answers["math"].text
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 12
    assert all(one["usage"] is None for one in chunks[:-1])
    assert all(one["choices"][0]["finish_reason"] is None for one in [first, *middle])
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in chunks}) == 1


def test_without_usage_no_event_has_it(server):
    *chunks, done = chat(server, stream=True).events()
    assert done == "[DONE]" and all("usage" not in one and one["choices"] for one in chunks)


def test_several_choices_and_seeds(server):
    fields = {"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 8}
    one, again = (chat(server, **fields).json for _ in range(2))
    texts = [row["message"]["content"] for row in one["choices"]]
    assert len(set(texts)) > 1 and texts == [row["message"]["content"] for row in again["choices"]]
    assert one["usage"]["completion_tokens"] == 24
    second = chat(server, temperature=1.5, seed=8, max_tokens=8).json["choices"][0]["message"]["content"]
    assert second == texts[1]
    chunks = chat(server, stream=True, **fields).events()[:-1]
    streamed = [
        "".join(c["delta"].get("content", "") for e in chunks for c in e["choices"] if c["index"] == i)
        for i in range(3)
    ]
    assert streamed == texts
    too_many = chat(server, n=5)
    assert too_many.status == 400 and too_many.error["param"] == "n"


def test_a_stop_text_ends_an_answer(server, answers):
    text = answers["math"].text
    stop = text[4:6]
    choice = chat(server, model="math", stop=[stop, "never so"]).json["choices"][0]
    assert choice == {**choice, "finish_reason": "stop"} and choice["message"]["content"] == text[: text.index(stop)]


def test_logprobs_are_those_of_the_likeliest(server, answers):
    said = chat(server, model="math", logprobs=True, top_logprobs=3).json
    entries = said["choices"][0]["logprobs"]["content"]
    assert len(entries) == 12
    for entry in entries:
        assert entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3
        # Greedy: what was taken is the likeliest.
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] >= entry["top_logprobs"][1]["logprob"]
    said_bytes = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert said_bytes.decode("utf-8", "replace") == answers["math"].text
    streamed = [
        row
        for event in chat(server, model="math", logprobs=True, top_logprobs=3, stream=True).events()[:-1]
        for row in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == entries


def test_completions_take_texts_and_tokens(server):
    ids = server.post("/tokenize", {"content": "the legs"}).json["tokens"]
    bodies = [
        {"prompt": one, "model": "math", "max_tokens": 6} for one in ("the legs", ids, ["the legs"] * 2, [ids] * 2)
    ]
    replies = [server.post("/v1/completions", body).json for body in bodies]
    texts = [[row["text"] for row in one["choices"]] for one in replies]
    assert texts[0] == texts[1] and texts[2] == texts[3] == texts[0] * 2
    assert [row["index"] for row in replies[2]["choices"]] == [0, 1]
    assert replies[0]["usage"]["prompt_tokens"] == len(ids) and replies[2]["usage"]["prompt_tokens"] == 2 * len(ids)
    streamed = server.post("/v1/completions", {**bodies[0], "stream": True}).events()
    assert streamed[-1] == "[DONE]" and "".join(one["choices"][0]["text"] for one in streamed[:-1]) == texts[0][0]
    told = server.post("/v1/completions", {**bodies[0], "logprobs": 2}).json["choices"][0]["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == 6


def test_control_tokens_come_from_the_template_alone(server):
    plain = server.post("/tokenize", {"content": "<|im_end|>"}).json
    special = server.post("/tokenize", {"content": "<|im_end|>", "parse_special": True, "with_pieces": True}).json
    assert plain["count"] > 1 and special["tokens"] == [{"id": 2, "piece": "<|im_end|>"}]
    said = server.post("/tokenize", {"messages": [{"role": "user", "content": "a<|im_end|>b"}]}).json["tokens"]
    # One end of turn, the template's own; not the user's.
    assert said.count(2) == 1
    assert server.post("/detokenize", {"tokens": plain["tokens"]}).json["content"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody", "messages": USER}, 404, "model"),
        ({"model": "math", "adapter": "code", "messages": USER}, 400, "adapter"),
        ({"model": "base", "adapter": "nobody", "messages": USER}, 404, "adapter"),
        ({"model": "base", "adapter": {"math": 0}, "messages": USER}, 400, None),
        ({"model": "auto", "messages": USER}, 404, "model"),
        ({"model": "base", "messages": [{"role": "user", "content": ""}]}, 400, None),
        ({"model": "base", "messages": [{"role": "user", "content": "word " * 5000}]}, 400, "messages"),
        ({"model": "base", "messages": USER, "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"model": "base", "messages": USER, "top_logprobs": 2}, 400, "top_logprobs"),
        ({"model": "base", "messages": [{"role": "user", "content": "a" * 900_000}]}, 400, "messages"),
        ({"model": "base", "messages": USER, "logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"model": "base", "messages": USER, "chat_template_kwargs": {"mood": 1}}, 400, "chat_template_kwargs.mood"),
        ({"model": "base", "messages": USER, "guided_regex": "("}, 400, "guided_regex"),
        ({"messages": USER}, 400, "model"),
        ({"model": "base"}, 400, "messages"),
    ],
)
def test_refusals_have_one_shape(server, body, status, param):
    reply = server.post("/v1/chat/completions", body)
    assert reply.status == status
    assert set(reply.error) == {"message", "type", "param", "code"} and reply.error["param"] == param
    assert reply.headers["x-request-id"]


def test_texts_that_no_context_holds_are_refused_before_they_are_cut(server):
    long = "a" * 900_000
    refused = server.post("/v1/completions", {"model": "base", "prompt": long})
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    assert server.post("/tokenize", {"content": long}).status == 400


def test_penalties_and_biases_are_a_sessions(server, pack):
    for fields, how in (
        ({"frequency_penalty": 1.5, "presence_penalty": -0.5}, None),
        ({"repeat_penalty": 1.5, "repeat_last_n": 4}, None),
        ({"repetition_penalty": 1.5}, {"repeat_penalty": 1.5, "repeat_last_n": -1}),
        ({"logit_bias": {"40": 50, "41": -100}}, {"logit_bias": {40: 50.0, 41: -100.0}}),
    ):
        with open_session(pack, threads=1) as session:
            plain = session.ask(USER, adapter="math", max_tokens=60)
            right = session.ask(USER, adapter="math", max_tokens=60, **(how or fields))
        assert right.token_ids != plain.token_ids
        said = chat(server, model="math", max_tokens=60, **fields).json
        assert said["choices"][0]["message"]["content"] == right.text


def test_choices_and_expressions_in_others_fields_are_kept(server):
    prompt = {"model": "math", "prompt": "It is", "max_tokens": 40}
    said = server.post("/v1/completions", {**prompt, "guided_choice": ["a cat", "a dog"]}).json["choices"][0]
    assert said["text"] in ("a cat", "a dog") and said["finish_reason"] == "stop"
    said = server.post("/v1/completions", {**prompt, "structured_outputs": {"regex": "[0-9]{3}"}}).json["choices"][0]
    assert len(said["text"]) == 3 and said["text"].isdigit()


def test_a_salt_keeps_what_was_computed_to_itself(server):
    messages = [{"role": "user", "content": "Said by nobody else in these tests: the salted sea."}]

    def kept(**fields):
        said = chat(server, messages=messages, **fields).json
        return said["choices"][0]["message"]["content"], said["usage"]["prompt_tokens_details"]["cached_tokens"]

    (text, first), again = kept(), kept()
    assert first < again[1] and again[0] == text
    salted, same_salt = kept(cache_salt="a"), kept(cache_salt="a")
    assert salted == (text, 0) and same_salt == again
    assert kept(cache_salt="b")[1] == 0 and kept(cache_salt="")[1] == again[1]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/chat/completions", "/v1/chat/completions is there"),
        ("/v1/health", "/health is there"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/what-is-this-place-about", "/openapi.json has what there is"),
    ],
)
def test_a_wrong_path_is_told_the_right_one(server, path, said):
    reply = server.post(path, {})
    assert (reply.status, reply.error["code"]) == (404, "not_found") and said in reply.error["message"]


def test_the_fingerprint_is_of_what_decides_the_last_bits(server, pack):
    """The adapter, and how it is computed: alike for the same, another for another number of threads."""
    told = [chat(server, model=one, max_tokens=1).json["system_fingerprint"] for one in ("math", "math", "code")]
    assert told[0] == told[1] != told[2]
    for options in (["--parallel", 4], ["--parallel", 4, "--threads", 2], ["--parallel", 2]):
        with serving(pack, *options) as other:
            found = chat(other, model="math", max_tokens=1).json["system_fingerprint"]
            assert (found == told[0]) == (options == ["--parallel", 4])


def test_who_asks_for_embeddings_is_told_that_there_are_none(server):
    reply = server.post("/v1/embeddings", {"model": "base", "input": "x"})
    assert (reply.status, reply.error["code"]) == (400, "unsupported_endpoint") and "another one" in reply.error[
        "message"
    ]


def test_ignored_fields_are_named(server):
    reply = chat(server, keep_alive="5m", messages=[{**USER[0], "name": "Ann"}])
    assert reply.headers["x-slm-ignored"] == "messages[0].name, keep_alive"
    odd = chat(server, **{"": 1, " ": 1, "a\r\nx: y": 1, "ö": 1})
    assert odd.status == 200 and "x" not in odd.headers and odd.headers["x-slm-ignored"].startswith('"",')


def test_request_ids_are_echoed_or_made(server):
    assert server.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert server.get("/health", headers={"x-request-id": 'a"b'}).headers["x-request-id"].startswith("req-")


def test_health(server):
    for path in ("/health", "/health/live", "/health/ready"):
        reply = server.get(path)
        assert (reply.status, reply.json) == (200, {"status": "ok"})
        assert server.request("HEAD", path).status == 200


def test_a_client_that_hangs_up_ends_its_answer(server):
    """A long answer is begun and left, streamed and not; the next request finds the engine idle again."""
    for stream in (True, False):
        body = json.dumps({"model": "base", "messages": USER, "max_tokens": 1900, "stream": stream}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        gone = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for one in gone:
            one.sendall(head.encode() + body)
        if stream:
            assert gone[0].recv(1000)
        for one in gone:
            one.close()
        began_s = time.monotonic()
        assert chat(server, max_tokens=1).status == 200
        # 4 x 1,900 tokens on one thread would take far longer than this bound, also on a crowded machine.
        assert time.monotonic() - began_s < 5


def test_clients_at_once_get_what_they_would_get_alone(server, answers):
    found = {}

    def ask(i, model):
        found[i] = (model, chat(server, model=model).json["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask, args=(i, model)) for i, model in enumerate(["base", "math", "code"] * 5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 15
    # In a batch the last bits of logits may differ; with these weights no tokens are so near.
    assert all(text == answers[model].text for model, text in found.values())


def test_auto_says_who_answers_and_why(tmp_path):
    pack = tiny_pack(tmp_path)
    put_router(pack, small_router())
    with serving(pack) as server:
        assert "auto" in [row["id"] for row in server.get("/v1/models").json["data"]]
        said = server.post("/v1/chat/completions", {"model": "auto", "messages": USER, "max_tokens": 4}).json
        router = said["slm_edge"]["router"]
        assert said["model"] == (router["adapter"] or "base") and 0 <= router["confidence"] <= 1
