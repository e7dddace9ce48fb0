"""Bases that end the process in llama.cpp, or that it computes as something else, are refused with the key's name."""

import os

import gguf
import numpy as np
import pytest
from build_gguf import spm_keys, tiny_base, vocabulary, write_gguf
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Kind
from slm_edge.edge.errors import DamagedError, InputError, SlmEdgeError
from slm_edge.edge.gguf import file as gguf_file
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile

TOKENS, TYPES, _ = vocabulary()
U32, F32, TEXT = Kind.UINT32, Kind.FLOAT32, Kind.STRING


def refused(path):
    with pytest.raises(SlmEdgeError) as caught:
        BaseInfo.open(path)
    return str(caught.value)


def with_tokens(*last):
    return {"tokenizer.ggml.tokens": ([*TOKENS[: -len(last)], *last], Kind.ARRAY, TEXT)}


def spm_with(bytes_as):
    """An SPM vocabulary in which `bytes_as` says the token of each byte."""
    keys = spm_keys()
    tokens, types = list(keys["tokenizer.ggml.tokens"][0]), list(keys["tokenizer.ggml.token_type"][0])
    first = tokens.index("<0x00>")
    for byte in range(256):
        token = bytes_as(byte)
        if token not in tokens:
            types[first + byte] = 1
            tokens[first + byte] = token
    return keys | {
        "tokenizer.ggml.tokens": (tokens, Kind.ARRAY, TEXT),
        "tokenizer.ggml.token_type": (types, Kind.ARRAY, Kind.INT32),
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_used_count", (2, U32)),
        ("expert_used_count", ([2, 2], Kind.ARRAY, U32)),
        ("expert_group_count", (2, U32)),
        ("nextn_predict_layers", (1, U32)),
        ("rope.dimension_count", (8, U32)),
        ("rope.dimension_count", (2**31, U32)),
        ("rope.scaling.type", ("nope", TEXT)),
        ("rope.scaling.type", (1, U32)),
        ("rope.scaling.factor", (float("nan"), F32)),
        ("rope.scaling.factor", (-2.0, F32)),
        ("rope.scaling.original_context_length", (0, U32)),
        ("rope.scaling.yarn_beta_fast", (float("inf"), F32)),
        ("attention.causal", (False, Kind.BOOL)),
        ("attention.value_length", (8, U32)),
        ("embedding_length_out", (8, U32)),
        ("pooling_type", (1, U32)),
        ("vocab_size", (2**64 - 1, Kind.UINT64)),
        ("rope.dimension_sections", ([1] * 2000, Kind.ARRAY, Kind.INT32)),
    ],
)
def test_keys_out_of_range_are_refused(architecture, key, value, tmp_path):
    path = tiny_base(tmp_path / "b.gguf", architecture=architecture, keys={f"{architecture}.{key}": value})
    assert key in refused(path)


def test_heads_of_an_odd_size_are_refused(tmp_path):
    path = tiny_base(tmp_path / "b.gguf", n_embd=60, keys={"llama.rope.dimension_count": (15, U32)})
    assert "head of 15" in refused(path)


@pytest.mark.parametrize(
    ("what", "keys", "said"),
    [
        ("[EMPTY_n] is the name of an empty token", with_tokens("", f"[EMPTY_{len(TOKENS) - 2}]"), "more than once"),
        ("texts end at a NUL", with_tokens("zq\0b", "zq"), "'zq' more than once"),
        ("a token is empty up to a NUL", with_tokens("\0b", f"[EMPTY_{len(TOKENS) - 2}]"), "more than once"),
        ("SPM: letters from 0x80", spm_with(lambda b: f"<0x{b:02X}>" if b < 128 else chr(b)), "128 of the 256"),
        ("SPM: a NUL for byte 0", spm_with(lambda b: "\0" if b == 0 else f"<0x{b:02X}>"), "1 of the 256"),
        ("words without spaces", {"tokenizer.ggml.pre": ("whitespace", TEXT)}, "first space"),
        ("a name of another type", {"general.name": ([7] * 100, Kind.ARRAY, Kind.UINT8)}, "general.name is ARRAY"),
    ],
)
def test_vocabularies_that_llama_cpp_reads_otherwise_are_refused(what, keys, said, tmp_path):
    assert said in refused(tiny_base(tmp_path / "b.gguf", keys=keys)), what


def test_spm_vocabularies_may_have_ascii_letters_as_bytes(tmp_path):
    keys = spm_with(lambda byte: chr(byte) if 0 < byte < 128 else f"<0x{byte:02X}>")
    assert BaseInfo.open(tiny_base(tmp_path / "b.gguf", keys=keys)).n_vocab > 256


