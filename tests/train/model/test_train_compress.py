"""Cutting an adapter to its strongest directions, against numpy's dense SVD and PEFT's own loading of the result."""

import json

import numpy as np
import pytest
import torch
from build_gguf import tiny_base
from build_hf import tiny_checkpoint
from build_rows import gsm8k_row, write_jsonl
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.train.cli.group import train as train_command
from slm_edge.train.data.prepare import as_sources, prepare
from slm_edge.train.data.task import find_task
from slm_edge.train.model.bases import open_base
from slm_edge.train.model.compress import compress, truncate
from slm_edge.train.model.gguf_model import load_gguf_model
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.job import train
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def deltas(model):
    """Dense s * B A of every adapted module, as PEFT itself computes it."""
    return {
        name: module.get_delta_weight("default").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("hf") / "base", "llama", tied=True)


def adapter(checkpoint, folder, **config):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 12, "target_modules": TARGETS, **config}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return deltas(model)


def loaded(checkpoint, folder):
    return deltas(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), folder))


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 4}}])
def test_the_result_is_the_nearest_of_its_rank(checkpoint, tmp_path, config):
    before = adapter(checkpoint, tmp_path / "a", **config)
    compress(tmp_path / "a", tmp_path / "b", rank=3)
    after = loaded(checkpoint, tmp_path / "b")
    assert before.keys() == after.keys()
    for name, delta in before.items():
        u, sizes, v_t = np.linalg.svd(delta)
        nearest = (u[:, :3] * sizes[:3]) @ v_t[:3]
        np.testing.assert_allclose(after[name], nearest, atol=1e-5)
        assert np.abs(after[name] - delta).max() > 1e-3


def test_energy_decides_for_each_module(checkpoint, tmp_path):
    before = adapter(checkpoint, tmp_path / "a")
    kept = compress(tmp_path / "a", tmp_path / "b", energy=0.8)
    after = loaded(checkpoint, tmp_path / "b")
    assert len(set(kept.ranks.values())) > 1
    for name, delta in before.items():
        share = (np.linalg.norm(after[name]) / np.linalg.norm(delta)) ** 2
        assert share == pytest.approx(kept.energy[f"{name}"], abs=1e-4)
        assert share >= 0.8 - 1e-6


