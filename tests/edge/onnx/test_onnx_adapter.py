"""ONNX adapters: PEFT's numbers exactly in every variant of scaling, and nothing wrong passes the check before use."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from build_gguf import tiny_adapter, tiny_base
from build_hf import tiny_checkpoint
from build_onnx import onnx_logits, write_adapter
from build_peft import real_adapter
from slm_edge.edge.errors import DamagedError, InputError, UnsupportedError
from slm_edge.edge.onnx.adapter import OnnxAdapter
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, its ONNX form, and a good adapter's tensors."""
    folder = tmp_path_factory.mktemp("made")
    gguf = tiny_base(folder / "base.gguf")
    base = export_onnx(gguf, folder / "onnx", kind="f32", max_length_tokens=64).base
    tiny_adapter(folder / "a.gguf", gguf, rank=4)
    good = export_onnx_adapter(folder / "a.gguf", base, folder / "a.onnx_adapter").adapter
    return base, {name: values.copy() for name, values in good.arrays.items()}


def test_the_reader_reads_what_onnxruntime_writes(made):
    base, tensors = made
    theirs = ort.AdapterFormat.read_adapter(str(base.folder.parent / "a.onnx_adapter"))
    assert theirs.get_model_version() == base.version_number == int(base.fingerprint[:7], 16)
    values = theirs.get_parameters()
    assert values.keys() == tensors.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value.numpy().copy(), tensors[name])


def test_onnxruntimes_own_adapters_give_the_same(made):
    """The file by LoraAdapter, as other programs use it, against the views that we feed."""
    base, tensors = made
    loaded = ort.LoraAdapter()
    loaded.Load(str(base.folder.parent / "a.onnx_adapter"))
    options = ort.RunOptions()
    options.add_active_adapter(loaded)
    ids = list(range(3, 30))
    path = base.folder / "model.onnx"
    theirs = onnx_logits(path, ids, options)
    np.testing.assert_array_equal(theirs, onnx_logits(path, ids, **tensors))
    assert np.abs(theirs - onnx_logits(path, ids)).max() > 1


A = "model.layers.0.self_attn.q_proj.lora_A.weight"
B = "model.layers.0.self_attn.q_proj.lora_B.weight"


def poisoned(values, number):
    changed = values.copy()
    changed.flat[5] = number
    return changed


