"""Our products and attention for prompts: against numpy for every variant, and inside llama.cpp, in other processes.

The library is compiled anew from the checkout.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from build_gguf import tiny_base
from build_kernels import HERE, arm_command, quantised
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Type
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.llama.binding import LEAST_COLUMNS, LEAST_OF_PAIRS, MEASURED_ON, prompt_kernels
from slm_edge.edge.prompt_kernels.build import VARIANTS, _compilers, compile_library
from slm_edge.edge.session.exactness import Exactness
from slm_edge.edge.session.speculation import SIZES

TYPES = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)
# Rows of whole and broken numbers of tiles, widths that are no multiple of 64 or 256, columns with and without a tail
SHAPES = ((32, 1, 1), (96, 17, 5), (160, 31, 16), (576, 48, 33), (288, 15, 12), (2080, 16, 20))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library, and the variants in it."""
    if not HERE or next(_compilers(), None) is None:
        pytest.skip("no C++ compiler here, or no kernels for this kind of CPU")
    out = tmp_path_factory.mktemp("kernels") / "prompt_kernels.so"
    return out, compile_library(out)


@pytest.fixture(scope="module")
def library(built):
    return built[0]


class Products:
    """The library's products by themselves, without llama.cpp."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.prompt_kernels_variant.restype = ctypes.c_char_p
        self.library.prompt_kernels_product.restype = ctypes.c_bool
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self.library.prompt_kernels_product.argtypes = [
            *(ctypes.c_char_p, number, pointer, number, number, pointer, number, pointer, pointer)
        ]

    def product(self, variant, type, weights, x):
        """`x @ weights.T` of stored weights; None where this variant does not take the type."""
        n_columns, n_values = x.shape
        out = np.full((n_columns, len(weights)), np.nan, np.float32)
        work = np.zeros(64 + n_values // 32 * 1344, np.uint8)
        arrays = (np.ascontiguousarray(weights), np.ascontiguousarray(x), out, work)
        stored, columns, results, scratch = (array.ctypes.data for array in arrays)
        done = self.library.prompt_kernels_product(
            variant.encode(), int(type), stored, n_values, len(weights), columns, n_columns, results, scratch
        )
        return out if done else None

    def attention(self, variant, q, k, v, mask, scale):
        """Softmax(q k scale + mask) v: q [tokens][heads][values], k and v [cells][shared heads][values] in halves."""
        (n_tokens, n_heads, n_values), (n_cells, n_shared, _) = q.shape, k.shape
        lanes = n_heads // n_shared * 16
        out = np.full(q.shape, np.nan, np.float32)
        work = np.zeros(2 * n_values * lanes + 128 * n_values + 67 * lanes + 1024 + 64, np.float32)
        arrays = [np.ascontiguousarray(array) for array in (q, k, v, mask)] + [out, work]
        sizes = (n_values, n_heads, n_shared, n_tokens, n_cells)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        self.library.prompt_kernels_attention.restype = ctypes.c_bool
        assert self.library.prompt_kernels_attention(variant.encode(), *sizes, ctypes.c_float(scale), *pointers)
        return out


@pytest.fixture(scope="module")
def products(library):
    return Products(library)


@pytest.mark.parametrize("variant", HERE)
def test_what_the_compiler_has_is_built(built, variant, tmp_path):
    """A variant is left out for its options alone, and not where its source is wrong."""
    flags = next(known[variant] for known in VARIANTS.values() if variant in known)
    words = [*next(_compilers()), *flags, "-x", "c++", "-c", os.devnull, "-o", str(tmp_path / "empty.o")]
    has = subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert (variant in built[1]) is has


def runs(products, variant):
    if products.library.prompt_kernels_variant(variant.encode()) is None:
        pytest.skip(f"this CPU or compiler has no {variant}")


def numbers(type, n_values, n_rows, n_columns):
    rng = np.random.default_rng(n_values + n_rows)
    weights = quants.quantize(rng.standard_normal((n_rows, n_values)).astype(np.float32), type)
    x = rng.standard_normal((n_columns, n_values)).astype(np.float32) * rng.uniform(0.01, 100)
    x[0, :32] = 0
    return weights, x


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_products_are_those_of_numpy(products, variant, type):
    runs(products, variant)
    for shape in SHAPES:
        weights, x = numbers(type, *shape)
        found = products.product(variant, type, weights, x)
        if found is None:
            assert (variant, type) == ("avx2", Type.Q8_0), "only this one has no room for the sums"
            return
        check(found, type, weights, x)


def check(found, type, weights, x):
    """Against numpy: activations in bytes, a scale for each 32; weights as the format defines them."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    rounded = np.rint(blocks.astype(np.float64) * inverse) * (largest / np.float32(127)).astype(np.float64)
    rounded = rounded.reshape(x.shape)
    values = quants.dequantize(weights, type).astype(np.float64)
    bound = np.abs(rounded) @ np.abs(values).T * 1e-6 + 1e-30
    assert (np.abs(found - rounded @ values.T) <= bound).all(), x.shape
    # And of what was meant, with whole numbers up to 127 in place of floats
    assert np.abs(found - x.astype(np.float64) @ values.T).max() <= 0.02 * np.abs(found).max() + 1e-30


