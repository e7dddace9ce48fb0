"""The speed benchmarks on a tiny base: they run, compare tokens, and tell figures that can be. No bound is asserted."""

import json
import stat

import pytest
from click.testing import CliRunner
from slm_edge.benchmarks.proofs import batch_throughput, session_speed, speculation
from slm_edge.export.onnx.base import export_onnx

CODE = "def add(a, b):\n    return a + b\n"


def run(command, *arguments):
    done = CliRunner().invoke(command, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


def tool(folder, text):
    """A stand-in for a program of llama.cpp's: writes what it would, for the command line that it would know."""
    file = folder / "tool"
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_a_session_against_the_tools_figures(base, tmp_path):
    rows = [{"n_prompt": 512, "n_gen": 0, "avg_ns": 512e9}, {"n_prompt": 0, "n_gen": 128, "avg_ns": 128e9}]
    bench = tool(tmp_path, json.dumps(rows))
    code, found = run(session_speed.main, base, "--rounds", 1, "--threads", 1, "--llama-bench", bench)
    # The stand-in takes a second for each token.
    assert (
        found["llama_bench_decode_tokens_per_s"]["median"] == found["llama_bench_prefill_tokens_per_s"]["median"] == 1
    )
    for part in ("prefill", "decode"):
        assert found[f"{part}_ratio"]["median"] == pytest.approx(found[f"{part}_tokens_per_s"]["median"], rel=1e-3)
    for name, tokens_per_s, n_tokens in (("prompt", "prefill", 512), ("token", "decode", 1)):
        whole_us = 1e6 * n_tokens / found[f"{tokens_per_s}_tokens_per_s"]["median"]
        ours_us = found[f"us_outside_model_per_{name}"]["median"]
        assert 0 < ours_us < whole_us
        assert found[f"share_outside_model_per_{name}"] == pytest.approx(ours_us / whole_us, rel=1e-2)
    assert code == 0 and found["within_bound"]


def test_batches_against_the_tools_figures(base, tmp_path):
    rows = [{"n_kv_max": 512, "pl": n, "tg": 8, "t": 8.0} for n in (1, 2)]
    bench = tool(tmp_path, "\n".join(json.dumps(row) for row in rows))
    options = ["--parallel", 1, "--parallel", 2, "--tokens", 8, "--runs", 1, "--threads", 1, "--batched-bench", bench]
    _, found = run(batch_throughput.main, base, *options)
    assert [row["llama_batched_bench_tokens_per_s"]["median"] for row in found["results"]] == [1, 2]
    for row in found["results"]:
        assert row["same_tokens_as_alone"] == f"{row['sequences']} of {row['sequences']}"
        assert row["ratio_to_llama_batched_bench"]["median"] > 1


def test_batches_of_the_onnx_form(base, tmp_path):
    export_onnx(base, tmp_path / "onnx", kind="f32")
    options = ["--parallel", 1, "--parallel", 3, "--tokens", 8, "--runs", 1, "--threads", 1]
    _, found = run(batch_throughput.main, base, *options, "--onnx", tmp_path / "onnx")
    assert found["engine"] == "onnxruntime"
    assert [row["same_tokens_as_alone"] for row in found["results"]] == ["1 of 1", "3 of 3"]


def test_speculation_compares_tokens(base, tmp_path):
    (tmp_path / "mbpp").mkdir()
    rows = [
        {"text": "Add.", "code": CODE * n, "task_id": 10 + n, "test_list": ["assert add(1, 2) == 3"]} for n in (1, 2)
    ]
    (tmp_path / "mbpp" / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--data",
        tmp_path,
        "--task",
        "edit",
        "--task",
        "mbpp",
        "--rounds",
        1,
        "--max-tokens",
        40,
        "--threads",
        1,
    ]
    code, found = run(speculation.main, base, *options)
    assert (code, found["same_tokens"], list(found["results"])) == (0, True, ["edit", "mbpp"])
    for result in found["results"].values():
        assert (result["prompts"], result["same_tokens"], result["partings"]) == (2, 2, [])
        assert result["drafted_tokens"] >= result["accepted_tokens"] >= 0
        assert result["decode_ratio"] > 0


def test_speculation_tells_where_answers_part(base):
    """Two made-up answers: the margin told is that of the plain run's own logits at the first difference."""
    with speculation.Session.of_files(base, {}, threads=1, speculate="fast") as session:
        bench = speculation.Bench(session, "fast", 12)
        messages = speculation.user_message("the world")
        plain = bench.run(messages, "off").answer.token_ids
        other = (*plain[:5], plain[5] + 1, *plain[6:])
        found = bench.parting(messages, plain, other)
        assert found["at_token"] == 5
        again = session.ask(messages, max_tokens=6).token_ids
        logits = sorted(session.context.logits().tolist(), reverse=True)
    assert again == plain[:6]
    assert found["margin_of_the_two_likeliest"] == pytest.approx(logits[0] - logits[1], abs=1e-4)
