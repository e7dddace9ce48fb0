"""Hugging Face's optimum: it runs our base as it is, and its own export of a merged adapter computes what ours does.

optimum pins an older transformers than the rest may use, so it lives in an environment of its own: make test-optimum.
"""

import numpy as np
import pytest
import torch
import transformers
from build_hf import tiny_checkpoint
from build_onnx import onnx_logits
from build_peft import real_adapter
from slm_edge.edge.onnx.adapter import OnnxAdapter
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

optimum = pytest.importorskip("optimum.onnxruntime", reason="optimum has an environment of its own: make test-optimum")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_optimum_generates_from_our_folder(tmp_path, family):
    hf = tiny_checkpoint(tmp_path / "hf", family)
    export_onnx(hf, tmp_path / "onnx", kind="f32")
    theirs = optimum.ORTModelForCausalLM.from_pretrained(tmp_path / "onnx", file_name="model.onnx", use_cache=True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(hf).float().eval()
    ids = torch.tensor([[5, 70, 71, 99, 120, 33]])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    assert theirs.generate(ids, **how).tolist() == reference.generate(ids, **how).tolist()


def test_optimums_export_of_a_merged_adapter_is_our_graph_with_it(tmp_path):
    from optimum.exporters.onnx import main_export
    from peft import PeftModel

    hf = tiny_checkpoint(tmp_path / "hf")
    peft = real_adapter(tmp_path / "peft", hf, r=8, lora_alpha=16)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf).float()
    merged = PeftModel.from_pretrained(model, str(peft)).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    transformers.AutoTokenizer.from_pretrained(hf).save_pretrained(tmp_path / "merged")
    main_export(str(tmp_path / "merged"), tmp_path / "theirs", task="text-generation-with-past", do_validation=False)
    ids = list(range(3, 40))
    theirs = optimum.ORTModelForCausalLM.from_pretrained(tmp_path / "theirs", use_cache=True)
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        rows = theirs(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0].numpy()
    base = export_onnx(hf, tmp_path / "onnx", kind="f32").base
    export_onnx_adapter(peft, base, tmp_path / "a.onnx_adapter")
    pairs = OnnxAdapter.open(tmp_path / "a.onnx_adapter", base).arrays
    ours = onnx_logits(tmp_path / "onnx" / "model.onnx", ids, **pairs)
    np.testing.assert_allclose(ours, rows, atol=1e-3)
    assert np.abs(ours - onnx_logits(tmp_path / "onnx" / "model.onnx", ids)).max() > 1
