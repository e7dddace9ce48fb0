"""`bench reproduce` on a tiny base: the real commands, one after the other, and the table that they lead to."""

import gzip
import json
import subprocess
import sys

from build_gguf import tiny_base
from build_rows import dolly_row, gsm8k_row, mbpp_row, write_jsonl
from slm_edge.edge.prompts import dolly_held_out


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


def test_train_export_pack_score(tmp_path):
    base, data, out = tiny_base(tmp_path / "tiny.gguf"), make_data(tmp_path / "data"), tmp_path / "again"
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "reproduce", "--base", str(base), "--data", str(data)]
    command += ["-o", str(out), "--rank", "4", "--steps", "2", "--limit", "2", "--samples", "2", "--max-tokens", "4"]
    run = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads((out / "reproduce.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["base", "LoRA-4"]
    for row in found["rows"]:
        assert (row["GSM8K exact match"]["n"], row["HumanEval pass@1"]["n_samples"]) == (2, 2)
        assert 0 <= row["dolly ROUGE-1"]["low"] <= row["dolly ROUGE-1"]["high"] <= 1
    assert "| LoRA-4 |" in run.stdout and "64.56 %" in run.stdout
    assert sorted(path.name for path in (out / "rank-4").glob("*.gguf")) == ["code.gguf", "math.gguf", "summarize.gguf"]
    again = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout == run.stdout
    assert "training" not in again.stderr


def test_what_is_missing_is_named(tmp_path):
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "reproduce", "--base", "nowhere.gguf"]
    run = subprocess.run([*command, "--data", str(tmp_path), "-o", str(tmp_path / "x")], capture_output=True, text=True)
    assert run.returncode == 2
    assert "nowhere.gguf" in run.stderr and "train.jsonl" in run.stderr