def test_products_on_arm_are_those_of_numpy(tmp_path, monkeypatch):
    run = arm_command(tmp_path, monkeypatch)
    for type in TYPES:
        for shape in SHAPES:
            weights, x = numbers(type, *shape)
            size = [str(int(n)) for n in (type, *shape)]
            done = subprocess.run([*run, *size], input=x.tobytes() + weights.tobytes(), capture_output=True)
            assert done.returncode == 0, done.stderr
            check(np.frombuffer(done.stdout, np.float32).reshape(len(x), -1), type, weights, x)
    for shape in ATTENTIONS:
        *arrays, scale = queries(*shape)
        data = b"".join(array.tobytes() for array in arrays)
        done = subprocess.run([*run, "attention", *map(str, shape), str(scale)], input=data, capture_output=True)
        assert done.returncode == 0, done.stderr
        check_attention(np.frombuffer(done.stdout, np.float32).reshape(arrays[0].shape), *arrays, scale)


@pytest.mark.parametrize("variant", HERE)
def test_a_result_depends_on_its_row_and_column_alone(products, variant):
    """So a prompt's bits do not follow from how it was cut, which threads took what, or where the matrix ends."""
    runs(products, variant)
    weights, x = numbers(Type.Q5_1, 160, 31, 37)
    whole = products.product(variant, Type.Q5_1, weights, x)
    for n in (1, 4, 7, 15, 16):
        assert np.array_equal(products.product(variant, Type.Q5_1, weights, x[n:]), whole[n:])
        assert np.array_equal(products.product(variant, Type.Q5_1, weights[n:], x[:n]), whole[:n, n:])


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_the_largest_sums_have_room(products, variant, type):
    runs(products, variant)
    head = 4 if type in (Type.Q4_1, Type.Q5_1) else 2
    for byte in (0xFF, 0x80, 0x7F, 0x00):
        weights = np.full((3, 3 * GGML_QUANT_SIZES[type][1]), byte, np.uint8)
        # Scale and offset 1.0 in F16
        weights.reshape(9, -1)[:, :head] = [0x00, 0x3C] * (head // 2)
        x = np.array([[1.0], [-1.0]], np.float32) * np.ones((1, 96), np.float32)
        found = products.product(variant, type, weights, x)
        if found is not None:
            check(found, type, weights, x)


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_lost(products, variant, wrong):
    runs(products, variant)
    weights, x = numbers(Type.Q4_1, 96, 17, 5)
    for place in (0, 31, 50, 95):
        broken = x.copy()
        broken[2, place] = wrong
        found = products.product(variant, Type.Q4_1, weights, broken)
        assert not np.isfinite(found[2]).any() and np.isfinite(np.delete(found, 2, axis=0)).all()


# Values, heads, heads of K and V, tokens, cells: whole and broken tiles of tokens, of cells and of the vectors of heads
ATTENTIONS = ((64, 9, 3, 20, 100), (80, 4, 1, 16, 64), (16, 8, 8, 3, 7), (128, 14, 2, 33, 300), (256, 4, 1, 17, 129))


def queries(n_values, n_heads, n_shared, n_tokens, n_cells):
    """Each token sees the cells up to its own, but for the second, which sees a window of five."""
    rng = np.random.default_rng(n_values + n_cells)
    q = rng.standard_normal((n_tokens, n_heads, n_values)).astype(np.float32) * 3
    k, v = rng.standard_normal((2, n_cells, n_shared, n_values)).astype(np.float16)
    mask = np.zeros((n_tokens, n_cells), np.float16)
    for token in range(n_tokens):
        last = n_cells - n_tokens + token
        mask[token, last + 1 :] = -np.inf
        if token == 1:
            mask[token, : max(0, last - 4)] = -np.inf
    return q, k, v, mask, n_values**-0.5


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("shape", ATTENTIONS, ids=str)
def test_attention_is_that_of_numpy(products, variant, shape):
    runs(products, variant)
    q, k, v, mask, scale = queries(*shape)
    check_attention(products.attention(variant, q, k, v, mask, scale), q, k, v, mask, scale)


def check_attention(found, q, k, v, mask, scale):
    group = q.shape[1] // k.shape[1]
    for head in range(q.shape[1]):
        scores = q[:, head].astype(float) @ k[:, head // group].astype(float).T * scale + mask
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        wanted = weights / weights.sum(axis=1, keepdims=True) @ v[:, head // group].astype(float)
        assert np.abs(found[:, head] - wanted).max() <= 2e-5


@pytest.mark.parametrize("variant", HERE)
def test_a_tokens_attention_depends_on_it_alone(products, variant):
    """Not on the tokens beside it, nor on cells that it does not see."""
    runs(products, variant)
    q, k, v, mask, scale = queries(64, 6, 2, 37, 200)
    whole = products.attention(variant, q, k, v, mask, scale)
    for n in (1, 15, 16, 30):
        assert np.array_equal(products.attention(variant, q[n:], k, v, mask[n:], scale), whole[n:])
        assert np.array_equal(products.attention(variant, q[:n], k, v, mask[:n], scale), whole[:n])
    more = [np.concatenate([array, array[:90] + np.float16(9)]) for array in (k, v)]
    hidden = np.concatenate([mask, np.full((37, 90), -np.inf, np.float16)], axis=1)
    assert np.array_equal(products.attention(variant, q, *more, hidden, scale), whole)
    broken = q.copy()
    broken[3, 4, 5] = np.nan
    found = products.attention(variant, broken, k, v, mask, scale)
    assert np.isnan(found[3, 4]).all() and np.isfinite(np.delete(found.reshape(37 * 6, 64), 3 * 6 + 4, axis=0)).all()


CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from slm_edge.edge.llama import binding as kernels
kernels.LIBRARY = Path(sys.argv[1])
if sys.argv[3] == "other release":
    kernels.GGML_RELEASES = frozenset({"0.0.1"})
if sys.argv[3] == "other machine":
    kernels.MEASURED_ON = frozenset()
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.edge.prefix.domain import kv_domain
base = BaseInfo.of(GgufFile.open(Path(sys.argv[2])))
out = {"kernels": kernels.prompt_kernels().text, "counts": []}
count = (lambda: kernels._library.prompt_kernels_count()) if kernels._library else (lambda: 0)
logits = []
with Model.load(Path(sys.argv[2]), repack=False) as model:
    for threads in (1, 2):
        with Context(model, n_ctx_tokens=256, n_batch_tokens=64, n_outputs_max=64, threads=threads) as context:
            for n in (int(sys.argv[4]), int(sys.argv[4]) + 1, 64):
                before = count()
                context.clear()
                context.decode([i * 7 % 250 for i in range(n)], 0)
                logits.append(np.array(context.logits_view()).reshape(-1).tolist())
                out["counts"].append(count() - before)
            out["domain"] = kv_domain(base, context, {}, base.file.path.parent)
out["logits"] = logits
print(json.dumps(out))
"""


def child(library, base, what="", few=8, **environment):
    command = [sys.executable, "-c", CHILD, str(library), str(base), what, str(few)]
    asked = "" if platform.machine() in MEASURED_ON else "dotprod"
    environment = {**os.environ, "SLM_EDGE_KERNELS": asked, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    found["logits"] = [np.array(row) for row in found["logits"]]
    return found


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    like = tiny_base(folder / "f32.gguf", n_embd=96, n_heads=3, n_kv_heads=3, n_ff=160)
    return {type: quantised(folder / f"{type.name}.gguf", like, type) for type in (Type.Q4_1, Type.Q5_0, Type.Q8_0)}


@pytest.mark.parametrize("type", [Type.Q4_1, Type.Q5_0, Type.Q8_0], ids=lambda type: type.name)
def test_llama_cpp_computes_prompts_with_them_and_few_tokens_without(library, bases, type):
    few = (LEAST_OF_PAIRS if type is Type.Q4_1 else LEAST_COLUMNS) - 1
    ours, without = (child(library, bases[type], few=few, **how) for how in ({}, {"SLM_EDGE_KERNELS": "0"}))
    if ours["kernels"].startswith("none"):
        assert "none for this CPU" in ours["kernels"]
        pytest.skip(ours["kernels"])
    assert without["kernels"] == "none: SLM_EDGE_KERNELS=0" and not any(without["counts"])
    # Two layers of seven products each; of the second layer's last ones and of the head only one column is needed.
    assert ours["counts"][0] == ours["counts"][3] == 0
    assert all(n > 7 for n in (*ours["counts"][1:3], *ours["counts"][4:6]))
    for threads in (0, 3):
        apart = [np.abs(ours["logits"][i] - without["logits"][i]).max() for i in range(threads, threads + 3)]
        spread = np.ptp(without["logits"][threads + 2])
        assert apart[0] == 0 and all(0 < most < 0.02 * spread for most in apart[1:])
    # What one thread and two compute
    assert np.array_equal(ours["logits"][1], ours["logits"][4]) and np.array_equal(ours["logits"][2], ours["logits"][5])
    assert ours["domain"] != without["domain"], "prefixes kept by another way of computing would be taken"


def test_without_a_library_for_it_all_is_as_before(library, bases, tmp_path):
    base = bases[Type.Q4_1]
    without = child(library, base, SLM_EDGE_KERNELS="0")
    (tmp_path / "damaged.so").write_bytes(b"no library")
    cases = {
        "none: not built": child(tmp_path / "nowhere.so", base),
        "none: do not load": child(tmp_path / "damaged.so", base),
        "none: no warp on this CPU": child(library, base, SLM_EDGE_KERNELS="warp"),
        "none: written for ggml": child(library, base, "other release"),
        # There it is not asked for to be built.
        "none: not measured": child(tmp_path / "nowhere.so", base, "other machine", SLM_EDGE_KERNELS=""),
    }
    for text, found in cases.items():
        assert found["kernels"].startswith(text), found["kernels"]
        assert found["domain"] == without["domain"]
        for mine, theirs in zip(found["logits"], without["logits"], strict=True):
            assert np.array_equal(mine, theirs)


def test_guesses_stay_below_what_the_kernels_take(bases):
    """Of the sizes of guesses only those below, whatever the base's types; with Q4_1 fewer where the kernels are."""
    joined = prompt_kernels().name is not None
    for type, base in bases.items():
        exactness = Exactness(BaseInfo.open(base), {}, repack=False, flash_attention="auto")
        most = exactness.most_at_once or max(size for size, _ in SIZES)
        assert most < (LEAST_OF_PAIRS if type is Type.Q4_1 and joined else LEAST_COLUMNS)
        assert most >= min(size for size, _ in SIZES)


def test_no_compiler_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler: install"):
        compile_library(tmp_path / "out.so", "x86_64")
    with pytest.raises(RuntimeError, match="no kernels for m68k"):
        compile_library(tmp_path / "out.so", "m68k")
    assert not list(tmp_path.iterdir())
