"""Adapters' updates by our kernels: against numpy for every type and CPU variant, and inside llama.cpp against its own.

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
from build_gguf import tiny_adapter, tiny_base
from build_kernels import HERE, arm_command, quantised
from gguf import GGMLQuantizationType as Type
from gguf import quants
from slm_edge.benchmarks.made.random_adapter import write_random_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.llama.binding import MEASURED_ON
from slm_edge.edge.prompt_kernels.build import _compilers, compile_library

SCALE = 0.7
WEIGHTS = (None, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)
# Below, at and above whole vectors and blocks, also more of them than one
RANKS = (1, 2, 7, 14, 16, 17, 32, 40, 64, 130)
# Values, rows, columns
SHAPES = ((96, 17, 5), (160, 31, 1), (288, 16, 33))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not HERE or next(_compilers(), None) is None:
        pytest.skip("no C++ compiler here, or no kernels for this kind of CPU")
    out = tmp_path_factory.mktemp("kernels") / "prompt_kernels.so"
    compile_library(out)
    return out


@pytest.fixture(scope="module")
def updates(library):
    """`prompt_kernels_update` of the library."""
    loaded = ctypes.CDLL(str(library))
    loaded.prompt_kernels_variant.restype = ctypes.c_char_p
    update = loaded.prompt_kernels_update
    update.restype = ctypes.c_bool
    pointer, number = ctypes.c_void_p, ctypes.c_int
    update.argtypes = [
        *(ctypes.c_char_p, number, pointer, number, pointer, number, pointer, number, number, number),
        *(ctypes.c_float, pointer, number, pointer, ctypes.c_bool),
    ]

    def run(variant, case, by_tiles, columns=slice(None)):
        if loaded.prompt_kernels_variant(variant.encode()) is None:
            pytest.skip(f"this CPU or compiler has no {variant}")
        x, out = (np.ascontiguousarray(array[columns]) for array in (case.x, case.base))
        w, a, b = (array.ctypes.data for array in (case.w, case.a, case.b))
        sizes = case.x.shape[1], case.rank, case.base.shape[1]
        types = case.type, w, case.type_a, a, case.type_b, b
        done = update(variant.encode(), *types, *sizes, SCALE, x.ctypes.data, len(x), out.ctypes.data, by_tiles)
        assert done
        return out

    return run


class Case:
    """Random matrices as stored, and what numpy makes of them.

    Args:
        type: of the product's weights; None: the update is added to what stands there.
    """

    def __init__(self, type, type_a, rank, n_values, n_rows, n_columns):
        rng = np.random.default_rng([rank, n_values])

        def normal(*shape):
            return rng.standard_normal(shape).astype(np.float32)

        self.rank, self.type, self.type_a = rank, int(type or 0), type_a
        self.type_b = Type.F16 if type_a is Type.Q8_0 and rank % 32 else type_a
        self.a = quants.quantize(normal(rank, n_values), type_a)
        self.b = quants.quantize(normal(n_rows, rank), self.type_b)
        self.x, self.base = normal(n_columns, n_values) * 3, normal(n_columns, n_rows)
        self.w = quants.quantize(normal(n_rows, n_values), type) if type else np.zeros(1, np.float32)
        a, b = (quants.dequantize(*m).astype(np.float64) for m in ((self.a, type_a), (self.b, self.type_b)))
        self.want = SCALE * self.x.astype(np.float64) @ a.T @ b.T
        if type is None:
            self.want += self.base
        else:
            self.want += self.x.astype(np.float64) @ quants.dequantize(self.w, type).astype(np.float64).T

    def check(self, found, by_tiles):
        error = np.abs(found - self.want)
        if by_tiles:  # x, A, A x and B are rounded to bytes.
            expected = 3 * np.sqrt(self.x.shape[1]) * (SCALE * np.sqrt(self.rank) + (self.type > 0))
            assert np.sqrt((error**2).mean()) <= 0.015 * expected
        else:
            assert error.max() <= 1e-5 * np.abs(self.want).max()


def cases(*types):
    for type in types:
        for type_a in (Type.F32, Type.F16, Type.Q8_0):
            for rank in RANKS:
                for shape in SHAPES:
                    yield Case(type, type_a, rank, *shape)


@pytest.mark.parametrize("variant", HERE)
def test_few_columns_are_those_of_numpy_in_floats(updates, variant):
    for case in cases(None):
        case.check(updates(variant, case, False), False)


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("type", WEIGHTS, ids=lambda type: type.name if type else "added")
def test_many_columns_are_those_of_numpy_in_bytes(updates, variant, type):
    if (variant, type) == ("avx2", Type.Q8_0):
        pytest.skip("this variant leaves Q8_0 to llama.cpp")
    for case in cases(type):
        case.check(updates(variant, case, True), True)


@pytest.mark.parametrize("variant", HERE)
@pytest.mark.parametrize("by_tiles", [False, True])
def test_a_column_is_the_same_bits_in_any_company(updates, variant, by_tiles):
    """So guesses and chunks of a prompt give what one token after the other, or another cut, gives."""
    for type_a in (Type.F16, Type.Q8_0):
        for rank in (14, 16, 64):
            case = Case(Type.Q4_1 if by_tiles else None, type_a, rank, 96, 31, 37)
            whole = updates(variant, case, by_tiles)
            for cut in (slice(0, 1), slice(3, 8), slice(20, 37)):
                assert np.array_equal(updates(variant, case, by_tiles, cut), whole[cut])


def test_updates_on_arm_are_those_of_numpy(tmp_path, monkeypatch):
    run = arm_command(tmp_path, monkeypatch)
    for type, by_tiles in ((None, False), (None, True), (Type.Q4_1, True), (Type.Q5_0, True)):
        for type_a in (Type.F32, Type.F16, Type.Q8_0):
            for rank in (1, 14, 16, 64):
                case = Case(type, type_a, rank, *SHAPES[0])
                size = [case.type, case.x.shape[1], case.base.shape[1], len(case.x), rank]
                size += [int(type_a), case.a.nbytes, int(case.type_b), case.b.nbytes, int(by_tiles)]
                sent = (case.x, case.a, case.b, case.base if type is None else case.w)
                words = [*run, *(str(int(n)) for n in size)]
                done = subprocess.run(words, input=b"".join(array.tobytes() for array in sent), capture_output=True)
                assert done.returncode == 0, done.stderr
                case.check(np.frombuffer(done.stdout, np.float32).reshape(case.base.shape), by_tiles)


CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from slm_edge.edge.llama import binding as kernels
kernels.LIBRARY = Path(sys.argv[1])
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
out = {"kernels": kernels.prompt_kernels().text, "logits": [], "counts": []}
count = lambda: kernels._library.prompt_kernels_updates() if kernels._library else 0
def decode(context, n, at_once):
    before = count()
    context.clear()
    for i in range(0, n, at_once):
        context.decode([t * 7 % 250 for t in range(i, min(i + at_once, n))], i)
    out["logits"].append(np.array(context.logits_view()).reshape(-1).tolist())
    out["counts"].append(count() - before)
# Each node by itself, as an observer of nodes or a backend for some of them cuts a graph
plain = kernels.lib().llama_context_default_params
look = kernels.lib().ggml_backend_sched_eval_callback(lambda node, asked, data: True)
def in_pieces():
    params = plain()
    params.cb_eval = look
    return params
with Model.load(Path(sys.argv[2]), repack=False) as model:
    first, second = (model.load_adapter(Path(path)) for path in sys.argv[3:5])
    for threads in (1, 2):
        with Context(model, n_ctx_tokens=256, n_batch_tokens=64, n_outputs_max=64, threads=threads) as context:
            for adapters in ([(first, 1.0)], [(first, 0.5), (second, -1.5)], []):
                context.set_adapters(adapters)
                for n, at_once in ((45, 45), (4, 4), (4, 1)):
                    decode(context, n, at_once)
                    # The graph that stands is computed once more, by the other's kernels.
                    with kernels.take_from(False):
                        decode(context, n, at_once)
                    decode(context, n, at_once)
    kernels.lib().llama_context_default_params = in_pieces
    with Context(model, n_ctx_tokens=256, n_batch_tokens=64, n_outputs_max=64, threads=1) as context:
        context.set_adapters([(first, 1.0)])
        for n, at_once in ((45, 45), (4, 4), (4, 1)):
            decode(context, n, at_once)
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base in F32, whose products are llama.cpp's, and two whose are ours from some columns on."""
    folder = tmp_path_factory.mktemp("bases")
    like = tiny_base(folder / "f32.gguf", n_embd=96, n_heads=3, n_kv_heads=3, n_ff=160)
    return {"F32": like} | {
        type.name: quantised(folder / f"{type.name}.gguf", like, type) for type in (Type.Q4_1, Type.Q5_0)
    }