@pytest.mark.parametrize(("kind", "block"), [(Type.Q8_K, (256, 292)), (Type.Q8_1, (32, 36))])
@pytest.mark.parametrize("name", ["attn_q", "token_embd"])
def test_matrices_of_activation_types_are_refused(kind, block, name, tmp_path, monkeypatch):
    # The package has another size than ggml for Q8_1.
    monkeypatch.setitem(gguf.GGML_QUANT_SIZES, kind, block)
    reader = gguf.GGUFReader(tiny_base(tmp_path / "source.gguf", n_embd=256, n_ff=256))
    keys = {
        key: (entry.contents(), *entry.types)
        for key, entry in reader.fields.items()
        if not key.startswith("GGUF.") and key != "general.architecture"
    }
    tensors = []
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        if name in tensor.name:
            raw = np.zeros((values.shape[0], values.shape[1] // block[0] * block[1]), np.uint8)
            tensors.append((tensor.name, raw, kind))
        else:
            tensors.append((tensor.name, values))
    assert kind.name in refused(write_gguf(tmp_path / "b.gguf", "llama", keys, tensors))


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_the_fingerprint_takes_every_whole_number(value, tmp_path):
    """struct.error before: a UINT64 of 2^63 and more is no signed one."""
    found = BaseInfo.open(tiny_base(tmp_path / "b.gguf", keys={"llama.made_up": (value, Kind.UINT64)}))
    minus = BaseInfo.open(tiny_base(tmp_path / "c.gguf", keys={"llama.made_up": (value - 2**64, Kind.INT64)}))
    assert len(found.fingerprint) == 64 and found.fingerprint != minus.fingerprint


def test_what_was_not_tried_is_named(tmp_path):
    assert BaseInfo.open(tiny_base(tmp_path / "a.gguf")).unproved == ()
    keys = {
        "llama.made_up": (1, U32),
        "tokenizer.ggml.pre": ("made-up", TEXT),
        "tokenizer.ggml.made_up": (1, U32),
    }
    assert BaseInfo.open(tiny_base(tmp_path / "b.gguf", keys=keys)).unproved == (
        "llama.made_up",
        "tokenizer.ggml.pre 'made-up'",
        "tokenizer.ggml.made_up",
    )


def sparse(path, header, size_bytes):
    """A file that begins with `header` and has holes up to its size."""
    with path.open("wb") as out:
        out.write(header)
        out.truncate(size_bytes)
    return path


def header(*parts):
    return b"GGUF" + (3).to_bytes(4, "little") + b"".join(n.to_bytes(size, "little") for n, size in parts)


def test_files_of_holes_are_refused(tmp_path):
    """458 MB of empty strings with nothing on the disk took 6 GB and 27 s."""
    key = b"\x01\0\0\0\0\0\0\0k"
    array = header((0, 8), (1, 8)) + key + (9).to_bytes(4, "little") + (8).to_bytes(4, "little")
    path = sparse(tmp_path / "s.gguf", array + (60_000_000).to_bytes(8, "little"), 480_000_100)
    with pytest.raises(DamagedError, match="were ever written"):
        GgufFile.open(path)


@pytest.mark.parametrize("lots", ["values", "strings", "keys", "tensors", "a key", "a text"])
def test_counts_are_bounded_before_anything_is_decoded(lots, tmp_path, monkeypatch):
    """What is decoded takes many times the bytes that it has in the file."""
    monkeypatch.setattr(gguf_file, "MAX_VALUES", 1000)
    monkeypatch.setattr(gguf_file, "MAX_KEYS", 60)
    monkeypatch.setattr(gguf_file, "MAX_TENSORS", 10)
    monkeypatch.setattr(gguf_file, "MAX_KEY_BYTES", 100)
    monkeypatch.setattr(gguf_file, "MAX_TEXT_BYTES", 2000)
    keys = {
        "values": {"x": ([1] * 1001, Kind.ARRAY, U32)},
        "strings": {"x": ([""] * 1001, Kind.ARRAY, TEXT)},
        "keys": {f"x{i}": (1, U32) for i in range(60)},
        "tensors": {},
        "a key": {"x" * 101: (1, U32)},
        "a text": {"x": ("x" * 2001, TEXT)},
    }[lots]
    path = tiny_base(tmp_path / "b.gguf", keys=keys, n_layers=2 if lots == "tensors" else 0)
    with pytest.raises(DamagedError, match="at most make sense"):
        GgufFile.open(path)
    monkeypatch.undo()
    assert GgufFile.open(path)


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "socket"])
def test_only_regular_files_are_opened(what, tmp_path):
    path = tmp_path / "x.gguf"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path = "/dev/zero"
    with pytest.raises(InputError, match=rf"(?i)is a {what}"):
        BaseInfo.open(path)
