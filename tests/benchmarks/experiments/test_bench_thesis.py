"""`bench loss` against PEFT in torch, and the whole experiments on one task (keep or merge, ranks) on a tiny base."""

import json
import subprocess
import sys

import pytest
import torch
from build_gguf import tiny_base
from build_hf import tiny_checkpoint
from build_peft import real_adapter
from build_rows import dolly_row, write_jsonl
from peft import PeftModel
from slm_edge.benchmarks.likelihood.answer_loss import Side, measure, summary
from slm_edge.benchmarks.tasks.dolly import load
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.session.session import Session
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "dolly").mkdir()
    rows = [dolly_row(n) for n in range(200)]
    write_jsonl(folder / "dolly" / "closed_qa.jsonl", rows[:100])
    write_jsonl(folder / "dolly" / "summarization.jsonl", rows[100:])
    return folder


def slm_edge(*words):
    run = subprocess.run([sys.executable, "-m", "slm_edge.edge", *map(str, words)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_loss_is_that_of_peft_on_the_same_tokens(tmp_path, data):
    hf = tiny_checkpoint(tmp_path / "hf")
    export_base(hf, tmp_path / "base.gguf", TYPES["f32"])
    peft = real_adapter(tmp_path / "peft", hf, r=4)
    export_lora(peft, tmp_path / "base.gguf", tmp_path / "a.gguf", kind="f32")
    slm_edge(
        "pack", "build", "-o", tmp_path / "p", "--base", tmp_path / "base.gguf", "--adapter", f"a={tmp_path / 'a.gguf'}"
    )
    items = load(data)[:3]
    pack = Pack.open(tmp_path / "p")
    found = measure(Side(pack, "a"), items, Side(pack, None), threads=1)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32), str(peft)).eval()
    with Session.open(pack, threads=1) as session:
        for item in items:
            prompt = session.prompt_tokens(item.messages)
            answer = [
                *session.model.vocab.encode(item.truth["answer"].strip(), special=False),
                session.model.vocab.eos_id,
            ]
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                ours = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1].double(), -1)
                with model.disable_adapter():
                    base = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1].double(), -1)
            expected = -ours[range(len(answer)), answer].mean().item()
            assert found[item.id]["nll"] == pytest.approx(expected, abs=2e-3)
            assert found[item.id]["kl"] == pytest.approx((base.exp() * (base - ours)).sum(-1).mean().item(), abs=2e-3)
            assert found[item.id]["n_tokens"] == len(answer)
    assert summary(found)["kl"].value > 0.01


def experiment(name, base, data, out, *flags):
    """Runs it with two steps of training and few items."""
    command = [sys.executable, "-m", f"slm_edge.benchmarks.experiments.{name}", base, "--recipe", "--steps 2 --batch 2"]
    command += ["--n-loss", 3, "--n-answers", 2, "--threads", 1, "--data", data, "-o", out, *flags]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run


def test_keep_or_merge_runs_whole_and_again_does_nothing(tmp_path, data):
    base = tiny_base(tmp_path / "tiny.gguf")
    first = experiment("keep_or_merge", base, data, tmp_path / "out", "--type", "shipped", "--seed", 1)
    rows = json.loads((tmp_path / "out" / "thesis.json").read_text())["rows"]
    assert [(row["type"], row["way"]) for row in rows] == [("f16", "kept, float")] + [
        ("shipped", way) for way in ("base", "kept, float", "kept, own", "merged")
    ]
    assert all(len(row["nll"]) == 3 and len(row["rouge1"]) == 2 for row in rows)
    assert all(abs(value) < 1e-6 for value in rows[0]["kl"].values())
    assert first.stdout.count("\n| shipped |") == 4
    again = experiment("keep_or_merge", base, data, tmp_path / "out", "--type", "shipped", "--seed", 1)
    assert again.stdout == first.stdout
    assert "training" not in again.stderr


def test_ranks_are_trained_cut_scored_and_timed(tmp_path, data):
    base = tiny_base(tmp_path / "tiny.gguf")
    flags = ["--rank", 2, "--rank", 4, "--cut", 4, "--cut", 1, "--energy", 0.5, "--runs", 2]
    printed = experiment("rank_sweep", base, data, tmp_path / "out", *flags).stdout
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "ranks.json").read_text())["rows"]}
    cut = "rank 4, cut to"
    assert list(rows) == ["base", "rank 2", "rank 4", f"{cut} rank 4", f"{cut} rank 1", f"{cut} energy 0.5"]
    assert all(f"\n| {name} |" in printed for name in rows)
    sizes = {name: row.get("size_bytes") for name, row in rows.items()}
    assert sizes[f"{cut} rank 1"] < sizes["rank 2"] < sizes["rank 4"]
    # Cut to its own rank, nothing is lost; the others differ from it
    whole = rows["rank 4"]
    assert rows[f"{cut} rank 4"]["nll"] == pytest.approx(whole["nll"], abs=1e-4)
    assert all(abs(value) < 1e-6 for value in whole["kl"].values())
    assert all(sum(rows[name]["kl"].values()) > 1e-7 for name in ("base", "rank 2", f"{cut} rank 1"))
    assert all(row["decode_ratio"]["min"] > 0 for row in rows.values() if row["name"] != "base")
