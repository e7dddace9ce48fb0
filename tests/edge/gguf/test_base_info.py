"""Bases: the check before load, and a fingerprint that survives llama.cpp's own quantiser."""

import gguf
import numpy as np
import pytest
from build_child import load_in_child
from build_gguf import adapter_parts, tiny_adapter, tiny_base, vocabulary, write_gguf
from gguf import GGMLQuantizationType as Ggml
from gguf import GGUFValueType as Kind
from slm_edge.edge.errors import DamagedError, InputError, UnsupportedError
from slm_edge.edge.gguf.base import BaseInfo, check_base
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.binding import lib, quiet_logs

# enum llama_ftype of llama.h
F16, Q4_0, Q8_0, Q4_K_M = 1, 2, 7, 15


def quantise(source, dest, ftype):
    llama = lib()
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, ftype
    with quiet_logs() as log:
        assert llama.llama_model_quantize(str(source).encode(), str(dest).encode(), params) == 0, log.text()
    return dest


def copied(source, dest, change):
    """A base rewritten with changed keys and tensors: `change(keys, tensors)` alters the two in place."""
    reader = gguf.GGUFReader(source)
    keys = {}
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            keys[name] = (field.contents(), *(field.types if len(field.types) == 1 else (Kind.ARRAY, field.types[-1])))
    tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    change(keys, tensors)
    rows = [(name, *value) for name, value in tensors.items()]
    return write_gguf(dest, reader.fields["general.architecture"].contents(), keys, rows)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_read(tmp_path, architecture, tied):
    info = BaseInfo.open(tiny_base(tmp_path / "base.gguf", architecture=architecture, tied=tied))
    n_layers = max(2, FAMILIES[architecture].window_every)
    assert (info.architecture, info.n_layers, info.n_embd, info.n_ff) == (architecture, n_layers, 64, 128)
    assert (info.n_heads, info.n_kv_heads, info.n_ctx_train_tokens) == (4, 2, 2048)
    assert info.n_vocab == len(vocabulary()[0])
    assert info.has_output is (not tied or info.family.needs_output)
    assert info.tensor_shapes["blk.1.attn_k.weight"] == (64, 32)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_fingerprint_survives_quantising(tmp_path, architecture):
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture, n_embd=256, n_ff=256)
    mark = BaseInfo.open(base).fingerprint
    adapter = tiny_adapter(tmp_path / "adapter.gguf", base)
    for ftype in (F16, Q8_0, Q4_0, Q4_K_M):
        quantised = quantise(base, tmp_path / f"{ftype}.gguf", ftype)
        assert GgufFile.open(quantised).tensors["blk.0.attn_q.weight"].type.name != "F32"
        assert BaseInfo.open(quantised).fingerprint == mark
    assert float(load_in_child(quantised, [adapter])[adapter]) > 0.01


