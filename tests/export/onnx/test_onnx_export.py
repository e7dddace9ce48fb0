"""Exported ONNX bases compute what torch and llama.cpp do, hold a GGUF's blocks exactly, and are whole or absent."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from build_gguf import tiny_base
from build_hf import LLAMA3_SCALING, tiny_checkpoint
from build_onnx import empty_cache, onnx_logits, onnx_logits_in_pieces, padded_rows, plain_session
from compare_logits import gguf_logits, hf_logits, random_ids
from gguf import GGMLQuantizationType, quants
from slm_edge.edge.errors import DamagedError, InputError, UnsupportedError
from slm_edge.edge.gguf.adapter import SCALES
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.onnx.folder import ONNX_FILE, OnnxBase
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.onnx.base import export_onnx
from slm_edge.export.onnx.blocks import CARRIERS

IDS = random_ids(250, 40)


@pytest.mark.parametrize("packed", [False, True], ids=["pairs", "packed"])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("llama", {"tied": False, "rope_scaling": LLAMA3_SCALING, "n_ctx_tokens": 2048}),
        ("llama", {"head_dim": 32, "attention_bias": True}),
        ("mistral", {"tied": False}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("smollm3", {"n_layers": 5}),
        ("granite", {}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "tied": False}),
        ("olmo2", {"tied": False}),
        ("hunyuan", {}),
        ("gemma3", {}),
        ("exaone4", {"tied": False}),
    ],
    ids=str,
)
def test_a_checkpoint_in_f32_is_torch(tmp_path, family, fields, packed):
    hf = tiny_checkpoint(tmp_path / "hf", family, **fields)
    done = export_onnx(hf, tmp_path / "onnx", kind="f32", packed=packed)
    # Longer than the original length of the scaled positions (64).
    ids = random_ids(300, 150)
    theirs = hf_logits(hf, ids)
    for graph in ("model.onnx", "base.onnx"):
        assert np.abs(onnx_logits(tmp_path / "onnx" / graph, ids) - theirs).max() < 1e-3
    assert set(done.base.weights) == {"F32"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", list(CARRIERS), ids=lambda kind: kind.name)
def test_blocks_hold_ggmls_numbers(kind):
    """Random blocks, read by the gguf package and by MatMulNBits' formula."""
    rng = np.random.default_rng(0)
    block_values, block_bytes = kind.block
    raw = rng.integers(0, 256, (8 * 768 // block_values, block_bytes), dtype=np.uint8)
    for at in SCALES[kind]:
        raw[:, at : at + 2] = (rng.standard_normal(len(raw)) * 0.1).astype(np.float16)[:, None].view(np.uint8)
    raw = raw.reshape(8, -1)
    theirs = quants.dequantize(raw, GGMLQuantizationType(int(kind)))
    carrier = CARRIERS[kind]
    blocks = carrier.blocks(raw)
    np.testing.assert_allclose(blocks.values(carrier.bits), theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())
    if not carrier.has_offsets:
        np.testing.assert_array_equal(blocks.values(carrier.bits), theirs)


@pytest.mark.parametrize("packed", [False, True], ids=["pairs", "packed"])
@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1", "q5_1", "q4_k_m", "q5_k_m", "q6_k"])
def test_a_quantised_gguf_keeps_its_numbers(tmp_path, type, packed):
    """With F32 activations the graph is llama.cpp on the dequantised file; with int8 ones as near as llama.cpp is."""
    base = tiny_base(tmp_path / "f32.gguf", n_embd=256, n_ff=512, tied=type != "q4_k_m")
    quantised, floats = tmp_path / "base.gguf", tmp_path / "dequantised.gguf"
    export_base(base, quantised, TYPES[type])
    export_base(quantised, floats, TYPES["f32"])
    exact, theirs = gguf_logits(floats, IDS), gguf_logits(quantised, IDS)
    done = export_onnx(quantised, tmp_path / "exact", activations="f32", packed=packed)
    assert not done.losses
    assert np.abs(onnx_logits(tmp_path / "exact" / "model.onnx", IDS) - exact).max() < 2e-4
    export_onnx(quantised, tmp_path / "rounded", packed=packed)
    ours = onnx_logits(tmp_path / "rounded" / "base.onnx", IDS)
    assert np.abs(ours - exact).max() < 2 * np.abs(theirs - exact).max() + 0.1


def test_what_cannot_be_held_is_requantised_and_said(tmp_path):
    base = tiny_base(tmp_path / "f32.gguf", n_embd=256, n_ff=512)
    export_base(base, tmp_path / "base.gguf", TYPES["q3_k_m"])
    done = export_onnx(tmp_path / "base.gguf", tmp_path / "onnx")
    assert done.losses.keys() == {"Q3_K"}
    held, error = done.losses["Q3_K"]
    assert held == "Q8_0"
    assert 0 < error < 0.01


@pytest.mark.parametrize(("kind", "bound"), [("f16", 0.1), ("int8", 0.8), ("int4", 8.0)])
def test_narrow_types(tmp_path, kind, bound):
    base = tiny_base(tmp_path / "base.gguf", n_embd=256, n_ff=512)
    done = export_onnx(base, tmp_path / "onnx", kind=kind)
    assert 0 < np.abs(onnx_logits(tmp_path / "onnx" / "model.onnx", IDS) - gguf_logits(base, IDS)).max() < bound
    assert done.base.dtype == ("f16" if kind == "f16" else "f32")
    assert done.base.weights == {"f16": {"F16": 15}, "int8": {"Q8_0": 15}, "int4": {"Q8_0": 1, "Q4_0": 14}}[kind]


@pytest.mark.parametrize("architecture", ["llama", "hunyuan-dense"])
def test_rows_padded_on_the_right_are_as_alone(tmp_path, architecture):
    """Hunyuan's positions are counted in the graph, those of the others by onnxruntime."""
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture)
    export_onnx(base, tmp_path / "onnx", kind="f32")
    path, rows = tmp_path / "onnx" / "model.onnx", [IDS[:20], IDS[20:31]]
    alone = [onnx_logits(path, [*row, 7]) for row in rows]
    firsts, logits = padded_rows(path, rows)
    for first, whole, row in zip(firsts, alone, rows, strict=True):
        np.testing.assert_allclose(first[: len(row)], whole[: len(row)], atol=1e-4)
    for row, whole in zip(logits, alone, strict=True):
        np.testing.assert_allclose(row[0], whole[-1], atol=1e-4)


@pytest.mark.parametrize("architecture", [name for name, row in FAMILIES.items() if "onnx" in row.uses])
def test_decoding_in_pieces_and_first_logit(tmp_path, architecture):
    """A prompt in two pieces, then token by token, gives what one pass gives; `first_logit` leaves rows out."""
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture)
    export_onnx(base, tmp_path / "onnx", kind="f32")
    path = tmp_path / "onnx" / "model.onnx"
    whole = onnx_logits(path, IDS)
    np.testing.assert_allclose(onnx_logits_in_pieces(path, IDS, (17, 13, 1, 1, 8)), whole, atol=1e-4)
    last = onnx_logits(path, IDS, first_logit=np.array([38]))
    np.testing.assert_allclose(last, whole[38:], atol=1e-4)


