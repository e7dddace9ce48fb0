"""A family is one row: an architecture that the table lacks is exported, proved, trained and run by it alone."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from build_hf import tiny_checkpoint
from build_peft import real_adapter
from compare_logits import hf_logits, largest_difference, random_ids
from slm_edge.edge.errors import UnsupportedError
from slm_edge.edge.gguf import families
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.onnx.base import export_onnx
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify
from slm_edge.train.model.gguf_model import load_gguf_model

BOUND = 2e-3
# The second norm has a name of its own in llama.cpp, biases have two switches.
ROW = """
from slm_edge.edge.gguf.families import FAMILIES, Family, HfClass, Part
FAMILIES["seed_oss"] = Family(
    "seed_oss",
    classes=(HfClass("SeedOssForCausalLM", "SeedOssConfig"),),
    block=(
        Part("attn_norm", "input_layernorm", ("n_embd",)),
        Part("post_attention_norm", "post_attention_layernorm", ("n_embd",)),
        Part("attn_q", "self_attn.q_proj", ("n_embd", "n_q"), "attention_bias"),
        Part("attn_k", "self_attn.k_proj", ("n_embd", "n_k"), "attention_bias"),
        Part("attn_v", "self_attn.v_proj", ("n_embd", "n_v"), "attention_bias"),
        Part("attn_output", "self_attn.o_proj", ("n_o", "n_embd"), "attention_out_bias"),
        Part("ffn_gate", "mlp.gate_proj", ("n_embd", "n_ff")),
        Part("ffn_up", "mlp.up_proj", ("n_embd", "n_ff")),
        Part("ffn_down", "mlp.down_proj", ("n_ff", "n_embd")),
    ),
)
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def row(monkeypatch):
    # set and taken back by monkeypatch, filled in by the text that the child runs too
    monkeypatch.setitem(families.FAMILIES, "seed_oss", None)
    exec(ROW, {})
    return families.FAMILIES["seed_oss"]


def slm_edge(*args):
    """The command line in a process of its own, which has the row."""
    code = f"{ROW}\nimport sys\nfrom slm_edge.edge.cli.main import main\nsys.argv[1:] = {[*map(str, args)]!r}\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_the_row_it_is_refused(tmp_path):
    hf = tiny_checkpoint(tmp_path / "hf", "seed_oss")
    with pytest.raises(UnsupportedError, match="SeedOssForCausalLM"):
        export_base(hf, tmp_path / "base.gguf", TYPES["f32"])


def test_one_row_is_enough(tmp_path, row):
    hf, base, lora = tiny_checkpoint(tmp_path / "hf", "seed_oss"), tmp_path / "base.gguf", tmp_path / "a.gguf"
    export_base(hf, base, TYPES["f32"])
    assert BaseInfo.open(base).family is row
    assert largest_difference(hf, base, 384) <= BOUND

    peft = real_adapter(tmp_path / "peft", hf, r=4, lora_alpha=12)
    assert export_lora(peft, base, lora, kind="f32").info.n_pairs == 14
    report = verify(peft, base=base, lora=lora, prompts=BUILT_IN[:3], hf=hf, max_tokens=6, threads=1)
    assert report.passed
    assert report.effect > 1
    assert report.max_logit_error <= BOUND

    ids = random_ids(384)
    with torch.no_grad():
        trained = load_gguf_model(base)(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert float(np.abs(trained - hf_logits(hf, ids)).max()) <= BOUND

    slm_edge("pack", "build", "-o", tmp_path / "pack", "--base", base, "--adapter", f"math={lora}")
    run = ("run", "--pack", tmp_path / "pack", "--max-tokens", "8", "--json", "A box has 12 eggs.")
    with_adapter = json.loads(slm_edge(*run, "--adapter", "math"))
    without = json.loads(slm_edge(*run, "--adapter", "none"))
    assert with_adapter["n_tokens"] > 0
    assert with_adapter["text"] != without["text"]


@pytest.mark.parametrize("use", ["base", "lora", "train", "onnx"])
def test_what_a_row_leaves_out_is_refused(tmp_path, row, monkeypatch, use):
    hf, base = tiny_checkpoint(tmp_path / "hf", "seed_oss"), tmp_path / "base.gguf"
    export_base(hf, base, TYPES["f32"])
    monkeypatch.setitem(families.FAMILIES, "seed_oss", dataclasses.replace(row, uses=row.uses - {use}))
    with pytest.raises(UnsupportedError, match=r"seed_oss|SeedOss"):
        if use == "base":
            export_base(hf, tmp_path / "again.gguf", TYPES["f32"])
        elif use == "lora":
            export_lora(real_adapter(tmp_path / "peft", hf, r=4), base, tmp_path / "a.gguf")
        elif use == "train":
            load_gguf_model(base)
        else:
            export_onnx(base, tmp_path / "onnx")
