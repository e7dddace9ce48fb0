"""PEFT folder to GGUF adapter: scaling, types and keys; bytes against llama.cpp's own quantiser."""

import ctypes
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from build_peft import K0, Q0, pair, written_adapter
from gguf.quants import dequantize
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile, ValueType
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.export.files.encode import quantize_q8_0
from slm_edge.export.lora.lora import export_lora
from slm_edge.export.lora.scaling import Scaling, file_scaling

A = f"base_model.model.{Q0}.lora_A.weight"


@pytest.mark.parametrize(
    ("scaling", "alpha", "factors"),
    [
        (Scaling(4, 8), 8, {}),
        (Scaling(4, 8, rslora=True), 16, {}),
        (Scaling(4, -8), 8, {Q0: -1, K0: -1}),
        (Scaling(4, 8, alphas={K0: 2}), 8, {K0: 0.25}),
        (Scaling(4, 0, alphas={K0: 2}), 2, {Q0: 0}),
        (Scaling(4, 8, ranks={K0: 16}), 8, {}),
        (Scaling(4, 8, True, {K0: 16}), 8, {Q0: 2, K0: 4}),
        (Scaling(4, 8, True, {K0: 16}, {K0: 4}), 16, {}),
    ],
)
def test_file_scaling_says_what_peft_says(scaling, alpha, factors):
    found = file_scaling(scaling, [Q0, K0])
    assert found.alpha == alpha
    assert found.factors == pytest.approx(factors)
    for module in (Q0, K0):
        in_llama = found.alpha / scaling.rank_of(module) * found.factor_of(module)
        assert in_llama == pytest.approx(scaling.scale_of(module), rel=1e-7)


def test_keys_and_order(tmp_path, base):
    folder = written_adapter(
        tmp_path / "peft",
        pair(Q0, 64, 64) | pair(K0, 64, 32),
        base_model_name_or_path="some-org/tiny-llama",
        revision="v2",
        alora_invocation_tokens=[5, 6, 7],
    )
    output = tmp_path / "a.gguf"
    done = export_lora(folder, base, output, task="math", prompt_prefix="Think.\n")
    file, info = GgufFile.open(output), BaseInfo.open(base)
    source = (folder / "adapter_model.safetensors").read_bytes()
    values = {key: entry.value for key, entry in file.metadata.items()}
    assert values == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.name": "math",
        "general.base_model.count": 1,
        "general.base_model.0.name": "tiny-llama",
        "general.base_model.0.version": "v2",
        "general.base_model.0.organization": "some-org",
        "general.base_model.0.repo_url": "https://huggingface.co/some-org/tiny-llama",
        "adapter.lora.alpha": 8.0,
        "adapter.alora.invocation_tokens": [5, 6, 7],
        "adapter.lora.task_name": "math",
        "adapter.lora.prompt_prefix": "Think.\n",
        "slm_edge.lora.rank": 4,
        "slm_edge.base.fingerprint": info.fingerprint,
        "slm_edge.base.name": "tiny llama",
        "slm_edge.source.sha256": hashlib.sha256(source).hexdigest(),
        "general.quantization_version": 2,
    }
    assert next(iter(file.metadata)) == "general.architecture"
    assert file.metadata["adapter.lora.alpha"].type is ValueType.FLOAT32
    assert file.metadata["adapter.alora.invocation_tokens"].element_type is ValueType.UINT32
    assert list(file.tensors) == [f"blk.0.{name}.weight.lora_{p}" for name in ("attn_q", "attn_k") for p in "ab"]
    assert done.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert done.info.path == output
    assert any("tiny llama" in note for note in done.notes) is False


def test_a_local_path_of_the_base_is_not_written(tmp_path, base):
    folder = written_adapter(tmp_path / "peft", pair(Q0, 64, 64), base_model_name_or_path="/home/someone/models/other")
    done = export_lora(folder, base, tmp_path / "a.gguf")
    assert b"someone" not in (tmp_path / "a.gguf").read_bytes()
    assert GgufFile.open(tmp_path / "a.gguf").get("general.base_model.0.name") == "other"
    assert any("'other'" in note for note in done.notes)


