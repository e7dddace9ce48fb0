"""`bench reproduce` on a tiny checkpoint: the real commands, one after the other, and the table that they lead to."""

import gzip
import json
import subprocess
import sys

from build_hf import tiny_checkpoint
from build_rows import dolly_row, gsm8k_row, mbpp_row, write_jsonl
from slm_edge.benchmarks.report.reproduce import _share_base_answers
from slm_edge.edge.datasets.prompts import dolly_held_out


def make_data(folder):
    for name in ("gsm8k", "mbpp", "dolly", "humaneval"):
        (folder / name).mkdir(parents=True)
    write_jsonl(folder / "gsm8k" / "train.jsonl", [gsm8k_row(n) for n in range(40)])
    write_jsonl(folder / "gsm8k" / "test.jsonl", [gsm8k_row(n) for n in range(100, 103)])
    write_jsonl(folder / "mbpp" / "mbpp.jsonl", [mbpp_row(n) for n in (*range(11, 14), *range(601, 700))])
    rows = [dolly_row(n) for n in range(200)]
    assert sum(map(dolly_held_out, rows)) > 2
    write_jsonl(folder / "dolly" / "closed_qa.jsonl", rows[:100])
    write_jsonl(folder / "dolly" / "summarization.jsonl", rows[100:])
    problem = {
        "task_id": "HumanEval/0",
        "prompt": "def one():\n    '''One.'''\n",
        "entry_point": "one",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    (folder / "humaneval" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(problem).encode()))
    return folder


def run_of(*words):
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "reproduce", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_train_export_pack_score(tmp_path):
    base, data, out = (
        tiny_checkpoint(tmp_path / "hf", n_embd=256, n_ff=256),
        make_data(tmp_path / "data"),
        tmp_path / "x",
    )
    command = ["--base", base, "--base-type", "q8_0", "--data", data, "-o", out, "--rank", 4, "--limit", 2]
    command += ["--samples", 2, "--max-tokens", 4, "--threads", 1, "--train", "held_out=2"]
    run = run_of(*command, "--steps", 2)
    assert run.returncode == 0, run.stderr
    found = json.loads((out / "reproduce.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["base", "LoRA-4"]
    for row in found["rows"]:
        assert (row["GSM8K exact match"]["n"], row["HumanEval pass@1"]["n_samples"]) == (2, 2)
        assert 0 <= row["dolly ROUGE-1"]["low"] <= row["dolly ROUGE-1"]["high"] <= 1
    assert {task: row["steps"] for task, row in found["trained"]["4"].items()} == {"code": 2, "summarize": 2, "math": 2}
    assert "| LoRA-4 |" in run.stdout and "64.56 %" in run.stdout
    assert "2 steps, held_out=2, seed 1." in run.stdout
    assert "rank 4: training math (3 of 3)" in run.stderr
    assert sorted(path.name for path in (out / "rank-4").glob("*.gguf")) == ["code.gguf", "math.gguf", "summarize.gguf"]
    again = run_of(*command, "--steps", 2)
    assert again.returncode == 0, again.stderr
    assert again.stdout == run.stdout
    assert "training" not in again.stderr
    # Adapters of another plan are neither taken for this one's nor overwritten
    other = run_of(*command, "--steps", 3)
    assert other.returncode == 2
    assert "steps: 2 there, 3 now" in other.stderr


def test_what_is_missing_is_named_before_anything_is_begun(tmp_path):
    data = make_data(tmp_path / "data")
    (data / "humaneval" / "HumanEval.jsonl.gz").unlink()
    (data / "gsm8k" / "train.jsonl").unlink()
    run = run_of("--base", "nowhere.gguf", "--data", data, "-o", tmp_path / "x", "--train", "steps=3")
    assert run.returncode == 2
    for word in ("nowhere.gguf", "train.jsonl", "HumanEval.jsonl.gz", "--train steps=3"):
        assert word in run.stderr
    assert "mbpp.jsonl" not in run.stderr
    assert not (tmp_path / "x").exists()


def test_the_bases_answers_are_asked_once(tmp_path):
    first = tmp_path / "rank-16" / "bench" / "answers"
    first.mkdir(parents=True)
    (first / "gsm8k.base.123.jsonl").write_text("base")
    (first / "gsm8k.math.456.jsonl").write_text("math")
    _share_base_answers(tmp_path, tmp_path / "rank-128")
    second = tmp_path / "rank-128" / "bench" / "answers"
    assert [path.name for path in second.iterdir()] == ["gsm8k.base.123.jsonl"]
    (second / "gsm8k.base.123.jsonl").write_text("and more")
    _share_base_answers(tmp_path, tmp_path / "rank-128")
    assert (second / "gsm8k.base.123.jsonl").read_text() == "and more"