def test_the_fingerprint_survives_an_output_copy_and_spelt_out_defaults(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")

    def untie(keys, tensors):
        tensors["output.weight"] = tensors["token_embd.weight"]
        keys["llama.attention.key_length"] = (16, Kind.UINT32)
        keys["llama.attention.value_length"] = (16, Kind.UINT32)
        keys["general.name"] = ("another name", Kind.STRING)
        keys["tokenizer.chat_template"] = ("{{ messages }}", Kind.STRING)
        del keys["llama.vocab_size"]

    other = copied(base, tmp_path / "other.gguf", untie)
    assert BaseInfo.open(other).has_output
    assert BaseInfo.open(other).fingerprint == BaseInfo.open(base).fingerprint
    quantised = quantise(other, tmp_path / "quantised.gguf", Q8_0)
    assert BaseInfo.open(quantised).fingerprint == BaseInfo.open(base).fingerprint


def _norm(keys, tensors):
    values, kind = tensors["blk.1.ffn_norm.weight"]
    values = values.copy()
    values[5] = np.nextafter(values[5], np.float32(9))
    tensors["blk.1.ffn_norm.weight"] = (values, kind)


def _token(keys, tensors):
    tokens, *kinds = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = ([*tokens[:-2], tokens[-1], tokens[-2]], *kinds)


def _merge(keys, tensors):
    merges, *kinds = keys["tokenizer.ggml.merges"]
    keys["tokenizer.ggml.merges"] = (merges[::-1], *kinds)


def _pre(keys, tensors):
    keys["tokenizer.ggml.pre"] = ("llama-bpe", Kind.STRING)


def _heads(keys, tensors):
    keys["llama.attention.head_count"] = (8, Kind.UINT32)
    keys["llama.attention.head_count_kv"] = (4, Kind.UINT32)
    keys["llama.rope.dimension_count"] = (8, Kind.UINT32)


def _rope(keys, tensors):
    keys["llama.rope.freq_base"] = (500000.0, Kind.FLOAT32)


@pytest.mark.parametrize("change", [_norm, _token, _merge, _pre, _heads, _rope])
def test_the_fingerprint_tells_models_apart(tmp_path, change):
    base = tiny_base(tmp_path / "base.gguf")
    other = copied(base, tmp_path / "other.gguf", change)
    assert BaseInfo.open(other).fingerprint != BaseInfo.open(base).fingerprint


def keys(**changed):
    def change(keys, tensors):
        for name, value in changed.items():
            key = name.replace("__", ".")
            keys.pop(key, None)
            if value is not None:
                keys[key] = value

    return change


def tensors(name, value):
    def change(keys, tensors):
        tensors.pop(name)
        if value is not None:
            tensors[name] = value

    return change


def twin_token(keys, tensors):
    tokens, *kinds = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = ([*tokens[:-1], "a"], *kinds)


FAULTS = {
    "an adapter": (keys(general__type=("adapter", Kind.STRING)), InputError, "of the kind 'adapter'"),
    "no layers": (keys(llama__block_count=None), InputError, "llama.block_count is missing"),
    "layers as text": (keys(llama__block_count=("2", Kind.STRING)), InputError, "block_count is STRING, not UINT32"),
    "zero heads": (keys(llama__attention__head_count=(0, Kind.UINT32)), InputError, "head_count is 0"),
    "uneven heads": (keys(llama__attention__head_count_kv=(3, Kind.UINT32)), InputError, "cannot share 3"),
    "eps as FLOAT64": (
        keys(llama__attention__layer_norm_rms_epsilon=(1e-5, Kind.FLOAT64)),
        InputError,
        "epsilon is FLOAT64, not FLOAT32",
    ),
    "rope base is NaN": (keys(llama__rope__freq_base=(float("nan"), Kind.FLOAT32)), InputError, "freq_base is nan"),
    "no context": (keys(llama__context_length=None), InputError, "context_length is missing"),
    "no tokenizer": (keys(tokenizer__ggml__model=None, tokenizer__ggml__tokens=None), InputError, "tokens is missing"),
    "tokens as numbers": (
        keys(tokenizer__ggml__tokens=([1, 2], Kind.ARRAY, Kind.INT32)),
        InputError,
        "not an array of STR",
    ),
    "no merges": (keys(tokenizer__ggml__merges=None), InputError, "merges is missing"),
    "a token twice": (twin_token, InputError, "holds 'a' more than once"),
    "SPM without bytes": (
        keys(
            tokenizer__ggml__model=("llama", Kind.STRING),
            tokenizer__ggml__scores=([0.0] * 286, Kind.ARRAY, Kind.FLOAT32),
        ),
        InputError,
        "no token for",
    ),
    "another tokenizer": (keys(tokenizer__ggml__model=("bert", Kind.STRING)), InputError, "'gpt2' (BPE) and 'llama'"),
    "token types too few": (
        keys(tokenizer__ggml__token_type=([1, 1], Kind.ARRAY, Kind.INT32)),
        InputError,
        "has 2 values for 286 tokens",
    ),
    "eos out of range": (keys(tokenizer__ggml__eos_token_id=(286, Kind.UINT32)), InputError, "has 286 tokens"),
    "template as number": (keys(tokenizer__chat_template=(1, Kind.UINT32)), InputError, "template is UINT32"),
    "a part of a split": (keys(split__count=(3, Kind.UINT16)), UnsupportedError, "part of a split"),
    "experts used and none there": (
        keys(llama__expert_used_count=(2, Kind.UINT32)),
        InputError,
        "expert_used_count is more than its expert_count, 0",
    ),
    "no embedding": (tensors("token_embd.weight", None), InputError, "token_embd.weight is missing"),
    "no norm": (tensors("blk.1.ffn_norm.weight", None), InputError, "blk.1.ffn_norm.weight is missing"),
    "a matrix too small": (
        tensors("blk.0.attn_k.weight", (np.zeros((16, 64), np.float32), Ggml.F32)),
        InputError,
        "shape (64, 16), not (64, 32)",
    ),
    "a matrix of integers": (
        tensors("blk.0.attn_k.weight", (np.zeros((32, 64), np.int32), Ggml.I32)),
        InputError,
        "is I32, which is not a type of weights",
    ),
    "a norm in F16": (
        tensors("output_norm.weight", (np.ones(64, np.float16), Ggml.F16)),
        InputError,
        "a vector of F16",
    ),
    "a norm with NaN": (
        tensors("output_norm.weight", (np.full(64, np.nan, np.float32), Ggml.F32)),
        InputError,
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_bases_are_refused(tmp_path, name):
    change, error, reason = FAULTS[name]
    path = copied(tiny_base(tmp_path / "base.gguf"), tmp_path / "bad.gguf", change)
    with pytest.raises(error) as caught:
        check_base(GgufFile.open(path))
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_faults_of_a_base_are_named_at_once(tmp_path):
    change = keys(llama__block_count=None, tokenizer__ggml__merges=None, llama__context_length=(0, Kind.UINT32))
    path = copied(tiny_base(tmp_path / "base.gguf"), tmp_path / "bad.gguf", change)
    with pytest.raises(InputError) as caught:
        BaseInfo.open(path)
    assert len(caught.value.problems) == 3


def test_other_architectures_and_files_are_refused(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    arch, parts, rows = adapter_parts(base)
    other = BaseInfo.open(tiny_base(tmp_path / "mamba.gguf", architecture="mamba"))
    assert other.unproved[0] == "the architecture mamba" and not other.family.uses
    with pytest.raises(InputError, match="of the kind 'adapter'"):
        BaseInfo.open(write_gguf(tmp_path / "adapter.gguf", arch, parts, rows))
    with pytest.raises(InputError, match="no such file"):
        BaseInfo.open(tmp_path / "none.gguf")
    narrow = copied(base, tmp_path / "narrow.gguf", keys(general__alignment=(8, Kind.UINT32)))
    with pytest.raises(InputError, match="aligned to 8 bytes"):
        BaseInfo.open(narrow)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(base.read_bytes()[:-100])
    with pytest.raises(DamagedError, match="cut short"):
        BaseInfo.open(cut)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("attention.shared_kv_layers", ("x", Kind.STRING)),
        ("attention.sliding_window", ([1, 2], Kind.ARRAY)),
        ("attention.head_count", (["a"], Kind.ARRAY)),
        ("attention.head_count", ([1.5, 2.5], Kind.ARRAY)),
        ("embedding_length", ([64, 64], Kind.ARRAY)),
        ("shortconv.l_cache", ("x", Kind.STRING)),
        ("activation_sparsity_scale", (1.5, Kind.FLOAT32)),
    ],
)
def test_keys_of_other_families_have_the_types_that_are_read(tmp_path, name, wrong):
    file = GgufFile.open(tiny_base(tmp_path / "like.gguf"))
    mine = f"{file.get('general.architecture')}."
    keys = {
        key.replace(mine, "mistral3.", 1): (entry.value, Kind(int(entry.type)))
        for key, entry in file.metadata.items()
        if key != "general.architecture" and not key.startswith("GGUF.")
    }
    tensors = [(one, file.array(one)) for one in file.tensors]
    assert BaseInfo.open(write_gguf(tmp_path / "right.gguf", "mistral3", keys, tensors)).architecture == "mistral3"
    path = write_gguf(tmp_path / "wrong.gguf", "mistral3", {**keys, f"mistral3.{name}": wrong}, tensors)
    with pytest.raises(InputError) as refused:
        BaseInfo.open(path)
    assert any(f"mistral3.{name} is " in problem for problem in refused.value.problems)


@pytest.mark.reference
def test_the_starter_base(starter_base):
    info = BaseInfo.open(starter_base)
    assert (info.architecture, info.n_layers, info.n_embd, info.n_vocab) == ("llama", 30, 576, 49152)
    assert not info.has_output
    # Adapters in the world carry it: a change of how it is computed makes them all strangers.
    assert info.fingerprint == "558723aed69acea07c187fcc28263a160f3bbd398ee86c37a9bccec9f5edae48"
