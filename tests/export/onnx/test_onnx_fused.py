"""Phi-3 on onnxruntime: fused matrices, a part of each head turned, longrope up to its original context."""

from collections import Counter

import numpy as np
import onnx
import pytest
import transformers
from build_gguf import write_gguf
from build_onnx import onnx_logits, onnx_logits_in_pieces, padded_rows
from build_other import other_base
from build_peft import real_adapter
from compare_logits import gguf_logits, hf_logits, random_ids
from gguf import GGUFReader, GGUFValueType
from slm_edge.edge.errors import DoesNotFitError, InputError, UnsupportedError
from slm_edge.edge.onnx.engine import OnnxEngine
from slm_edge.edge.onnx.folder import OnnxBase
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.edge.session.session import Session
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx
from slm_edge.export.proof.prompts import BUILT_IN
from slm_edge.export.proof.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")
ORIGINAL_TOKENS = 512
FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
# Heads of 32 numbers
WIDE = {"hidden_size": 128}
MODULES = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SCALINGS = {
    "alpha / r": {"r": 8, "lora_alpha": 24},
    "rsLoRA": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "patterns": {"r": 8, "lora_alpha": 16, "rank_pattern": {"qkv_proj": 4}, "alpha_pattern": {"gate_up_proj": 40}},
}


def stretched(share=1.0):
    """Fields of longrope, as the installed transformers wants them."""
    more = {"original_max_position_embeddings": ORIGINAL_TOKENS}
    if transformers.__version__ < "5":
        return {"rope_scaling": {"type": "longrope", **FACTORS}, "partial_rotary_factor": share} | more
    rope = {"rope_type": "longrope", "type": "longrope", **FACTORS, "rope_theta": 10000.0}
    return {"rope_parameters": rope | more | {"partial_rotary_factor": share}, "partial_rotary_factor": share} | more


HALF = {"phi3.rope.dimension_count": (16, GGUFValueType.UINT32)}
ODD = {"phi3.rope.dimension_count": (12, GGUFValueType.UINT32)}
# Key, value (None: it is left out), part of the reason
CHANGES = [
    ("phi3.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon is missing"),
    (
        "phi3.attention.head_count_kv",
        (1, GGUFValueType.UINT32),
        "attn_qkv.weight has the shape (64, 128)",
    ),
    ("phi3.feed_forward_length", (64, GGUFValueType.UINT32), "ffn_up.weight has the shape (64, 256), not (64, 128)"),
    ("phi3.rope.dimension_count", (0, GGUFValueType.UINT32), "0 of the 16 numbers"),
    ("phi3.rope.freq_base", ("x", GGUFValueType.STRING), "rope.freq_base is STRING"),
]
CASES = {
    "plain": ({}, {}),
    "own head": ({"tie_word_embeddings": False, "num_key_value_heads": 4}, {}),
    "a part of each head": (WIDE | {"partial_rotary_factor": 0.5}, HALF),
    "longrope": (stretched(), {}),
    # as Phi-4-mini
    "a part of each head, longrope": (WIDE | stretched(0.5), HALF),
}


def made(folder, case):
    fields, keys = CASES[case]
    return other_base(folder, "phi3", keys=keys, **fields)


