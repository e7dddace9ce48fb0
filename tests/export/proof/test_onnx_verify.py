"""PEFT = GGUF = ONNX: the same prompts on all three, in every family and variant of scaling."""

import json

import pytest
from build_hf import LLAMA3_SCALING, tiny_checkpoint
from build_peft import real_adapter
from click.testing import CliRunner
from slm_edge.edge.cli.main import cli
from slm_edge.edge.errors import InputError
from slm_edge.edge.onnx.adapter import OnnxAdapter, read_adapter_file
from slm_edge.edge.onnx.folder import OnnxBase
from slm_edge.edge.onnx.in_pack import add_onnx_adapter, add_onnx_base
from slm_edge.edge.pack.pack import verify_folder
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")
SCALINGS = {
    "alpha / r": {"r": 8, "lora_alpha": 24},
    "rsLoRA": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"q_proj": 4, "layers.1.mlp.down_proj": 12},
        "alpha_pattern": {"k_proj": 3, "gate_proj": 40},
    },
    "a part of the targets": {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "up_proj"]},
}


def everything(folder, family="llama", *, packed=False, kind="f32", config=None, **fields):
    """Checkpoint, GGUF, ONNX and an adapter on all three sides, as arguments of `verify`."""
    folder.mkdir(exist_ok=True)
    hf = tiny_checkpoint(folder / "hf", family, **fields)
    export_base(hf, folder / "base.gguf", TYPES["f32"])
    export_onnx(hf, folder / "onnx", kind=kind, packed=packed)
    peft = real_adapter(folder / "peft", hf, **(config or SCALINGS["alpha / r"]))
    export_lora(peft, folder / "base.gguf", folder / "a.gguf", kind="f32")
    export_onnx_adapter(peft, folder / "onnx", folder / "a.onnx_adapter")
    onnx = (folder / "onnx", folder / "a.onnx_adapter")
    return {"hf": hf, "base": folder / "base.gguf", "peft_dir": peft, "lora": folder / "a.gguf", "onnx": onnx}


@pytest.mark.parametrize("packed", [False, True], ids=["pairs", "packed"])
@pytest.mark.parametrize(
    ("family", "fields", "scaling"),
    [
        *(("llama", {}, name) for name in SCALINGS),
        ("llama", {"tied": False, "rope_scaling": LLAMA3_SCALING, "n_ctx_tokens": 2048}, "patterns"),
        ("qwen2", {}, "rsLoRA"),
        ("qwen3", {"head_dim": 32}, "patterns"),
        ("smollm3", {"n_layers": 4}, "patterns"),
        ("granite", {}, "patterns"),
        ("olmo2", {"tied": False}, "patterns"),
        ("hunyuan", {}, "patterns"),
    ],
    ids=str,
)
def test_peft_gguf_and_onnx_agree(tmp_path, family, fields, scaling, packed):
    files = everything(tmp_path / "x", family, packed=packed, config=SCALINGS[scaling], **fields)
    report = verify(**files, prompts=BUILT_IN[:2], max_tokens=6, threads=1)
    assert report.passed, report.failures
    assert report.effect > 1
    for result in report.results:
        assert result.tokens_equal and result.greedy_equal and result.onnx.greedy_equal
        assert result.onnx.adapted.max_logit_error < 1e-3
        assert result.onnx.base.max_logit_error < 1e-3
        assert result.onnx.adapted.top1 == 1


def test_a_wrong_adapter_fails_the_onnx_column(tmp_path):
    files = everything(tmp_path / "x")
    other = real_adapter(tmp_path / "other", files["hf"], seed=9, r=8, lora_alpha=24)
    export_onnx_adapter(other, tmp_path / "x" / "onnx", tmp_path / "other.onnx_adapter")
    wrong = files | {"onnx": (tmp_path / "x" / "onnx", tmp_path / "other.onnx_adapter")}
    report = verify(**wrong, prompts=BUILT_IN[:1], max_tokens=4, threads=1)
    assert [failure.split(":")[0] for failure in report.failures] == ["ONNX", "ONNX"]
    assert "effect comes out otherwise on onnxruntime" in report.failures[1]


def test_the_proof_goes_into_the_pack(tmp_path):
    files = everything(tmp_path / "x")
    onnx, adapter = files["onnx"]
    pack = tmp_path / "pack"
    build_pack(pack, base=files["base"], adapters=[NewAdapter("a", files["lora"])])
    add_onnx_base(pack, onnx)
    add_onnx_adapter(pack, "a", adapter)
    (tmp_path / "prompts.txt").write_text("How many are left?\n")
    words = ["verify", str(files["peft_dir"]), "--hf", str(files["hf"]), "--gguf", str(files["base"])]
    words += ["--lora", str(files["lora"]), "--onnx", str(onnx), "--prompts", str(tmp_path / "prompts.txt")]
    words += ["--max-tokens", "3", "--threads", "1", "--pack", str(pack), "--name", "a", "--onnx-adapter"]
    result = CliRunner().invoke(cli, ["export", *words, str(adapter)])
    assert result.exit_code == 0, result.output
    assert "on onnxruntime" in result.output
    verify_folder(pack)
    kept = json.loads((pack / "parity" / "a.json").read_text())
    assert kept["passed"] and kept["prompts"][0]["onnx"]["greedy_equal"]
    assert kept["prompts"][0]["onnx"]["adapter"]["max_logit_error"] < 1e-3
    assert kept["sha256"]["onnx"] == OnnxAdapter.open(adapter, OnnxBase.open(onnx)).sha256
    export_onnx(files["base"], tmp_path / "int8", kind="int8")
    export_onnx_adapter(files["lora"], tmp_path / "int8", tmp_path / "b.onnx_adapter")
    result = CliRunner().invoke(
        cli,
        [
            "export",
            *words[: words.index("--onnx") + 1],
            str(tmp_path / "int8"),
            *words[words.index("--onnx") + 2 :],
            str(adapter),
        ],
    )
    assert isinstance(result.exception, InputError)
    assert "is not the pack's base and adapter 'a'" in str(result.exception)


def test_half_precision(tmp_path):
    files = everything(tmp_path / "x", kind="f16")
    report = verify(**files, prompts=BUILT_IN[:1], max_tokens=4, threads=1, max_kl=1e-3)
    assert report.passed, report.failures
    assert next(iter(read_adapter_file(files["onnx"][1]).parameters)).element_type == 10


def test_gguf_and_peft_sources_give_the_same_file(tmp_path):
    files = everything(tmp_path / "x")
    done = export_onnx_adapter(files["lora"], tmp_path / "x" / "onnx", tmp_path / "b.onnx_adapter")
    assert done.adapter.sha256 == OnnxAdapter.open(files["onnx"][1], OnnxBase.open(tmp_path / "x" / "onnx")).sha256
