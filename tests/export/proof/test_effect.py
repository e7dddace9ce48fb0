"""What a proof says of an adapter's effect: right ones pass on every base, wrong ones on none, each with its reason."""

import json
import re

import pytest
from build_hf import tiny_checkpoint
from build_peft import real_adapter
from safetensors.numpy import load_file, save_file
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify

# What does not bear on the effect is not judged here.
LOOSE = {"max_kl": 99.0}
# How much an adapter changes: much, and so little that rounding of 4 bits is a fifth to a third of it
SIZES = {"much": None, "little": 0.03}
WRONG = {
    "half of its scale": {"scale": 0.5},
    "a scale without the root of its rank (rsLoRA)": {"scale": 8**-0.5},
    "twice its scale": {"scale": 2.0},
    "its sign turned": {"scale": -1.0},
    "without attention": {"drop": "self_attn"},
    "without a layer": {"drop": "layers.0"},
    "layers in another order": {"turn": True},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["q8_0", "q4_k_m"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    hf = tiny_checkpoint(folder / "hf", "qwen2", n_embd=256, n_ff=256, n_layers=2)
    export_base(hf, folder / "base.gguf", TYPES[request.param])
    for name, size in SIZES.items():
        more = {} if size is None else {"size": size}
        real_adapter(folder / name, hf, r=8, lora_alpha=16, **more)
    return folder


def changed(peft, folder, scale=1.0, drop=None, turn=False):
    """An adapter that another hand wrote: its pairs scaled, left out, or of other layers."""
    folder.mkdir()
    pairs = load_file(peft / "adapter_model.safetensors")
    pairs = {key: value * scale if "lora_B" in key else value for key, value in pairs.items()}
    pairs = {key: value for key, value in pairs.items() if drop is None or not re.search(drop, key)}
    if turn:
        pairs = {re.sub(r"layers\.(\d)", lambda found: f"layers.{1 - int(found[1])}", k): v for k, v in pairs.items()}
    save_file(pairs, folder / "adapter_model.safetensors")
    config = json.loads((peft / "adapter_config.json").read_text())
    config["target_modules"] = [key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in pairs]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def proved(base, size, lora, **options):
    options = {"base_gguf": base / "base.gguf", "max_tokens": 6, "threads": 1, "prompts": BUILT_IN[:3]} | options
    return verify(base / size, base=base / "base.gguf", lora=lora, **LOOSE, **options)


@pytest.mark.parametrize("size", SIZES)
def test_right_ones_pass(base, size, tmp_path):
    export_lora(base / size, base / "base.gguf", tmp_path / "a.gguf")
    report = proved(base, size, tmp_path / "a.gguf")
    assert report.passed, report.failures
    assert report.change.error < 0.5


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("size", SIZES)
def test_wrong_ones_fail(base, size, how, tmp_path):
    export_lora(changed(base / size, tmp_path / "peft", **WRONG[how]), base / "base.gguf", tmp_path / "a.gguf")
    report = proved(base, size, tmp_path / "a.gguf")
    assert any("effect comes out otherwise" in failure or "strength" in failure for failure in report.failures)


def test_another_base_of_the_same_shapes_fails(base, tmp_path):
    """Its adapter was exported for it, so that only the logits tell."""
    other = tiny_checkpoint(tmp_path / "hf", "qwen2", n_embd=256, n_ff=256, n_layers=2, seed=7)
    theirs = real_adapter(tmp_path / "peft", other, r=8, lora_alpha=16, seed=5)
    export_lora(theirs, base / "base.gguf", tmp_path / "a.gguf")
    report = proved(base, "much", tmp_path / "a.gguf")
    assert "another adapter, or another base" in report.failures[-1]


def test_a_reference_that_is_not_quantised(base, tmp_path):
    """Against the checkpoint all that quantising changes is rounding: much of an effect is proved, little is not."""
    for size in SIZES:
        export_lora(base / size, base / "base.gguf", tmp_path / f"{size}.gguf")
    options = {"hf": base / "hf", "base_gguf": None}
    report = proved(base, "much", tmp_path / "much.gguf", **options)
    assert report.passed, report.failures
    little = proved(base, "little", tmp_path / "little.gguf", **options)
    assert little.passed == (little.change.error <= 0.8)
    assert little.passed or "prove it with --base-gguf" in little.failures[-1]
