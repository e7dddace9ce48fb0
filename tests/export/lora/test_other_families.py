"""Adapters of families that have no row of their own: short convolutions, linear attention, fused matrices."""

import functools

import numpy as np
import pytest
from build_gguf import tiny_base
from build_other import OTHERS, other_base
from build_peft import real_adapter, written_adapter
from compare_logits import gguf_logits, hf_logits, random_ids
from safetensors.torch import load_file
from slm_edge.edge.errors import UnsupportedError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.gguf.other_bases import OTHER_CLASSES, OTHER_FAMILIES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify

BOUND = 2e-3
ROWS = OTHER_FAMILIES | OTHER_CLASSES
MODULES = {name: sorted({part.module.split(".")[-1] for part in ROWS[name].block if part.is_matrix}) for name in OTHERS}
# Of 4 x 4 values in Gemma 3n: the ranks here are larger.
TOGETHER = {name: [module for module in MODULES[name] if module != "correction_coefs"] for name in OTHERS}
SCALINGS = {
    "alpha / r": {"r": 8, "lora_alpha": 24},
    "rank 1": {"r": 1, "lora_alpha": 2},
    "rsLoRA": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "alpha_pattern": {"r": 8, "lora_alpha": 16, "alpha_pattern": {r"layers\.0\..*": 4, "layers.1": 40}},
    "rank_pattern": {"r": 8, "lora_alpha": 16, "rank_pattern": {r"layers\.0\..*": 4}},
    "negative alpha": {"r": 8, "lora_alpha": -16},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Architecture -> checkpoint and GGUF, made once; the GGUF computes what torch does."""

    def make(architecture):
        hf, base = other_base(tmp_path_factory.mktemp(architecture), architecture)
        ids = random_ids(384, 100)
        theirs = hf_logits(hf, ids, gelu_table=architecture.startswith("gemma"))
        assert np.abs(theirs - gguf_logits(base, ids)).max() <= BOUND
        return hf, base

    return functools.cache(make)


def prove(folder, bases, **config):
    hf, base = bases
    peft = real_adapter(folder / "peft", hf, **config)
    done = export_lora(peft, base, folder / "a.gguf", kind="f32")
    report = verify(peft, base=base, lora=folder / "a.gguf", prompts=BUILT_IN[:2], hf=hf, max_tokens=4, threads=1)
    assert report.exact
    # Of a layer's own input alone Gemma 3n's logits move less.
    assert report.effect > (0.5 if config["target_modules"][0].startswith("per_layer") else 1)
    assert report.max_logit_error <= BOUND, report.max_logit_error
    assert report.passed
    return done


# Gemma 3n has 22 layers here, and takes as long as four others.
@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [(name, kind) for name in OTHERS for kind in SCALINGS if name != "gemma3n" or kind in ("alpha / r", "rsLoRA")],
)
def test_scaling_is_pefts(tmp_path, bases, architecture, scaling):
    prove(tmp_path, bases(architecture), target_modules=TOGETHER[architecture], **SCALINGS[scaling])


@pytest.mark.parametrize(("architecture", "module"), [(name, module) for name in OTHERS for module in MODULES[name]])
def test_each_linear_layer(tmp_path, bases, architecture, module):
    done = prove(tmp_path, bases(architecture), target_modules=[module], r=4, lora_alpha=16, size=1.0)
    assert len(done.info.targets) == done.info.n_pairs > 0


def test_ministral_is_right_beyond_its_original_context(bases):
    """Its queries grow with their position there, and yarn stretches the positions."""
    hf, base = bases("mistral3")
    ids = random_ids(384, 600)
    assert GgufFile.open(base).get("mistral3.rope.scaling.original_context_length") == 256
    assert np.abs(hf_logits(hf, ids) - gguf_logits(base, ids)).max() <= BOUND


def test_heads_of_values_are_reordered(tmp_path, bases):
    """B of in_proj_z: two key heads have two heads of 16 values each; llama.cpp takes the first of both, then more."""
    hf, base = bases("qwen35")
    peft = real_adapter(tmp_path / "peft", hf, r=4, lora_alpha=4, target_modules=["in_proj_z"])
    export_lora(peft, base, tmp_path / "a.gguf", kind="f32")
    name = "base_model.model.model.layers.0.linear_attn.in_proj_z.lora_B.weight"
    theirs = load_file(peft / "adapter_model.safetensors")[name].numpy().reshape(4, 16, 4)
    ours = GgufFile.open(tmp_path / "a.gguf").array("blk.0.attn_gate.weight.lora_b")
    assert np.array_equal(ours.reshape(4, 16, 4), theirs[[0, 2, 1, 3]])


@pytest.mark.parametrize("module", ["per_layer_model_projection", "layers.0.altup.modality_router"])
def test_what_llama_cpp_multiplies_past_the_adapter_is_refused(tmp_path, bases, module):
    hf, base = bases("gemma3n")
    peft = real_adapter(tmp_path / "peft", hf, target_modules=[module], r=4)
    with pytest.raises(UnsupportedError) as caught:
        export_lora(peft, base, tmp_path / "a.gguf")
    assert "past the adapter" in str(caught.value)


def test_without_a_row_it_is_said_what_one_would_need(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", architecture="internlm2", tied=False)
    hf = written_adapter(tmp_path / "peft", {}, target_modules=["q_proj"])
    with pytest.raises(UnsupportedError, match=r"a row would say which matrix is which") as caught:
        export_lora(hf, base, tmp_path / "a.gguf")
    assert "convert_lora_to_gguf.py" in caught.value.hint