# What of onnx.md's failure table a file can hold: how it is made from a good one's tensors, and what is said.
FAULTS = {
    "another input": (lambda t: t | {"input_ids": np.ones((1, 3), np.float32)}, "'input_ids' is no LoRA input"),
    "an unknown name": (lambda t: t | {"model.layers.9.x": t[A]}, "is no LoRA input"),
    "only A": (lambda t: {n: v for n, v in t.items() if n != B}, "other half of the pair is missing"),
    "only B": (lambda t: {n: v for n, v in t.items() if n != A}, "other half of the pair is missing"),
    "two ranks": (lambda t: t | {A: t[A][:, :3]}, "with A's rank 3 it must be"),
    "wrong n_in": (lambda t: t | {A: t[A][:60]}, "its first side must be 64"),
    "wrong n_out": (lambda t: t | {B: t[B][:, :60]}, "it must be"),
    "transposed": (lambda t: t | {A: t[A].T, B: t[B].T}, "its first side must be 64"),
    "three sides": (lambda t: t | {A: t[A][None]}, "two sides"),
    "one side": (lambda t: t | {A: t[A][:, 0]}, "two sides"),
    "F16": (lambda t: {n: v.astype(np.float16) for n, v in t.items()}, "is f16; this base takes f32"),
    "F64": (lambda t: t | {A: t[A].astype(np.float64)}, "not a float type"),
    "integers": (lambda t: t | {A: t[A].astype(np.int64)}, "not a float type"),
    "NaN": (lambda t: t | {B: poisoned(t[B], np.nan)}, "NaN, infinity"),
    "infinity": (lambda t: t | {A: poisoned(t[A], -np.inf)}, "NaN, infinity"),
    "beyond F16": (lambda t: t | {A: poisoned(t[A], 1e5)}, "beyond 65504"),
    "rank 0": (lambda t: t | {A: t[A][:, :0], B: t[B][:0]}, "two sides"),
    "a rank above the matrix": (
        lambda t: {A: np.ones((64, 65), np.float32), B: np.ones((65, 64), np.float32)},
        "rank 65 exceeds",
    ),
    "nothing but zeros": (lambda t: {n: v * 0 for n, v in t.items()}, "changes nothing"),
    "no tensors": (lambda t: {}, "holds no LoRA pair"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_before_the_numbers_are_used(tmp_path, made, name):
    base, tensors = made
    change, words = FAULTS[name]
    path = write_adapter(tmp_path / "x.onnx_adapter", change(dict(tensors)), model_version=base.version_number)
    with pytest.raises(InputError) as found:
        OnnxAdapter.open(path, base)
    assert words in str(found.value)


def test_all_faults_are_told_at_once(tmp_path, made):
    base, tensors = made
    bad = {A: tensors[A], "input_ids": tensors[A], B.replace(".0.", ".1."): poisoned(tensors[B], np.nan)}
    path = write_adapter(tmp_path / "x.onnx_adapter", bad, model_version=7, adapter_version=3)
    with pytest.raises(InputError) as found:
        OnnxAdapter.open(path, base)
    assert len(found.value.problems) == 6


def test_broken_containers(tmp_path, made):
    base, _ = made
    good = (base.folder.parent / "a.onnx_adapter").read_bytes()
    path = tmp_path / "x.onnx_adapter"
    broken = {
        "empty": b"",
        "a letter": b"x",
        "random": np.random.default_rng(0).bytes(4000),
        "cut in half": good[: len(good) // 2],
        "16 bytes": good[:16],
        "4 bytes short": good[:-4],
        "zeros behind the magic": good[:8] + bytes(len(good) - 8),
    }
    for name, data in broken.items():
        path.write_bytes(data)
        with pytest.raises((InputError, DamagedError)):
            OnnxAdapter.open(path, base)
            pytest.fail(name)
    with pytest.raises(InputError, match="no such file"):
        OnnxAdapter.open(tmp_path / "none", base)


def test_two_tensors_of_one_name(tmp_path, made):
    """onnxruntime would take one of them in silence."""
    base, _ = made
    good = (base.folder.parent / "a.onnx_adapter").read_bytes()
    first, second = b"layers.0.self_attn.q_proj.lora_A", b"layers.1.self_attn.q_proj.lora_A"
    assert good.count(first) == good.count(second) == 1
    path = tmp_path / "x.onnx_adapter"
    path.write_bytes(good.replace(second, first))
    with pytest.raises(DamagedError, match="same name"):
        OnnxAdapter.open(path, base)


def test_exporting_again_leaves_a_mapped_adapter_alone(tmp_path, made):
    """A file that a session has mapped is replaced, never written into: its numbers would change under it."""
    base, tensors = made
    path = tmp_path / "a.onnx_adapter"
    shutil.copy(base.folder.parent / "a.onnx_adapter", path)
    mapped = OnnxAdapter.open(path, base)
    other = tiny_adapter(tmp_path / "b.gguf", base.folder.parent / "base.gguf", rank=2, seed=9)
    export_onnx_adapter(other, base, path, force=True)
    assert OnnxAdapter.open(path, base).rank == 2
    for name, values in mapped.arrays.items():
        np.testing.assert_array_equal(values, tensors[name])


def test_hash_fingerprint_and_base(tmp_path, made):
    base, _ = made
    source = base.folder.parent / "a.onnx_adapter"
    path, beside = tmp_path / "a.onnx_adapter", tmp_path / "a.onnx_adapter.json"
    shutil.copy(source, path)
    OnnxAdapter.open(path, base)
    with pytest.raises(DamagedError, match="bytes changed"):
        OnnxAdapter.open(path, base, sha256="0" * 64)
    stated = json.loads(source.with_name("a.onnx_adapter.json").read_text())
    assert stated["fingerprint"] == base.fingerprint
    beside.write_text(json.dumps(stated))
    OnnxAdapter.open(path, base)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="bytes changed"):
        OnnxAdapter.open(path, base)
    shutil.copy(source, path)
    beside.write_text(json.dumps(stated | {"fingerprint": "1" * 64}))
    with pytest.raises(InputError, match="another base"):
        OnnxAdapter.open(path, base)
    other = export_onnx(tiny_base(tmp_path / "b.gguf", seed=3), tmp_path / "onnx", kind="f32").base
    with pytest.raises(InputError, match="another base"):
        OnnxAdapter.open(source, other, sha256=stated["sha256"])


def test_what_an_onnx_adapter_cannot_hold_is_refused(tmp_path, made):
    base, _ = made
    gguf = base.folder.parent / "base.gguf"
    other = tiny_base(tmp_path / "other.gguf", seed=5)
    foreign = tiny_adapter(tmp_path / "foreign.gguf", other)
    with pytest.raises(InputError, match="another base"):
        export_onnx_adapter(foreign, base, tmp_path / "x.onnx_adapter")
    head = tiny_adapter(tmp_path / "head.gguf", gguf, targets=["token_embd"])
    with pytest.raises(InputError, match="no such tensor"):
        export_onnx_adapter(head, base, tmp_path / "x.onnx_adapter")
    hf = tiny_checkpoint(tmp_path / "hf")
    of_hf = export_onnx(hf, tmp_path / "onnx", kind="f32").base
    for name, config, words in (
        ("dora", {"use_dora": True}, "DoRA"),
        ("head", {"target_modules": ["lm_head", "q_proj"]}, "no LoRA on the embedding or the head"),
        ("alora", {"alora_invocation_tokens": [1, 70]}, "aLoRA"),
    ):
        peft = real_adapter(tmp_path / name, hf, r=4, **config)
        with pytest.raises(UnsupportedError, match=words):
            export_onnx_adapter(peft, of_hf, tmp_path / "x.onnx_adapter")
    assert not (tmp_path / "x.onnx_adapter").exists()
    mine = tiny_adapter(tmp_path / "mine.gguf", gguf)
    export_onnx_adapter(mine, base, tmp_path / "x.onnx_adapter")
    with pytest.raises(InputError, match="exists already"):
        export_onnx_adapter(mine, base, tmp_path / "x.onnx_adapter")
    export_onnx_adapter(mine, base, tmp_path / "x.onnx_adapter", force=True)


MUTATE = """
import sys
from pathlib import Path
import numpy as np
from slm_edge.edge.errors import SlmEdgeError
from slm_edge.edge.onnx.adapter import OnnxAdapter
from slm_edge.edge.onnx.engine import OnnxEngine
from slm_edge.edge.onnx.folder import OnnxBase

folder, good, place, first, count = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:6])
base = OnnxBase.open(folder)
engine = OnnxEngine(base, n_ctx_tokens=16, threads=1)
data, refused, ran = good.read_bytes(), 0, 0
for number in range(first, first + count):
    rng = np.random.default_rng(number)
    bad = bytearray(data)
    kind = number % 4
    if kind == 0:
        for at in rng.integers(0, len(bad), rng.integers(1, 8)):
            bad[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        at = int(rng.integers(0, len(bad) - 4))
        values = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(bad), len(bad) - 1]
        bad[at : at + 4] = int(rng.choice(values)).to_bytes(4, "little")
    elif kind == 2:
        del bad[int(rng.integers(0, len(bad))) :]
    else:
        # Near what is no number: tables, vectors, names.
        ends = np.concatenate([np.arange(64), np.arange(len(bad) - 64, len(bad))])
        starts = [i for i in range(0, len(bad) - 8) if bad[i : i + 6] == b"model."]
        ends = np.concatenate([ends, *(np.arange(max(0, s - 48), s + 8) for s in starts)])
        for at in rng.choice(ends, rng.integers(1, 5)):
            bad[at] = int(rng.integers(256))
    # A new name for each: a mapped file is never rewritten.
    path = place / f"{number}.onnx_adapter"
    path.write_bytes(bad)
    try:
        adapter = OnnxAdapter.open(path, base)
        engine.decode([3, 4, 5], 0, key=number, pairs=adapter.arrays)
        engine.forget(number)
        ran += 1
    except SlmEdgeError:
        refused += 1
    path.unlink()
print(refused, ran)
"""


def test_mutated_files_never_end_the_process(tmp_path, made):
    """Without their hash, which alone would refuse all. The long form: SLM_EDGE_MUTATIONS=2000."""
    base, _ = made
    count = int(os.environ.get("SLM_EDGE_MUTATIONS", "160"))
    arguments = [str(base.folder), str(base.folder.parent / "a.onnx_adapter"), str(tmp_path), "0", str(count)]
    result = subprocess.run([sys.executable, "-c", MUTATE, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
    refused, ran = map(int, result.stdout.split())
    assert refused + ran == count
    assert refused > count / 2
    # A flipped bit of a weight is a weight: without a hash such a file is as good as any.
    assert ran > 0
