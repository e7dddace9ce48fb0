"""Numbers, read by Prometheus's own parser, against what was asked; and the document of the paths."""

import time

import jsonschema
import pytest
from build_gguf import tiny_pack
from build_server import serving
from prometheus_client.parser import text_string_to_metric_families
from slm_edge.edge.errors import SlmEdgeError
from slm_edge.edge.serve.metrics import label_of, throttled
from slm_edge.edge.serve.running import ask, servers


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tiny_pack(tmp_path_factory.mktemp("pack"))) as server:
        yield server


def numbers(server):
    reply = server.get("/metrics")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.body.decode())
    rows = (row for family in families for row in family.samples)
    return {(row.name.removeprefix("slm_edge_"), *sorted(row.labels.values())): row.value for row in rows}


def test_what_was_asked_is_counted(server):
    before = numbers(server)
    usage = server.chat(model="math", max_tokens=7).json["usage"]
    server.chat(model="code", max_tokens=3)
    server.chat(adapter={"math": 0.123, "code": 0.3}, max_tokens=2)
    server.chat(model="a stranger's word")
    server.get("/a strangers path".replace(" ", "-"))
    now = numbers(server)

    def more(*place):
        return now.get(place, 0) - before.get(place, 0)

    assert more("generated_tokens_total", "math") == 7 and more("generated_tokens_total", "code") == 3
    assert more("generated_tokens_total", "mix") == 2
    assert more("prompt_tokens_total", "computed", "math") == usage["prompt_tokens"]
    assert more("answers_total", "math", "max_tokens") == 1
    assert more("requests_total", "/v1/chat/completions", "200") == 3
    assert more("requests_total", "/v1/chat/completions", "404") == more("requests_total", "404", "other") == 1
    assert more("time_to_first_token_seconds_count", "math") == 1 == more("queue_seconds_count", "math")
    assert more("inter_token_seconds_count", "math") == 6
    assert more("engine_seconds_total", "math", "prompt") > 0
    assert now["process_anon_bytes",] > 1 << 20 and now["slots",] == 4
    # Each was taken into memory when it was first asked for.
    assert now["adapter_loads_total", "code", "loaded"] == now["adapter_loads_total", "loaded", "math"] == 1
    assert (
        now["prefix_evictions_total",] == now["slots_parked",] == 0 and now["engine_seconds_total", "load", "math"] > 0
    )
    text = server.get("/metrics").body.decode()
    assert "stranger" not in text and "0.123" not in text


def test_a_given_up_answer_is_counted_and_computes_no_more(server):
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1900, "stream": True}
    before = numbers(server)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            server.post("/v1/chat/completions", {**body, "stream": False}, timeout_s=0.1)
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        now = numbers(server)
        if not any(value for place, value in now.items() if place[0] in ("requests_running", "requests_waiting")):
            break
        time.sleep(0.05)
    gone = sum(
        now.get(("cancelled_total", "client", phase), 0) - before.get(("cancelled_total", "client", phase), 0)
        for phase in ("prompt", "decode")
    )
    made = now["generated_tokens_total", "base"] - before.get(("generated_tokens_total", "base"), 0)
    assert gone == 5 and made < 5 * 1900


def test_labels_are_of_a_closed_set():
    assert [label_of(one) for one in (None, "math", "code:0.3+math:0.7", "math:0.5")] == ["base", "math", "mix", "mix"]


def test_files_that_are_refused_are_counted(server, tmp_path):
    (tmp_path / "odd.gguf").write_bytes(b"GGUF" + bytes(100))
    path = next(path for path, facts in servers() if facts["pid"] == server.process.pid)
    for name in ("math", "a-strangers-name"):
        body = {"lora_name": name, "lora_path": str(tmp_path / "odd.gguf"), "load_inplace": True}
        with pytest.raises(SlmEdgeError):
            ask(path, "POST", "/v1/load_lora_adapter", body)
    now = numbers(server)
    assert now["adapter_loads_total", "math", "refused"] == now["adapter_loads_total", "other", "refused"] == 1
    assert "strangers" not in server.get("/metrics").body.decode()


@pytest.mark.parametrize(
    ("text", "told"), [("0\n", False), ("50000\n", False), ("50005\n", True), ("", None), ("x", None)]
)
def test_a_board_says_that_it_is_held_down(tmp_path, text, told):
    (tmp_path / "get_throttled").write_text(text)
    assert throttled(tmp_path / "get_throttled") is told and throttled(tmp_path / "none") is None


def test_the_document_holds_for_real_answers(server):
    document = server.get("/openapi.json").json
    jsonschema.Draft202012Validator.check_schema({"$defs": document["components"]["schemas"]})

    def check(path, reply, method="post", status="200"):
        content = document["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
        jsonschema.validate(reply.json, {**content, "components": document["components"]})

    words = {"model": "math", "prompt": "x", "max_tokens": 2, "logprobs": 1}
    check("/v1/models", server.get("/v1/models"), "get")
    check("/v1/models/{model}", server.get("/v1/models/base"), "get")
    check("/v1/chat/completions", server.chat(model="math", logprobs=True, top_logprobs=1))
    check("/v1/chat/completions", server.chat(model="nobody"), status="404")
    check("/v1/completions", server.post("/v1/completions", words))
    check("/tokenize", server.post("/tokenize", {"content": "x", "with_pieces": True}))
    check("/detokenize", server.post("/detokenize", {"tokens": [5]}))
    check("/health", server.get("/health"), "get")
    assert set(document["paths"]) >= {"/metrics", "/openapi.json", "/v1/chat/completions"}
