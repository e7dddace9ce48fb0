"""onnxruntime-genai runs the exported folder as it is, with the same adapter files: same tokens as our session."""

import numpy as np
import onnxruntime_genai as genai
import pytest
from build_hf import tiny_checkpoint
from build_other import OTHERS, other_base
from build_peft import real_adapter
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx


def genai_answer(model, ids, n_tokens, adapters=None, name=None):
    """Greedy tokens after `ids`, and the logits that chose the first."""
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + n_tokens, do_sample=False)
    generator = genai.Generator(model, params)
    if name is not None:
        generator.set_active_adapter(adapters, name)
    generator.append_tokens(np.array(ids, np.int32))
    first = np.array(generator.get_output("logits")).reshape(-1)[-model_vocab(generator) :].copy()
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(ids) :], first


def model_vocab(generator):
    return np.array(generator.get_output("logits")).shape[-1]


@pytest.mark.parametrize(
    ("family", "packed"), [("llama", False), ("llama", True), ("qwen2", False), ("qwen3", False), ("phi3", False)]
)
def test_genai_gives_our_tokens(tmp_path, family, packed):
    hf = other_base(tmp_path, family)[0] if family in OTHERS else tiny_checkpoint(tmp_path / "hf", family)
    base = export_onnx(hf, tmp_path / "onnx", kind="f32", packed=packed).base
    files = {}
    for name, seed in (("one", 1), ("two", 2)):
        peft = real_adapter(tmp_path / name, hf, seed=seed, r=4 * seed, lora_alpha=16, target_modules="all-linear")
        files[name] = (tmp_path / f"{name}.onnx_adapter", None)
        export_onnx_adapter(peft, base, files[name][0])
    model = genai.Model(str(tmp_path / "onnx"))
    adapters = genai.Adapters(model)
    for name, (path, _) in files.items():
        adapters.load(str(path), name)
    with OnnxSession.of_files(base.folder, files, threads=1) as session:
        for name in ("one", None, "two", "one"):
            answer = session.use(name).ask("How many cats?", max_tokens=8)
            ids = session.prompt_tokens("How many cats?")
            theirs, logits = genai_answer(model, ids, 8, adapters, name)
            pairs = None if name is None else session._loaded[name].arrays
            np.testing.assert_allclose(logits, session.engine.probe(ids, pairs), atol=1e-3)
            assert tuple(theirs[: answer.n_tokens]) == answer.token_ids
    assert genai.Tokenizer(model).encode("How many cats?").tolist()
