"""Shapes and quantisation mixtures against what is published and against llama.cpp's own quantiser."""

import os
import tomllib

import pytest
from build_gguf import WINDOW_TOKENS, tiny_base
from build_other import other_base
from slm_edge.devices.catalogue.quant_mix import LABELS, quant_label, types_of
from slm_edge.devices.catalogue.shapes import MODELS_FILE, ModelShape, find_shape, known_shapes, match_shape
from slm_edge.devices.catalogue.table_view import table_of
from slm_edge.devices.catalogue.workload import Workload
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.edge.llama.binding import lib, quiet_logs
from slm_edge.edge.memory.plan import plan_memory

# enum llama_ftype of llama.h
FTYPES = {
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}
# MB per token that people published for their files (arm-learning-paths llm-decode-roofline; llama-roofline 0.2.3).
STREAMED = [
    ("Qwen2.5-0.5B-Instruct", "Q4_0", 346.0),
    ("Qwen2.5-0.5B-Instruct", "Q8_0", 525.0),
    ("Qwen2.5-0.5B-Instruct", "Q4_K_M", 373.7 * 1.048576),
    ("Qwen2.5-0.5B-Instruct", "Q2_K", 317.2 * 1.048576),
    ("Qwen2.5-0.5B-Instruct", "Q6_K", 476.6 * 1.048576),
    ("Qwen2.5-0.5B-Instruct", "IQ4_NL", 332.2 * 1.048576),
    ("Qwen2.5-1.5B-Instruct", "Q4_0", 929.0),
    ("Qwen2.5-1.5B-Instruct", "Q3_K_M", 780.3 * 1.048576),
    ("Qwen2.5-1.5B-Instruct", "IQ4_XS", 854.7 * 1.048576),
    ("Qwen2.5-1.5B-Instruct", "Q4_K_M", 934.7 * 1.048576),
]


@pytest.mark.parametrize("name", known_shapes())
def test_a_shape_has_the_published_number_of_parameters(name):
    row = tomllib.loads(MODELS_FILE.read_text())[name]
    assert known_shapes()[name].n_params / 1e9 == pytest.approx(row["params_b"], rel=0.01)
    assert row["source"]


@pytest.mark.parametrize(("name", "label", "mb"), STREAMED)
def test_bytes_per_token_are_those_that_were_published(name, label, mb):
    work = Workload.of_shape(match_shape(name), quant_label(label))
    assert work.streamed_bytes / 1e6 == pytest.approx(mb, rel=0.002)


PATTERN = (["sliding_attention"] * 4 + ["full_attention"]) * 2
SIZES = {
    "wide, grouped": {"n_embd": 256, "n_heads": 8, "n_kv_heads": 2, "n_ff": 256, "n_layers": 9, "tied": True},
    "narrow rows": {"n_embd": 96, "n_heads": 4, "n_kv_heads": 4, "n_ff": 256, "n_layers": 17, "tied": True},
    "own head": {"n_embd": 256, "n_heads": 8, "n_kv_heads": 4, "n_ff": 512, "n_layers": 4, "tied": False},
}


@pytest.mark.parametrize("kind", SIZES)
def test_the_mixture_is_the_quantisers(kind, tmp_path):
    """Every tensor's type, against llama.cpp quantising the same shape; and its bytes, against the file's table."""
    sizes = SIZES[kind]
    base = tiny_base(tmp_path / "f32.gguf", **sizes)
    n_vocab = GgufFile.open(base).tensors["token_embd.weight"].shape[1]
    shape = ModelShape(name="tiny", architecture="llama", n_vocab=n_vocab, **sizes)
    for label, ftype in FTYPES.items():
        out = tmp_path / f"{label}.gguf"
        params = lib().llama_model_quantize_default_params()
        params.ftype, params.nthread = ftype, 1
        with quiet_logs():
            assert lib().llama_model_quantize(os.fsencode(base), os.fsencode(out), params) == 0, label
        file = GgufFile.open(out)
        for matrix, wanted in zip(shape.matrices(), types_of(shape, label), strict=True):
            name = f"{matrix.name}.weight" if matrix.layer is None else f"blk.{matrix.layer}.{matrix.name}.weight"
            assert file.tensors[name].type is wanted, (label, name)
        of_file, of_shape = Workload.of_file(file), Workload.of_shape(shape, label)
        assert of_file.streamed_bytes == of_shape.streamed_bytes, label
        assert of_file.block_weights == of_shape.block_weights
        assert of_file.kv_values_per_token == of_shape.kv_values_per_token
        out.unlink()
    assert set(LABELS) - set(FTYPES) == {"f32", "bf16", "q2_k_s"}