def test_alora_tokens_are_read_by_llama_cpp(tmp_path, base):
    from slm_edge.edge.llama.binding import lib
    from slm_edge.edge.llama.model import Model

    folder = written_adapter(tmp_path / "peft", pair(Q0, 64, 64), alora_invocation_tokens=[9, 200, 9])
    export_lora(folder, base, tmp_path / "a.gguf", task="math")
    with Model.load(base) as model:
        handle = model.load_adapter(tmp_path / "a.gguf").handle
        n_tokens = lib().llama_adapter_get_alora_n_invocation_tokens(handle)
        tokens = lib().llama_adapter_get_alora_invocation_tokens(handle)
        assert [tokens[i] for i in range(n_tokens)] == [9, 200, 9]
        buffer = ctypes.create_string_buffer(64)
        lib().llama_adapter_meta_val_str(handle, b"adapter.lora.task_name", buffer, 64)
        assert buffer.value == b"math"


def test_auto_takes_q8_0_where_rows_allow(tmp_path, base):
    tensors = pair(Q0, 64, 64, rank=4) | pair(K0, 64, 32, rank=32)
    folder = written_adapter(tmp_path / "peft", tensors, rank_pattern={"k_proj": 32})
    done = export_lora(folder, base, tmp_path / "a.gguf")
    types = {name: info.type for name, info in GgufFile.open(tmp_path / "a.gguf").tensors.items()}
    q8, f16 = GgmlType.Q8_0, GgmlType.F16
    assert list(types.values()) == [q8, f16, q8, q8]
    assert done.types == {"Q8_0": 3, "F16": 1}


@pytest.mark.parametrize(
    ("scale_a", "scale_b", "auto"),
    [(1, 1e-5, ["Q8_0", "F16"]), (1e-5, 1e-5, ["F16", "F16"]), (1, 1e-8, ["Q8_0", "F32"]), (1e-3, 1, ["Q8_0", "F16"])],
)
def test_auto_widens_where_small_values_need_it(tmp_path, base, scale_a, scale_b, auto):
    a, b = pair(Q0, 64, 64).items()
    tensors = {a[0]: a[1] * np.float32(scale_a), b[0]: b[1] * np.float32(scale_b)}
    folder = written_adapter(tmp_path / "peft", tensors)
    export_lora(folder, base, tmp_path / "a.gguf")
    file = GgufFile.open(tmp_path / "a.gguf")
    assert [info.type.name for info in file.tensors.values()] == auto
    for part, (_, source) in zip("ab", tensors.items(), strict=True):
        name = f"blk.0.attn_q.weight.lora_{part}"
        stored = dequantize(file.raw(name).reshape(len(source), -1), file.tensors[name].type)
        rows = interleave(source) if part == "b" else source
        assert np.sqrt(np.mean((stored - rows) ** 2) / np.mean(rows**2)) < 0.01


def interleave(rows, n_heads=4):
    """The row order of llama.cpp's q and k, written out: rows j and j + d/2 of a head become neighbours."""
    half = len(rows) // n_heads // 2
    return np.stack([rows[h * 2 * half + s * half + j] for h in range(n_heads) for j in range(half) for s in (0, 1)])


@pytest.mark.parametrize(("kind", "bits"), [("f32", 0), ("bf16", 8), ("f16", 11)])
def test_float_types_round_to_their_bits(tmp_path, base, good, kind, bits):
    export_lora(good, base, tmp_path / "a.gguf", kind=kind)
    file = GgufFile.open(tmp_path / "a.gguf")
    source = pair(Q0, 64, 64)[f"base_model.model.{Q0}.lora_A.weight"]
    stored = dequantize(
        file.raw("blk.0.attn_q.weight.lora_a").reshape(4, -1), int(file.tensors["blk.0.attn_q.weight.lora_a"].type)
    )
    error = np.abs(stored - source) / np.abs(source)
    assert error.max() <= (2.0**-bits if bits else 0)


