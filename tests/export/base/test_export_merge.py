"""An adapter merged into its base: llama.cpp's logits of the one file are PEFT's own merged model's."""

import numpy as np
import pytest
import torch
from build_hf import tiny_checkpoint
from build_peft import real_adapter
from compare_logits import gguf_logits, random_ids
from peft import PeftModel
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.adapter import check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.merge import merge
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")


def made(folder, family="llama", **config):
    hf = tiny_checkpoint(folder / "hf", family)
    export_base(hf, folder / "base.gguf", TYPES["f32"])
    peft = real_adapter(folder / "peft", hf, **config)
    export_lora(peft, folder / "base.gguf", folder / "a.gguf", kind="f32")
    return hf, peft


@pytest.mark.parametrize(
    ("family", "config"), [("llama", {"r": 8, "lora_alpha": 16}), ("qwen2", {"r": 4, "use_rslora": True})]
)
def test_logits_are_those_of_pefts_own_merge(tmp_path, family, config):
    hf, peft = made(tmp_path, family, **config)
    result = merge(tmp_path / "base.gguf", tmp_path / "a.gguf", tmp_path / "m.gguf", TYPES["f32"])
    assert result.types.keys() == {"F32"}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(hf).float(), str(peft))
    merged = model.merge_and_unload()
    ids = random_ids(model.config.vocab_size, 12)
    with torch.no_grad():
        expected = merged(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(gguf_logits(tmp_path / "m.gguf", ids) - expected).max() <= 2e-3
    assert np.abs(gguf_logits(tmp_path / "base.gguf", ids) - expected).max() > 0.1
    # what the base's adapters fit on, the merged base has too
    assert check_adapter(tmp_path / "a.gguf", BaseInfo.open(tmp_path / "m.gguf")).rank == config["r"]


def test_a_quantised_base_is_merged_on_its_own_values_and_scale_counts(tmp_path):
    made(tmp_path, r=4)
    export_base(tmp_path / "base.gguf", tmp_path / "q8.gguf", TYPES["q8_0"])
    merge(tmp_path / "q8.gguf", tmp_path / "a.gguf", tmp_path / "zero.gguf", TYPES["f32"], scale=0.0)
    ids = random_ids(300, 8)
    export_base(tmp_path / "q8.gguf", tmp_path / "plain.gguf", TYPES["f32"])
    assert np.array_equal(gguf_logits(tmp_path / "zero.gguf", ids), gguf_logits(tmp_path / "plain.gguf", ids))
    result = merge(tmp_path / "q8.gguf", tmp_path / "a.gguf", tmp_path / "one.gguf", TYPES["q8_0"])
    assert "Q8_0" in result.types
    assert not np.array_equal(gguf_logits(tmp_path / "one.gguf", ids), gguf_logits(tmp_path / "plain.gguf", ids))


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(tmp_path):
    hf, _ = made(tmp_path, r=4)
    with pytest.raises(InputError, match="exists already"):
        merge(tmp_path / "base.gguf", tmp_path / "a.gguf", tmp_path / "a.gguf", TYPES["f32"])
    export_base(hf, tmp_path / "head.gguf", TYPES["f32"], Options(output_weight=True))
    head = real_adapter(tmp_path / "head", hf, r=4, target_modules=["q_proj", "embed_tokens"])
    export_lora(head, tmp_path / "head.gguf", tmp_path / "head-a.gguf", kind="f32")
    with pytest.raises(UnsupportedError, match="embedding or the head"):
        merge(tmp_path / "head.gguf", tmp_path / "head-a.gguf", tmp_path / "m.gguf", TYPES["f32"])
    assert not list(tmp_path.glob("*m.gguf*"))