def test_windows_bound_what_a_long_context_takes():
    """The 270M: 3 layers of 18 keep everything, the others 512 tokens; a file's table says the same as the name."""
    shape = find_shape("gemma-3-270m")
    plan = plan_memory(table_of(shape, "q4_k_m"), n_ctx_tokens=32768)
    # 96 MiB and 11.25 MiB, as llama.cpp's log says of the published file
    assert plan.kv_bytes == (3 * 32768 + 15 * 768) * 512 * 2 == 107.25 * (1 << 20)
    work = Workload.of_shape(shape, "q4_k_m")
    assert work.context_bytes(512) == 512 * 18 * 512 * 2
    assert work.context_bytes(8192) - work.context_bytes(4096) == 4096 * 3 * 512 * 2


def test_layers_that_read_the_keys_of_others_take_none():
    """Gemma 4 E2B: of 15 layers with keys of their own 3 keep everything, with heads twice as wide."""
    shape = find_shape("gemma-4-e2b")
    plan = plan_memory(table_of(shape, "q4_k_m"), n_ctx_tokens=32768)
    assert plan.kv_bytes == (3 * 32768 * 2 * 512 + 12 * 768 * 2 * 256) * 2
    # What is looked up row by row is most of the file, and not read for a token.
    work = Workload.of_shape(shape, "q4_k_m")
    assert work.file_bytes - work.streamed_bytes > 0.4 * work.file_bytes


def test_a_table_that_is_read_row_by_row_is_not_resident():
    """Gemma 4 E2B in F16: of 4.4 GiB of inputs for each layer a context's rows are brought in; not below 4 GiB."""
    shape = find_shape("gemma-4-e2b")
    table_bytes = 256 * 35 * 262144 * 2
    for mmap in (True, False):
        file = table_of(shape, "f16")
        plan = plan_memory(file, n_ctx_tokens=2048, mmap=mmap, repack=False)
        stored = sum(info.size_bytes for info in file.tensors.values())
        assert plan.weights_bytes == stored - table_bytes + 2048 * (256 * 35 * 2 + 4096)
    file = table_of(shape, "q8_0")
    plan = plan_memory(file, n_ctx_tokens=2048, repack=False)
    assert plan.weights_bytes == sum(info.size_bytes for info in file.tensors.values())


def test_a_gemma4_file_is_the_work_of_its_shape(tmp_path):
    file = GgufFile.open(
        other_base(tmp_path, "gemma4", layer_types=PATTERN, num_hidden_layers=10, num_kv_shared_layers=5)[1]
    )
    sizes = {"n_layers": 10, "n_embd": 64, "n_heads": 4, "n_kv_heads": 2, "n_ff": 128, "n_vocab": 384, "head_dim": 16}
    of_gemma4 = {"full_head_dim": 32, "full_every": 5, "n_shared_layers": 5, "n_layer_input": 32, "window_tokens": 24}
    shape = ModelShape("tiny", "gemma4", **sizes, **of_gemma4, qk_norm=True, post_norms=True)
    of_file, of_shape = Workload.of_file(file), Workload.of_shape(shape, "f32")
    for n_tokens in (10, 1000):
        assert of_file.context_bytes(n_tokens) == of_shape.context_bytes(n_tokens)
    assert of_file.block_weights == of_shape.block_weights
    assert of_file.streamed_bytes == of_shape.streamed_bytes
    for label, ftype in FTYPES.items():
        out = tmp_path / f"{label}.gguf"
        params = lib().llama_model_quantize_default_params()
        params.ftype, params.nthread = ftype, 1
        with quiet_logs():
            assert lib().llama_model_quantize(os.fsencode(file.path), os.fsencode(out), params) == 0, label
        tensors = GgufFile.open(out).tensors
        for matrix, wanted in zip(shape.matrices(), types_of(shape, label), strict=True):
            name = f"{matrix.name}.weight" if matrix.layer is None else f"blk.{matrix.layer}.{matrix.name}.weight"
            # The quantiser keeps this one as it is, here F32.
            assert tensors[name].type is wanted or matrix.name == "per_layer_model_proj", (label, name)