def test_ranks_that_energy_asks_for_are_rounded_up_and_never_above_what_was_trained(checkpoint, tmp_path):
    adapter(checkpoint, tmp_path / "a")
    exact = compress(tmp_path / "a", tmp_path / "exact", energy=0.8)
    rounded = compress(tmp_path / "a", tmp_path / "rounded", energy=0.8, multiple=3)
    trained = max(compress(tmp_path / "a", tmp_path / "whole", rank=64).ranks.values())
    assert rounded.ranks == {name: min(-(-rank // 3) * 3, trained) for name, rank in exact.ranks.items()}
    assert rounded.ranks != exact.ranks
    assert all(rounded.energy[name] >= share - 1e-9 for name, share in exact.energy.items())
    assert set(compress(tmp_path / "a", tmp_path / "both", rank=2, energy=0.99, multiple=3).ranks.values()) == {2}


def test_full_rank_changes_nothing(checkpoint, tmp_path):
    before = adapter(checkpoint, tmp_path / "a")
    kept = compress(tmp_path / "a", tmp_path / "b", rank=64)
    assert min(kept.energy.values()) == pytest.approx(1)
    for name, delta in loaded(checkpoint, tmp_path / "b").items():
        np.testing.assert_allclose(delta, before[name], atol=1e-6)


def test_a_zero_adapter_stays_zero():
    a, b, share = truncate(np.ones((4, 6), np.float32), np.zeros((5, 4), np.float32), 2, 0.9)
    assert a.shape == (2, 6)
    assert not (b @ a).any()
    assert share == 1.0


def test_what_is_not_plain_is_refused_and_nothing_is_left(checkpoint, tmp_path):
    adapter(checkpoint, tmp_path / "a", use_dora=True)
    with pytest.raises(UnsupportedError, match="use_dora") as caught:
        compress(tmp_path / "a", tmp_path / "b", rank=2)
    assert "lora_magnitude_vector" in str(caught.value)
    assert not (tmp_path / "b").exists()
    adapter(checkpoint, tmp_path / "c")
    for wrong in ({}, {"rank": 0}, {"energy": 1.5}):
        with pytest.raises(InputError):
            compress(tmp_path / "c", tmp_path / "b", **wrong)


def test_the_record_says_so(checkpoint, tmp_path):
    adapter(checkpoint, tmp_path / "a")
    (tmp_path / "a" / "train.json").write_text('{"recipe": {"task": "math"}}')
    compress(tmp_path / "a", tmp_path / "b", rank=2)
    record = json.loads((tmp_path / "b" / "train.json").read_text())
    assert record["compressed"]["rank"] == {"min": 2, "max": 2}
    assert record["recipe"] == {"task": "math"}


def test_loss_and_kl_before_and_after_are_measured(tmp_path):
    base = tiny_base(tmp_path / "tiny.gguf")
    rows = write_jsonl(tmp_path / "rows.jsonl", [gsm8k_row(n) for n in range(24)])
    recipe = Recipe(task="math", rank=8, batch=4, steps=6, held_out=4, lr=2e-2, forward_tokens=160)
    record = train(recipe, base=base, data=[rows], output=tmp_path / "a", threads=1)
    measured = {}
    for rank in (8, 1):
        args = ["compress", tmp_path / "a", "-o", tmp_path / f"r{rank}", "--rank", rank, "--base", base, "--data", rows]
        result = CliRunner().invoke(train_command, [*map(str, args), "--json"], catch_exceptions=False)
        measured[rank] = json.loads(result.stdout)["measured"]
        written = json.loads((tmp_path / f"r{rank}" / "train.json").read_text())
        assert written["compressed"]["measured"] == measured[rank]
    losses = measured[8]["held_out_loss"]
    assert losses["base"] == pytest.approx(record["held_out_loss"]["base"], rel=1e-4)
    assert losses["before"] == pytest.approx(record["held_out_loss"]["adapter"], rel=1e-4)
    assert losses["after"] == pytest.approx(losses["before"], rel=1e-4)
    assert measured[8]["kl"]["mean"] == pytest.approx(0, abs=1e-5)
    assert measured[1]["kl"]["mean"] > 1e-4
    # the cut adapter's loss, by PEFT's own loading and transformers' own forward
    plain = PeftModel.from_pretrained(load_gguf_model(base), tmp_path / "r1")
    prepared = prepare(find_task("math"), recipe, open_base(base), as_sources([rows]))
    total, n = 0.0, 0
    for example in prepared.data.held_out:
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([example.ids])).logits[0, example.n_prompt - 1 : -1]
        targets = torch.tensor(example.ids[example.n_prompt :])
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        n += len(targets)
    assert measured[1]["held_out_loss"]["after"] == pytest.approx(total / n, rel=1e-4)
    assert measured[1]["completion_tokens"] == n


def test_measuring_needs_the_record_of_the_training(checkpoint, tmp_path):
    adapter(checkpoint, tmp_path / "a")
    rows = write_jsonl(tmp_path / "rows.jsonl", [gsm8k_row(1)])
    args = ["compress", tmp_path / "a", "-o", tmp_path / "b", "--rank", 2]
    with pytest.raises(InputError, match="go together"):
        CliRunner().invoke(train_command, [*map(str, args), "--data", str(rows)], catch_exceptions=False)
    with pytest.raises(InputError, match=r"train\.json"):
        more = ["--data", str(rows), "--base", str(checkpoint)]
        CliRunner().invoke(train_command, [*map(str, args), *more], catch_exceptions=False)
