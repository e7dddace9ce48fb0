"""Checkpoints of models without a proved row as GGUF: Phi-3, as an independent converter writes it."""

import numpy as np
import pytest
import transformers
from build_hf import edit_config
from build_other import other_base
from compare_logits import gguf_logits, hf_logits, random_ids
from gguf import GGUFValueType
from slm_edge.edge.errors import UnsupportedError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES

pytestmark = pytest.mark.usefixtures("one_thread")
ORIGINAL_TOKENS = 512
FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
MORE = {"original_max_position_embeddings": ORIGINAL_TOKENS, "partial_rotary_factor": 1.0, "rope_theta": 10000.0}
OLD = {"rope_scaling": {"type": "longrope", **FACTORS}}
NEW = {"rope_parameters": {"rope_type": "longrope", "type": "longrope", **FACTORS, **MORE}}
LONGROPE = (OLD if transformers.__version__ < "5" else NEW) | {"original_max_position_embeddings": ORIGINAL_TOKENS}
PART = {"phi3.rope.dimension_count": (12, GGUFValueType.UINT32)}
CASES = {
    "plain": ({}, {}),
    "own head": ({"tie_word_embeddings": False}, {}),
    "a part of each head": ({"partial_rotary_factor": 0.75}, PART),
    "longrope": (LONGROPE, {}),
    "a window": ({"sliding_window": 128}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_phi3_is_written_as_llama_cpp_wants_it(tmp_path, case):
    fields, keys = CASES[case]
    hf, theirs = other_base(tmp_path, "phi3", keys=keys, **fields)
    export_base(hf, tmp_path / "ours.gguf", TYPES["f32"], Options(name="tiny fused"))
    ours, theirs = GgufFile.open(tmp_path / "ours.gguf"), GgufFile.open(theirs)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in theirs.tensors:
        assert np.array_equal(ours.array(name), theirs.array(name)), name
    for key, entry in theirs.metadata.items():
        if key.startswith("phi3."):
            assert ours.get(key) == pytest.approx(entry.value, rel=1e-6), key
    ids = random_ids(384, 100)
    assert np.abs(hf_logits(hf, ids) - gguf_logits(tmp_path / "ours.gguf", ids)).max() <= 2e-3
    assert BaseInfo.of(ours).n_ctx_train_tokens == (128 if case == "a window" else 2048)


def test_what_phi3_cannot_be_is_refused(tmp_path):
    hf = other_base(tmp_path, "phi3", **LONGROPE)[0]
    name = "rope_scaling" if transformers.__version__ < "5" else "rope_parameters"
    edit_config(hf, **{name: LONGROPE[name] | {"long_factor": [1.0] * 7}})
    with pytest.raises(UnsupportedError) as refused:
        export_base(hf, tmp_path / "ours.gguf", TYPES["f32"])
    assert "longrope needs 8 short and as many long factors" in str(refused.value.problems)
    edit_config(hf, architectures=["Ministral3ForCausalLM"])
    with pytest.raises(UnsupportedError, match="Ministral3ForCausalLM is not supported") as refused:
        export_base(hf, tmp_path / "ours.gguf", TYPES["f32"])
    assert "Phi3ForCausalLM" in refused.value.hint