def test_a_gemma3n_file_is_the_work_of_its_shape(tmp_path):
    file = GgufFile.open(other_base(tmp_path, "gemma3n")[1])
    sizes = {"n_layers": 22, "n_embd": 64, "n_heads": 4, "n_kv_heads": 2, "n_ff": 128, "n_vocab": 384, "head_dim": 16}
    of_gemma = {"full_head_dim": 16, "full_every": 5, "n_shared_layers": 2, "n_layer_input": 256, "window_tokens": 24}
    shape = ModelShape("tiny", "gemma3n", **sizes, **of_gemma, qk_norm=True, post_norms=True, n_altup=4, laurel_rank=64)
    assert shape.n_params == sum(info.n_values for info in file.tensors.values())
    of_file, of_shape = Workload.of_file(file), Workload.of_shape(shape, "f32")
    for n_tokens in (10, 1000):
        assert of_file.context_bytes(n_tokens) == of_shape.context_bytes(n_tokens)
    assert of_file.block_weights == of_shape.block_weights
    assert of_file.streamed_bytes == of_shape.streamed_bytes
    planned, named = plan_memory(file, n_ctx_tokens=1024), plan_memory(table_of(shape, "f32"), n_ctx_tokens=1024)
    assert (named.kv_bytes, named.compute_bytes) == (planned.kv_bytes, planned.compute_bytes)
    assert named.weights_bytes == pytest.approx(planned.weights_bytes, rel=0.02)
    out = tmp_path / "q4_k_m.gguf"
    params = lib().llama_model_quantize_default_params()
    params.ftype, params.nthread = FTYPES["q4_k_m"], 1
    with quiet_logs():
        assert lib().llama_model_quantize(os.fsencode(file.path), os.fsencode(out), params) == 0
    tensors = GgufFile.open(out).tensors
    for matrix, wanted in zip(shape.matrices(), types_of(shape, "q4_k_m"), strict=True):
        name = f"{matrix.name}.weight" if matrix.layer is None else f"blk.{matrix.layer}.{matrix.name}.weight"
        # The quantiser keeps these as they are, here F32.
        kept = matrix.name == "per_layer_model_proj" or matrix.name.startswith(("altup_", "laurel_"))
        assert tensors[name].type is (GgmlType.F32 if kept else wanted), name


def test_a_granite_hybrid_is_the_work_of_its_shape(tmp_path):
    file = GgufFile.open(other_base(tmp_path, "granitehybrid")[1])
    sizes = {"n_layers": 4, "n_embd": 64, "n_heads": 4, "n_kv_heads": 2, "n_ff": 128, "n_vocab": 384}
    mamba = {"n_mamba_layers": 3, "mamba_heads": 8, "mamba_head_dim": 16, "mamba_state": 16}
    shape = ModelShape("tiny", "granitehybrid", **sizes, **mamba)
    assert shape.n_params == sum(info.n_values for info in file.tensors.values())
    of_file, of_shape = plan_memory(file, n_ctx_tokens=1024), plan_memory(table_of(shape, "f32"), n_ctx_tokens=1024)
    assert of_file.kv_bytes == of_shape.kv_bytes
    assert of_file.compute_bytes == of_shape.compute_bytes


@pytest.mark.parametrize(
    ("name", "state_bytes"),
    [
        ("lfm2-350m", 80 << 10),
        ("qwen3.5-0.8b", 20_201_472),
        ("qwen3.5-4b", 52_690_944),
        ("granite-4.0-h-350m", 28 * (3 * (1536 + 256) + 128 * 1536) * 4),
    ],
)
def test_states_stand_beside_keys_and_values(name, state_bytes):
    """Layers x (convolution's tokens + what each value head remembers) x 4 bytes, whatever the context."""
    shape = find_shape(name)
    short, long = (plan_memory(table_of(shape, "q4_k_m"), n_ctx_tokens=n).kv_bytes for n in (1024, 2048))
    values = shape.n_kv_values_per_token
    assert long - short == 1024 * values * 2
    assert short - 1024 * values * 2 == state_bytes


def test_a_windowed_file_is_the_work_of_its_shape(tmp_path):
    path = tiny_base(tmp_path / "base.gguf", architecture="gemma3", n_layers=7)
    file = GgufFile.open(path)
    n_vocab = file.tensors["token_embd.weight"].shape[1]
    sizes = {"n_layers": 7, "n_embd": 64, "n_heads": 4, "n_kv_heads": 2, "n_ff": 128, "n_vocab": n_vocab}
    shape = ModelShape("tiny", "gemma3", **sizes, qk_norm=True, post_norms=True, window_tokens=WINDOW_TOKENS)
    assert shape.n_params == sum(info.n_values for info in file.tensors.values())
    for n_tokens in (10, 1000):
        works = Workload.of_file(file), Workload.of_shape(shape, "f32")
        assert len({work.context_bytes(n_tokens) for work in works}) == 1


def test_an_untied_embedding_is_not_streamed():
    untied = Workload.of_shape(find_shape("llama-3.1-8b"), "q8_0")
    embedding = 4096 * 128256 // 32 * 34
    assert untied.file_bytes - untied.streamed_bytes == pytest.approx(embedding, rel=0.01)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("llama3.2:1b", "llama-3.2-1b"),
        ("deepseek-r1:8b", "llama-3.1-8b"),
        ("gemma-3-270m-it", "gemma-3-270m"),
    ],
)
def test_names_are_known_in_every_spelling(spelling, name):
    assert match_shape(spelling).name == name


def test_an_unknown_model_is_met_with_the_nearest():
    with pytest.raises(InputError) as caught:
        find_shape("llama-3.2-2b")
    assert "llama-3.2-1b" in str(caught.value)