@pytest.mark.parametrize("packed", [False, True], ids=["pairs", "packed"])
def test_a_batch_padded_on_the_right_is_its_rows(tmp_path, packed):
    hf = tiny_checkpoint(tmp_path / "hf", "qwen3", head_dim=32)
    base = export_onnx(hf, tmp_path / "onnx", kind="f32", packed=packed).base
    path, rng = tmp_path / "onnx" / "model.onnx", np.random.default_rng(0)
    pairs = {}
    for pair in base.lora:
        pairs[pair.a] = rng.standard_normal((pair.n_in, 3)).astype(np.float32)
        pairs[pair.b] = 0.1 * rng.standard_normal((3, pair.n_out)).astype(np.float32)
    rows = [IDS[:9], IDS[20:25]]
    session = plain_session(path)
    ids, mask = np.zeros((2, 9), np.int64), np.zeros((2, 9), np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    past = {name: np.zeros((2, *values.shape[1:]), values.dtype) for name, values in empty_cache(session).items()}
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask, **past, **pairs})
    for row, tokens in enumerate(rows):
        np.testing.assert_allclose(logits[row, : len(tokens)], onnx_logits(path, tokens, **pairs), atol=1e-4)
    assert np.abs(logits[0] - onnx_logits(path, rows[0])).max() > 0.1


