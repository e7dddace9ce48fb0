"""Our own reader and writer of file formats against their reference implementations: gguf, safetensors, ggml."""

import json
import struct

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from slm_edge.edge.errors import DamagedError, InputError
from slm_edge.edge.gguf.file import GgufFile, ValueType
from slm_edge.edge.gguf.hf_form import interleave_rows
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.export.files.encode import encode_rows
from slm_edge.export.files.gguf_writer import (
    NewTensor,
    Value,
    array,
    boolean,
    file_size_bytes,
    float32,
    keys_of,
    text,
    uint32,
    write_gguf,
)
from slm_edge.export.files.safetensors import SafetensorsFile

KINDS = {
    GgmlType.F32: gguf.GGMLQuantizationType.F32,
    GgmlType.F16: gguf.GGMLQuantizationType.F16,
    GgmlType.BF16: gguf.GGMLQuantizationType.BF16,
    GgmlType.Q8_0: gguf.GGMLQuantizationType.Q8_0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_equals_gguf_package(kind):
    random = np.random.default_rng(0)
    rows = random.standard_normal((64, 256)).astype(np.float32) * np.float32(10.0) ** random.integers(-8, 5, (64, 1))
    rows[0] = 0
    # halves: rounded away from zero in Q8_0, to even in BF16
    rows[1] = np.arange(256) * 0.5
    rows[2, :32] = 127
    rows[2, 1:32] = np.arange(31) - 15.5
    rows = rows.astype(np.float32)
    expected = gguf.quants.quantize(rows, KINDS[kind])
    assert np.array_equal(encode_rows(rows, kind), expected.reshape(-1).view(np.uint8))


def test_bf16_keeps_what_torch_keeps():
    values = torch.cat([torch.randn(10_000), torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 3.3e38, 1e-40])])
    ours = encode_rows(values.numpy(), GgmlType.BF16).view(np.int16)
    assert np.array_equal(ours, values.to(torch.bfloat16).view(torch.int16).numpy())


def test_written_file_reads_back_in_both_readers(tmp_path):
    path = tmp_path / "a.gguf"
    random = np.random.default_rng(0)
    matrix, vector = random.standard_normal((6, 64)).astype(np.float32), np.arange(5, dtype=np.float32)
    keys = {
        "general.architecture": text("llama"),
        "a.bool": boolean(True),
        "a.float": float32(0.5),
        "a.int": Value(ValueType.INT32, -3),
        "a.long": Value(ValueType.UINT64, 1 << 40),
        "a.text": text("Grüße ▁ 🙂"),
        "a.empty": text(""),
        "adapter.alora.invocation_tokens": array(ValueType.UINT32, [1, 2, 3]),
        "a.strings": array(ValueType.STRING, ["x", "", "ü"]),
        "a.count": uint32(7),
    }
    tensors = [
        NewTensor.of("m", matrix, GgmlType.Q8_0),
        NewTensor.of("v", vector, GgmlType.F32),
        NewTensor.of("h", matrix, GgmlType.F16),
    ]
    write_gguf(path, keys, tensors)
    assert path.stat().st_size == file_size_bytes(keys, tensors)
    file, peer = GgufFile.open(path), gguf.GGUFReader(path)
    for key, entry in keys.items():
        assert file.metadata[key].type is entry.type
        assert file.metadata[key].element_type is entry.element_type
        assert file.get(key) == entry.value
        assert peer.get_field(key).contents() == entry.value
    assert peer.get_field("adapter.alora.invocation_tokens").types[-1] == gguf.GGUFValueType.UINT32
    assert {t.name: tuple(t.shape) for t in peer.tensors} == {"m": (64, 6), "v": (5,), "h": (64, 6)}
    assert np.array_equal(file.array("v"), vector)
    assert np.array_equal(file.array("h"), matrix.astype(np.float16))
    # and copied from file to file
    again = tmp_path / "b.gguf"
    write_gguf(again, keys_of(file), [NewTensor.copied(file, name) for name in file.tensors])
    assert again.read_bytes() == path.read_bytes()


def test_writer_refuses_what_the_format_has_not(tmp_path):
    ones = np.ones((2, 64), np.float32)
    for tensors in (
        [NewTensor.of("x" * 64, ones, GgmlType.F32)],
        [NewTensor.of("x", ones, GgmlType.F32)] * 2,
        [NewTensor.of("x", ones[:, :30], GgmlType.Q8_0)],
        [NewTensor("x", (64, 3), GgmlType.F32, lambda: [bytes(100)])],
    ):
        with pytest.raises(ValueError, match="x"):
            write_gguf(tmp_path / "a.gguf", {"general.architecture": text("llama")}, tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_blocks(tmp_path, dtype):
    values = torch.randn(300, 9000).to(dtype)
    save_file(
        {"a": values, "b": values[0].clone(), "c": torch.tensor(3.0)}, tmp_path / "a.safetensors", {"format": "pt"}
    )
    with SafetensorsFile.open(tmp_path / "a.safetensors") as file:
        blocks = list(file.blocks("a", multiple_of=16))
        assert len(blocks) > 2
        assert all(len(block) % 16 == 0 for block in blocks[:-1])
        assert np.array_equal(np.concatenate(blocks).astype(np.float32), values.float().numpy())
        assert np.array_equal(np.concatenate(list(file.blocks("b")))[0], values[0].float().numpy())
        assert file.rows("c", 0, 1).item() == 3.0
        assert file.metadata == {"format": "pt"}


def test_damaged_safetensors(tmp_path):
    save_file({"a": torch.ones(4, 4)}, tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    header = {
        "a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 60]},
        "b": {"dtype": "F3", "shape": [], "data_offsets": [0, 4]},
    }
    head = json.dumps(header).encode()
    for data, said in (
        (b"", "cut short"),
        (good[:-1], "not what its header says"),
        (struct.pack("<Q", 1 << 50) + good[8:], "cut short"),
        (struct.pack("<Q", 12) + b'{"a": 12345}', "not valid"),
        (struct.pack("<Q", len(head)) + head + bytes(64), "not what its header says"),
    ):
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(DamagedError, match=said):
            SafetensorsFile.open(tmp_path / "bad.safetensors")
    (tmp_path / "bad.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(DamagedError) as caught:
        SafetensorsFile.open(tmp_path / "bad.safetensors")
    assert "git lfs pull" in caught.value.hint
    with pytest.raises(InputError, match="no such file"):
        SafetensorsFile.open(tmp_path / "none.safetensors")


def test_interleaving_follows_the_formula():
    n_heads, size = 3, 8
    rows = np.arange(n_heads * size * 2).reshape(n_heads * size, 2)
    out = interleave_rows(rows, n_heads)
    for head in range(n_heads):
        for j in range(size // 2):
            for s in (0, 1):
                assert np.array_equal(out[head * size + 2 * j + s], rows[head * size + s * size // 2 + j])
