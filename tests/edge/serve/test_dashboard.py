"""The dashboard in docs/, and vLLM's names: both against what a server that was asked really tells."""

import dataclasses
import itertools
import json
import re
import time
from pathlib import Path

import pytest
from build_gguf import tiny_base, tiny_pack
from build_server import serving
from prometheus_client.parser import text_string_to_metric_families
from slm_edge.edge import Engine
from slm_edge.edge.serve.metrics import Metrics
from slm_edge.edge.session.session import Session

BOARD = json.loads((Path(__file__).parents[3] / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
# What Prometheus puts behind a name itself
PARTS = ("_bucket", "_total")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tiny_pack(tmp_path_factory.mktemp("pack")), "--metrics-names", "vllm") as server:
        for model in ("math", "base"):
            server.chat(model=model, max_tokens=5)
        yield server


def families(server):
    return {one.name: one for one in text_string_to_metric_families(server.get("/metrics").body.decode())}


def expressions():
    return [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def test_every_number_that_the_dashboard_names_is_told(server):
    told = families(server)
    labels = {name: {key for row in one.samples for key in row.labels} for name, one in told.items()}
    named = set()
    variables = [one["definition"] for one in BOARD["templating"]["list"] if "definition" in one]
    for expr in (*expressions(), *variables):
        for name in re.findall(r"slm_edge_\w+", expr):
            part = next((part for part in PARTS if name.endswith(part)), "")
            family = told[name if name in told else name.removesuffix(part)]
            assert family.type == {"_bucket": "histogram", "_total": "counter"}.get(part, "gauge"), name
            named.add(family.name)
    # And the other way round: what is told is shown.
    hidden = {name for name in told if name.startswith("slm_edge_")} - named
    assert hidden == set(), hidden
    by = {
        key.strip() for expr in expressions() for keys in re.findall(r"by \(([^)]*)\)", expr) for key in keys.split(",")
    }
    assert by <= {"le", "adapter", "cause", "code", "reason", "phase", "end", "work", "source", "result"}
    assert {"adapter", "work"} <= labels["slm_edge_engine_seconds"] and "code" in labels["slm_edge_requests"]


def test_the_dashboard_is_one_that_grafana_takes():
    assert isinstance(BOARD["schemaVersion"], int) and BOARD["uid"] and BOARD["title"]
    names = {one["name"] for one in BOARD["templating"]["list"]}
    assert names == {"datasource", "instance"}
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert panel["type"] in ("timeseries", "stat") and place["x"] >= 0 and place["x"] + place["w"] <= 24
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    for expr in expressions():
        assert all(expr.count(a) == expr.count(b) for a, b in ("()", "[]", "{}"))
        assert set(re.findall(r"\$(\w+)", expr)) <= {*names, "__rate_interval"}


def test_vllms_names_stand_beside_ours(server):
    told = families(server)
    base = server.get("/v1/models").json["data"][0]["id"]
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        (row,) = told[name].samples
        assert row.labels == {"model_name": base, "engine": "0"}
    assert 0 < told["vllm:kv_cache_usage_perc"].samples[0].value <= 1
    (row,) = told["vllm:lora_requests_info"].samples
    assert row.labels == {"running_lora_adapters": "", "waiting_lora_adapters": "", "max_lora": "8"}
    assert abs(row.value - time.time()) < 60
    made = {row.labels["adapter"]: row.value for row in told["slm_edge_generated_tokens"].samples}
    assert told["vllm:generation_tokens"].samples[0].value == sum(made.values())
    ours = {
        (row.name.removeprefix("slm_edge_"), row.labels["adapter"], row.labels.get("le")): row.value
        for row in told["slm_edge_time_to_first_token_seconds"].samples
    }
    theirs = {
        (row.name.removeprefix("vllm:"), row.labels["model_name"], row.labels.get("le")): row.value
        for row in told["vllm:time_to_first_token_seconds"].samples
    }
    assert ours == theirs and len(ours) > 10


def test_adapters_at_work_are_told_to_a_pool(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    with Engine.of_session(lambda: Session.of_files(base, {}, threads=1), parallel=1) as engine:
        stats = dataclasses.replace(
            engine.stats(), running={"sea": 1, "base": 1, "sea:0.5+bread:0.1": 2}, waiting={"bread": 3}
        )
    metrics = Metrics({}, as_vllm=True)
    metrics.base_name = "tiny"
    told = {one.name: one.samples for one in text_string_to_metric_families(metrics.text(stats).decode())}
    (row,) = told["vllm:lora_requests_info"]
    assert (row.labels["running_lora_adapters"], row.labels["waiting_lora_adapters"]) == ("mix,sea", "bread")
    values = [told[f"vllm:num_requests_{name}"][0].value for name in ("running", "waiting")]
    assert values == [4, 3] and told["vllm:num_requests_running"][0].labels["model_name"] == "tiny"