def test_the_graphs_are_small_and_share_their_data(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    export_onnx(base, tmp_path / "onnx")
    for name in ("model.onnx", "base.onnx"):
        model = onnx.load(str(tmp_path / "onnx" / name), load_external_data=False)
        inside = {tensor.name: tensor for tensor in model.graph.initializer}
        places = {entry.value for t in inside.values() for entry in t.external_data if entry.key == "location"}
        assert places == {"model.onnx.data"}
        assert ("model.layers.0.self_attn.q_proj.lora_A.weight" in inside) == (name == "model.onnx")
        assert (tmp_path / "onnx" / name).stat().st_size < 60_000


def test_nothing_of_the_export_needs_torch(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    code = (
        "import sys\nfrom pathlib import Path\nfrom slm_edge.export.onnx.base import export_onnx\n"
        f"export_onnx(Path({str(base)!r}), Path({str(tmp_path / 'onnx')!r}))\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))\n"
        "import slm_edge.edge.session.session, slm_edge.edge.onnx.session\n"
        "print('onnxruntime' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "False"]


def test_refusals_leave_nothing_behind(tmp_path):
    narrow = tiny_base(tmp_path / "narrow.gguf", n_embd=32, n_heads=4)
    with pytest.raises(UnsupportedError, match="8 wide") as found:
        export_onnx(narrow, tmp_path / "onnx")
    assert "multiples of 16" in str(found.value)
    yarn = {"rope_type": "yarn", "factor": 4.0}
    hf = tiny_checkpoint(tmp_path / "hf", "qwen2", rope_scaling=yarn)
    with pytest.raises(UnsupportedError, match="'yarn'"):
        export_onnx(hf, tmp_path / "onnx")
    base = tiny_base(tmp_path / "base.gguf", n_ctx_train_tokens=256)
    with pytest.raises(InputError, match="trained for 256"):
        export_onnx(base, tmp_path / "onnx", max_length_tokens=512)
    with pytest.raises(InputError, match="keep"):
        export_onnx(hf, tmp_path / "onnx", kind="keep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "hf", "narrow.gguf"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(InputError):
            export_onnx(base, tmp_path / "mine", force=force)
    export_onnx(base, tmp_path / "onnx")
    with pytest.raises(InputError, match="exists already"):
        export_onnx(base, tmp_path / "onnx")
    export_onnx(base, tmp_path / "onnx", force=True, packed=True)
    assert OnnxBase.open(tmp_path / "onnx").packed


def test_numbers_that_are_none_are_refused(tmp_path):
    from build_gguf import write_gguf
    from gguf import GGUFReader

    base = tiny_base(tmp_path / "base.gguf")
    reader = GGUFReader(base)
    tensors = [[tensor.name, np.array(tensor.data)] for tensor in reader.tensors]
    next(values for name, values in tensors if name == "blk.1.ffn_up.weight")[3, 4] = np.nan
    keys = {
        name: (field.contents(), *field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.architecture"
    }
    write_gguf(tmp_path / "nan.gguf", "llama", keys, tensors)
    with pytest.raises(DamagedError, match="NaN"):
        export_onnx(tmp_path / "nan.gguf", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_changed_folder_is_damaged(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    folder = tmp_path / "onnx"
    export_onnx(base, folder)
    assert OnnxBase.open(folder, verify=True).fingerprint == BaseInfo.open(base).fingerprint
    for name in ("model.onnx", "base.onnx", "tokenizer.gguf", "genai_config.json", "model.onnx.data"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(DamagedError, match="changed"):
            OnnxBase.open(folder, verify=True)
        (folder / name).unlink()
        with pytest.raises(DamagedError, match="missing"):
            OnnxBase.open(folder)
        (folder / name).write_bytes(before)
    described = json.loads((folder / ONNX_FILE).read_text())
    for key, value, words in (
        ("schema", 2, "schema version 2"),
        ("n_layers", -1, "n_layers is -1"),
        ("dtype", "f64", "dtype"),
        ("lora", [], "not a list of pairs"),
        ("lora", described["lora"] + described["lora"][:1], "same names"),
        ("files", {"../x": {"sha256": "0" * 64, "size_bytes": 1}}, "not a plain name"),
        ("fingerprint", "zz", "not a sha256"),
    ):
        (folder / ONNX_FILE).write_text(json.dumps(described | {key: value}))
        with pytest.raises((InputError, UnsupportedError), match=words):
            OnnxBase.open(folder)


def test_peak_memory_is_a_few_tensors(tmp_path):
    """58 MiB of weights in 16 layers pass through a process that may hold half of them."""
    base = tiny_base(tmp_path / "base.gguf", n_layers=16, n_embd=256, n_heads=8, n_ff=1024)
    base_bytes = base.stat().st_size
    assert base_bytes > 56 << 20
    code = (
        "import resource, sys\nfrom pathlib import Path\nimport numpy, onnx, gguf\n"
        "from slm_edge.export.onnx.base import export_onnx\nimport gguf.quants\n"
        "def anonymous():\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) << 10\n"
        "import threading, time\n"
        "before, peak, go = anonymous(), 0, True\n"
        "def watch():\n"
        "    global peak\n"
        "    while go:\n        peak = max(peak, anonymous()); time.sleep(0.002)\n"
        "t = threading.Thread(target=watch); t.start()\n"
        f"export_onnx(Path({str(base)!r}), Path({str(tmp_path / 'onnx')!r}), kind='f32', max_length_tokens=64)\n"
        "go = False; t.join(); print(peak - before)\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < base_bytes / 2


def test_data_beyond_two_gib_is_addressed(tmp_path):
    """A sparse data file: a tensor that lies behind 2 GiB is found there by onnxruntime."""
    from slm_edge.export.onnx.data import DataFile
    from slm_edge.export.onnx.graph import Graph

    with (tmp_path / "m.data").open("wb") as stream:
        data = DataFile(tmp_path / "m.data", stream)
        big = data.reserve("big", np.uint8, (5 << 29,))
        far = data.reserve("far", np.float32, (4, 4))
        far.write(np.arange(16, dtype=np.float32).reshape(4, 4))
        assert far.start_bytes >= big.size_bytes > 2 << 30
    graph = Graph(data, np.float32)
    x = graph.input("x", np.float32, [1, 4])
    graph.node("MatMul", [x, graph.stored("far")], out="y")
    graph.output("y", [1, 4])
    graph.save(tmp_path / "m.onnx", "m")
    (y,) = plain_session(tmp_path / "m.onnx").run(None, {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(y, [[24, 28, 32, 36]])


def test_lora_names_and_held_types_are_described(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", architecture="qwen2")
    pairs = export_onnx(base, tmp_path / "a").base
    packed = export_onnx(base, tmp_path / "b", packed=True).base
    assert (pairs.n_pairs, packed.n_pairs) == (14, 8)
    assert pairs.lora[0].a == "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert packed.lora[0].targets == ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")
    assert packed.lora[0].widths == (64, 32, 32)
    session = plain_session(tmp_path / "a" / "model.onnx")
    inputs = {entry.name: entry.shape for entry in session.get_overridable_initializers()}
    ranks = [inputs[pair.a][1] for pair in pairs.lora]
    assert len(set(ranks)) == len(ranks)