@pytest.mark.parametrize("name", ["F32", "Q4_1", "Q5_0"])
def test_llama_cpp_computes_adapters_with_them(library, bases, name, tmp_path):
    base = bases[name]
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    tiny_adapter(first, base, rank=14, size=0.3)
    write_random_adapter(BaseInfo.open(base), second, rank=32, size=0.5, dtype="q8_0")
    command = [
        sys.executable,
        "-c",
        CHILD,
        *map(str, (library, base, first, second)),
    ]
    asked = "" if platform.machine() in MEASURED_ON else "dotprod"
    done = subprocess.run(command, env={**os.environ, "SLM_EDGE_KERNELS": asked}, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    if out["kernels"].startswith("none"):
        pytest.skip(out["kernels"])
    logits = iter(out["logits"])
    # The last token's, by [threads][adapters][45 at once, 4 at once, 4 one by one][ours, llama.cpp's, ours again]
    found = [[[[np.array(next(logits)) for _ in range(3)] for _ in range(3)] for _ in range(3)] for _ in range(2)]
    in_pieces = [np.array(next(logits)) for _ in range(3)]
    counts = np.array(out["counts"][:54]).reshape(2, 3, 3, 3)
    assert not counts[:, :, :, 1].any() and not counts[:, 2].any(), "off, and without an adapter"
    # Two layers of seven updates for each step, twice for two adapters; with a product of ours they are part of it.
    assert (counts[:, 0, 1:, ::2] >= [[14], [56]]).all() and (counts[:, 1, 1:, ::2] >= [[28], [112]]).all()
    # Of a prompt, alone are the updates of the last layer's one token; those over floats are llama.cpp's.
    assert (counts[:, :, 0] < 7).all()
    for one_thread, two in zip(*found, strict=True):
        for (ours, theirs, again), ours_of_two in zip(one_thread, (step[0] for step in two), strict=True):
            assert np.array_equal(ours, again) and np.array_equal(ours, ours_of_two)
            assert np.abs(ours - theirs).max() < 0.03 * np.ptp(theirs)
    both, alone = found[0][:2], found[0][2][0][0]
    for prompt, at_once, one_by_one in both:
        assert np.abs(prompt[0] - alone).max() > 0.1 * np.ptp(alone), "no effect"
        # llama.cpp's floats by tiles are not those of one token.
        assert name == "F32" or np.array_equal(at_once[0], one_by_one[0]), "4 at once are 4 one by one"
    for (_, theirs, _), cut in zip(both[0], in_pieces, strict=True):
        assert np.abs(cut - theirs).max() < 0.03 * np.ptp(theirs)
    if name == "F32":  # Here llama.cpp rounds nothing to bytes either, only to the adapter's halves.
        for ours, theirs, _ in both[0]:
            assert np.abs(ours - theirs).max() < 3e-3 * np.ptp(theirs)
