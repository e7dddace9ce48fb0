"""Cutting an adapter to its strongest directions, against numpy's dense SVD and PEFT's own loading of the result."""

import json

import numpy as np
import pytest
import torch
from build_hf import tiny_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.train.compress import compress, truncate
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