def changed(base, place, keys, cut=None):
    """A copy of a GGUF with other keys, and of one tensor the last rows cut off."""
    reader = GGUFReader(base)
    own = {
        name: (field.contents(), *field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    tensors = [(tensor.name, np.array(tensor.data)) for tensor in reader.tensors]
    if cut is not None:
        tensors = [(name, values[: -cut[1]] if name == cut[0] else values) for name, values in tensors]
    write_gguf(place, "phi3", {key: value for key, value in (own | keys).items() if value is not None}, tensors)
    return place


@pytest.mark.parametrize("packed", [False, True], ids=["pairs", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_a_base_is_torch_and_llama_cpp(tmp_path, case, packed):
    hf, base = made(tmp_path, case)
    # Nearly up to longrope's original context
    ids = random_ids(384, 500)
    theirs = hf_logits(hf, ids)
    assert np.abs(theirs).max() > 1
    for source in (hf, base):
        folder = tmp_path / f"onnx-{source.stem}"
        export_onnx(source, folder, kind="f32", packed=packed)
        for graph in ("model.onnx", "base.onnx"):
            ours = onnx_logits(folder / graph, ids)
            assert np.abs(ours - theirs).max() < 1e-3
            assert np.abs(ours - gguf_logits(base, ids)).max() < 2e-3


def test_each_fused_matrix_is_one(tmp_path):
    """One matrix and one LoRA pair for each, and the queries, keys and values are taken from it by attention itself."""
    export_onnx(made(tmp_path, "plain")[1], tmp_path / "onnx", kind="f32")
    graph = onnx.load(tmp_path / "onnx" / "base.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["MatMul"], kinds["Split"], kinds["GroupQueryAttention"]) == (2 * 4, 2, 2)
    pairs = OnnxBase.open(tmp_path / "onnx").lora[:4]
    assert [pair.targets for pair in pairs] == [
        (f"blk.0.{name}.weight",) for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    ]
    assert [(pair.n_in, pair.n_out) for pair in pairs] == [(64, 128), (64, 64), (64, 256), (128, 64)]


def test_decoding_in_pieces(tmp_path):
    """A prompt in two pieces, then token by token, gives what one pass gives."""
    hf, base = made(tmp_path, "a part of each head, longrope")
    export_onnx(base, tmp_path / "onnx", kind="f32")
    ids = random_ids(384, 40)
    whole = hf_logits(hf, ids)
    found = onnx_logits_in_pieces(tmp_path / "onnx" / "model.onnx", ids, (17, 13, 1, 1, 8))
    assert np.abs(found - whole).max() < 1e-3


def test_rows_padded_on_the_right_are_as_alone(tmp_path):
    base = made(tmp_path, "a part of each head, longrope")[1]
    export_onnx(base, tmp_path / "onnx", kind="f32")
    path, ids = tmp_path / "onnx" / "model.onnx", random_ids(384, 31)
    rows = [ids[:20], ids[20:]]
    alone = [onnx_logits(path, [*row, 7]) for row in rows]
    for first, last, whole, row in zip(*padded_rows(path, rows), alone, rows, strict=True):
        np.testing.assert_allclose(first[: len(row)], whole[: len(row)], atol=1e-4)
        np.testing.assert_allclose(last[0], whole[-1], atol=1e-4)


@pytest.mark.parametrize(("kind", "bound"), [("f16", 0.1), ("int8", 0.8)])
def test_narrow_types(tmp_path, kind, bound):
    hf, base = made(tmp_path, "a part of each head, longrope")
    export_onnx(base, tmp_path / "onnx", kind=kind)
    ids = random_ids(384, 40)
    assert 0 < np.abs(onnx_logits(tmp_path / "onnx" / "model.onnx", ids) - hf_logits(hf, ids)).max() < bound
    config = transformers.AutoConfig.from_pretrained(tmp_path / "onnx")
    assert (type(config).__name__, config.num_key_value_heads) == ("Phi3Config", 2)


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_quantised_gguf_keeps_its_numbers(tmp_path, kind):
    wide = {"hidden_size": 256, "intermediate_size": 256}
    base = other_base(tmp_path, "phi3", **wide)[1]
    export_base(base, tmp_path / "small.gguf", TYPES[kind])
    export_base(tmp_path / "small.gguf", tmp_path / "floats.gguf", TYPES["f32"])
    done = export_onnx(tmp_path / "small.gguf", tmp_path / "onnx", activations="f32")
    assert not done.losses
    ids = random_ids(384, 40)
    ours = onnx_logits(tmp_path / "onnx" / "model.onnx", ids)
    assert np.abs(ours - gguf_logits(tmp_path / "floats.gguf", ids)).max() < 2e-3


def test_a_session_answers_as_llama_cpps(tmp_path):
    hf, base = made(tmp_path, "a part of each head, longrope")
    export_onnx(base, tmp_path / "onnx", kind="f32")
    peft = real_adapter(tmp_path / "peft", hf, target_modules=MODULES, r=8, lora_alpha=24)
    export_lora(peft, base, tmp_path / "a.gguf", kind="f32")
    export_onnx_adapter(tmp_path / "a.gguf", tmp_path / "onnx", tmp_path / "a.onnx_adapter")
    with (
        Session.of_files(base, {"a": (tmp_path / "a.gguf", None)}, threads=1, n_ctx_tokens=256) as theirs,
        OnnxSession.of_files(
            tmp_path / "onnx", {"a": (tmp_path / "a.onnx_adapter", None)}, threads=1, n_ctx_tokens=256
        ) as ours,
    ):
        answers = []
        for name in (None, "a", None):
            told = [session.use(name).ask("one, two", max_tokens=12).token_ids for session in (ours, theirs)]
            assert told[0] == told[1]
            answers.append(told[0])
    assert answers[0] == answers[2] != answers[1]


def test_beyond_the_original_context_is_refused(tmp_path):
    base = made(tmp_path, "longrope")[1]
    with pytest.raises(InputError, match="turns positions at other speeds beyond 512"):
        export_onnx(base, tmp_path / "onnx", kind="f32", max_length_tokens=513)
    assert not (tmp_path / "onnx").exists()
    folder = export_onnx(base, tmp_path / "onnx", kind="f32").base
    assert folder.max_length_tokens == ORIGINAL_TOKENS
    with pytest.raises(DoesNotFitError, match="the graph has 512 positions"):
        OnnxEngine(folder, n_ctx_tokens=513)
    # A window, which llama.cpp ignores, ends the context too.
    base = other_base(tmp_path / "windowed", "phi3", sliding_window=128)[1]
    assert export_onnx(base, tmp_path / "short", kind="f32").base.max_length_tokens == 128


def test_what_the_graph_would_compute_otherwise_is_refused(tmp_path):
    base = other_base(tmp_path, "phi3", keys=ODD, partial_rotary_factor=0.75)[1]
    with pytest.raises(UnsupportedError, match="12 of the 16 numbers of each head are rotated"):
        export_onnx(base, tmp_path / "onnx")
    for number, (key, value, expected) in enumerate(CHANGES):
        with pytest.raises(UnsupportedError) as refused:
            export_onnx(changed(base, tmp_path / f"{number}.gguf", {key: value}), tmp_path / "onnx")
        assert expected in str(refused.value.problems)
    short = changed(base, tmp_path / "short.gguf", {}, ("blk.1.ffn_up.weight", 1))
    with pytest.raises(UnsupportedError) as refused:
        export_onnx(short, tmp_path / "onnx")
    assert "blk.1.ffn_up.weight has the shape (64, 255), not (64, 256)" in str(refused.value.problems)
    assert not (tmp_path / "onnx").exists()


def prove(folder, case, **config):
    hf, base = made(folder, case)
    export_onnx(hf, folder / "onnx", kind="f32")
    peft = real_adapter(folder / "peft", hf, **config)
    export_lora(peft, base, folder / "a.gguf", kind="f32")
    export_onnx_adapter(peft, folder / "onnx", folder / "a.onnx_adapter")
    sides = {"base": base, "lora": folder / "a.gguf", "onnx": (folder / "onnx", folder / "a.onnx_adapter"), "hf": hf}
    report = verify(peft, **sides, prompts=BUILT_IN[:2], max_tokens=4, threads=1)
    assert report.passed, report.failures
    assert report.effect > 0.5
    for result in report.results:
        assert result.onnx.greedy_equal
        assert result.onnx.adapted.max_logit_error < 1e-3
        assert result.onnx.base.max_logit_error < 1e-3


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("case", CASES)
def test_peft_gguf_and_onnx_agree(tmp_path, case, scaling):
    prove(tmp_path, case, target_modules=MODULES, **SCALINGS[scaling])


@pytest.mark.parametrize("module", MODULES)
def test_each_linear_layer(tmp_path, module):
    prove(tmp_path, "a part of each head, longrope", target_modules=[module], r=4, lora_alpha=16, size=1.0)