def test_bf16_and_f16_sources_are_exact(tmp_path, base):
    f32 = pair(Q0, 64, 64)
    bits = {name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in f32.items()}
    half = {name: values.astype(np.float16) for name, values in f32.items()}
    for name, tensors, exact in (
        ("bf16", bits, {k: (v.astype(np.uint32) << 16).view(np.float32) for k, v in bits.items()}),
        ("f16", half, {k: v.astype(np.float32) for k, v in half.items()}),
        ("f64", {k: v.astype(np.float64) for k, v in f32.items()}, f32),
    ):
        folder = written_adapter(tmp_path / name, tensors)
        export_lora(folder, base, tmp_path / f"{name}.gguf", kind="f32")
        stored = GgufFile.open(tmp_path / f"{name}.gguf").array("blk.0.attn_q.weight.lora_a")
        np.testing.assert_array_equal(stored, exact[f"base_model.model.{Q0}.lora_A.weight"])


def test_q8_0_bytes_are_llama_cpps():
    # The package itself would take over llama.cpp's log when it is imported.
    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    library = next(
        ctypes.CDLL(str(folder / name))
        for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
        if (folder / name).exists()
    )
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 256)).astype(np.float32)
    rows[1] = 0
    rows[2] *= 1e-6
    rows[3] *= 1e6
    rows[4] = np.round(rows[4] * 8) / 2
    rows[5, ::2] = 127 / 2
    rows[6] = np.arange(256) - 128
    theirs = np.zeros(rows.size // 32 * 34, np.uint8)
    size = quantize(int(GgmlType.Q8_0), rows.ctypes.data, theirs.ctypes.data, 0, *rows.shape, None)
    assert size == theirs.size
    np.testing.assert_array_equal(quantize_q8_0(rows).reshape(-1), theirs)


def test_the_source_is_never_overwritten(tmp_path, base, good):
    before = base.read_bytes()
    with pytest.raises(InputError, match="overwritten"):
        export_lora(good, base, base, force=True)
    with pytest.raises(InputError, match="overwritten"):
        export_lora(good, base, good / "adapter_model.safetensors", force=True)
    assert base.read_bytes() == before


def test_an_old_output_stays_until_it_is_replaced(tmp_path, base, good, monkeypatch):
    output = tmp_path / "a.gguf"
    export_lora(good, base, output)
    before = output.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        export_lora(good, base, output)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # at the last moment: the file is written, but not yet in its place
        patch.setattr("slm_edge.export.lora.lora.check_adapter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_lora(good, base, output, task="new", force=True)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "good"]
    export_lora(good, base, output, task="new", force=True)
    assert GgufFile.open(output).get("adapter.lora.task_name") == "new"


def test_the_same_input_gives_the_same_bytes(tmp_path, base, good):
    first = export_lora(good, base, tmp_path / "1.gguf", task="x").sha256
    assert export_lora(good, base, tmp_path / "2.gguf", task="x").sha256 == first


def test_the_command(tmp_path, base, good):
    from click.testing import CliRunner
    from slm_edge.export.cli.group import export

    args = ["lora", str(good), "--base", str(base), "-o", str(tmp_path / "a.gguf"), "--type", "f16"]
    result = CliRunner().invoke(export, [*args, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["types"] == {"F16": 4}
    assert data["n_pairs"] == 2
    result = CliRunner().invoke(export, [*args, "--force"], catch_exceptions=False)
    assert "2 pairs, rank 4, alpha 8; 4 F16" in result.stdout
    assert "Example:" in CliRunner().invoke(export, ["lora", "--help"]).stdout


def test_export_lora_needs_no_torch(tmp_path, base, good):
    code = (
        "import sys\n"
        "from slm_edge.export.lora.lora import export_lora\n"
        f"export_lora({str(good)!r}, {str(base)!r}, {str(tmp_path / 'a.gguf')!r})\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "heavy = {'torch', 'transformers', 'peft', 'llama_cpp', 'safetensors'} & loaded\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
