"""What an ONNX form loses: nothing where it holds the same floats, something where it is narrower, told per chunk."""

import json

import pytest
from build_gguf import tiny_base
from click.testing import CliRunner
from slm_edge.benchmarks import onnx_perplexity
from slm_edge.export.onnx_base import export_onnx

pytestmark = pytest.mark.usefixtures("one_thread")


def test_perplexity_and_kl_against_llama_cpp(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", n_embd=256, n_ff=512)
    for kind in ("f32", "int8", "int4"):
        export_onnx(base, tmp_path / kind, kind=kind)
    (tmp_path / "text.txt").write_text("the world and the rest of it, again and again. " * 12)
    words = [str(tmp_path / "text.txt"), "--gguf", str(base), "--ctx", "32", "--limit", "3", "--json"]
    words += [word for kind in ("f32", "int8", "int4") for word in ("--onnx", str(tmp_path / kind))]
    result = CliRunner().invoke(onnx_perplexity.main, words)
    assert result.exit_code == 0, result.output
    llama, exact, int8, int4 = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in (llama, exact, int8, int4)] == ["llama.cpp", "f32", "int8", "int4"]
    assert llama["n_chunks"] == 3 and llama["n_tokens"] == 45
    # llama.cpp's KV cache is F16 there.
    assert exact["perplexity"]["value"] == pytest.approx(llama["perplexity"]["value"], rel=1e-2)
    assert llama["kl_nats"]["value"] == 0
    assert 0 < exact["kl_nats"]["value"] < int8["kl_nats"]["value"] < int4["kl_nats"]["value"]
    assert exact["same_top"]["value"] > 0.9
