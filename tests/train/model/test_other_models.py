"""Models without a proved row that are trained from their GGUF: Phi-3's fused matrices, and how it turns positions."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from build_hf import tiny_checkpoint
from build_other import other_base
from build_rows import SMALL, gsm8k_row, write_jsonl
from compare_logits import gguf_logits, random_ids
from gguf import GGUFValueType
from slm_edge.edge.errors import UnsupportedError
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify
from slm_edge.train.model.bases import open_base
from slm_edge.train.model.gguf_model import load_gguf_model
from slm_edge.train.model.lora import add_lora
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.job import Extras, train
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
ORIGINAL_TOKENS = 512
FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}


def longrope() -> dict:
    """Fields of a Phi-3 whose context was stretched, as the installed transformers wants them."""
    if transformers.__version__ < "5":
        return {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": ORIGINAL_TOKENS}
    more = {"original_max_position_embeddings": ORIGINAL_TOKENS, "partial_rotary_factor": 1.0, "rope_theta": 10000.0}
    rope = {"rope_type": "longrope", "type": "longrope", **FACTORS, **more}
    return {"rope_parameters": rope, "original_max_position_embeddings": ORIGINAL_TOKENS}


def phi3(folder, kind, **fields):
    """Checkpoint and GGUF of a tiny Phi-3: "plain", with a part of each head turned, or stretched."""
    keys = {}
    if kind == "part of a head":
        fields |= {"partial_rotary_factor": 0.75}
        keys = {"phi3.rope.dimension_count": (12, GGUFValueType.UINT32)}
    if kind == "longrope":
        fields |= longrope()
    return other_base(folder, "phi3", keys=keys, **fields)


@pytest.mark.parametrize("weights", ["f32", "gguf"])
@pytest.mark.parametrize("kind", ["plain", "part of a head", "longrope"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_llama_cpps_and_the_folders(tmp_path, kind, weights, tied):
    hf, base = phi3(tmp_path, kind, tie_word_embeddings=tied)
    ids = random_ids(384, 200)
    with torch.no_grad():
        ours = load_gguf_model(base, weights=weights)(input_ids=torch.tensor([ids])).logits[0].numpy()
        folders = AutoModelForCausalLM.from_pretrained(hf).float()(input_ids=torch.tensor([ids])).logits[0].numpy()
    theirs = gguf_logits(base, ids)
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() <= 2e-3
    assert np.abs(ours - folders).max() <= 2e-3


def test_rows_end_where_positions_begin_to_turn_otherwise(tmp_path):
    """Longrope beyond the original context, and the window that llama.cpp ignores."""
    assert [open_base(one).n_context_tokens for one in phi3(tmp_path / "a", "longrope")] == [ORIGINAL_TOKENS] * 2
    assert open_base(phi3(tmp_path / "b", "plain", sliding_window=128)[1]).n_context_tokens == 128
    assert open_base(phi3(tmp_path / "c", "plain")[1]).n_context_tokens == 2048


@pytest.mark.parametrize("kind", ["part of a head", "longrope"])
def test_an_adapter_of_the_fused_matrices_is_exported_and_proved(tmp_path, kind):
    """The recipe's usual names stand for the matrices that hold them."""
    hf, base = phi3(tmp_path, kind)
    data = write_jsonl(tmp_path / "rows.jsonl", [gsm8k_row(n) for n in range(30)])
    recipe = Recipe(task="math", weights="gguf", **{**SMALL, "steps": 12, "held_out": 8})
    record = train(recipe, base=base, data=[data], output=tmp_path / "peft")
    assert record["held_out_loss"]["adapter"] < record["held_out_loss"]["base"]
    done = export_lora(tmp_path / "peft", base, tmp_path / "a.gguf", kind="f32")
    names = {name.split(".")[2] for name in done.info.targets}
    assert names == {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}
    for folder in (hf, None):
        given = {"hf": folder} if folder else {"base_gguf": base}
        report = verify(
            tmp_path / "peft",
            base=base,
            lora=tmp_path / "a.gguf",
            prompts=BUILT_IN[:2],
            max_tokens=4,
            threads=1,
            **given,
        )
        assert report.passed
        assert report.max_logit_error <= 2e-3
    again = dataclasses.replace(recipe, steps=1)
    more = train(again, base=base, data=[data], output=tmp_path / "more", extras=Extras(start=tmp_path / "peft"))
    assert abs(more["held_out_loss"]["start"] - record["held_out_loss"]["adapter"]) < 1e-6


def test_targets_that_a_model_lacks_are_named(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "hf"))
    with pytest.raises(UnsupportedError, match="no layers named qkv_proj") as refused:
        add_lora(model, Recipe(task="math", targets=("q_proj", "qkv_proj")), "x")
    assert "q_proj" in refused.value.hint
