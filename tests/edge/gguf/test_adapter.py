"""The adapter validator: good files pass and run in llama.cpp; every malformed file gets a clear error."""

import ctypes
import os
import struct
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from build_child import load_in_child
from build_gguf import ALL, adapter_parts, tiny_adapter, tiny_base, write_gguf
from gguf import GGMLQuantizationType as Ggml
from gguf import GGUFValueType as Kind
from slm_edge.edge.errors import DamagedError, InputError, SlmEdgeError, UnsupportedError
from slm_edge.edge.gguf.adapter import FLOATS, SCALES, check_adapter
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.gguf.families import FAMILIES

HEX = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("untied") / "untied.gguf", tied=False)


@pytest.fixture(scope="module")
def parts(base):
    """Architecture, keys and tensors of a good adapter with two targets."""
    return adapter_parts(base, targets=("attn_q", "ffn_down"), rank=4)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_good_adapters_pass_and_act_in_llama_cpp(tmp_path, architecture):
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture, tied=False)
    plain = tiny_adapter(tmp_path / "a.gguf", base, rank=8, alpha=16, task="sums")
    every = tiny_adapter(tmp_path / "b.gguf", base, targets=(*ALL, "token_embd", "output"), fingerprint=None)
    info = check_adapter(plain, BaseInfo.open(base))
    assert (info.rank, info.alpha, info.n_pairs, info.task_name) == (8, 16.0, 7 * BaseInfo.open(base).n_layers, "sums")
    assert info.fingerprint == BaseInfo.open(base).fingerprint
    assert check_adapter(every, BaseInfo.open(base)).targets[-1] == "output.weight"
    assert check_adapter(every, BaseInfo.open(base)).fingerprint is None
    assert all(float(moved) > 0.01 for moved in load_in_child(base, [plain, every]).values())


def _quantised(values: np.ndarray, kind: Ggml) -> np.ndarray:
    """Blocks made by llama.cpp's own quantiser."""
    if kind in (Ggml.F32, Ggml.F16, Ggml.BF16):
        return gguf.quants.quantize(values, kind)
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, width = values.shape
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((rows, width // n_values * n_bytes), np.uint8)
    pointer = ctypes.POINTER(ctypes.c_float)
    values = np.ascontiguousarray(values, np.float32)
    library.ggml_quantize_chunk(
        int(kind),
        values.ctypes.data_as(pointer),
        out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(width),
        pointer(),
    )
    return out


def test_every_type_that_is_let_in_runs_in_llama_cpp(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", n_embd=256, n_heads=4, n_layers=1, n_ff=256, tied=False)
    targets = ("attn_q", "ffn_up", "token_embd", "output")
    info = BaseInfo.open(base)
    paths = []
    for allowed in (*FLOATS, *SCALES):
        kind = Ggml[allowed.name]
        rank = max(32, gguf.GGML_QUANT_SIZES[kind][0])
        arch, keys, tensors = adapter_parts(base, targets=targets, rank=rank)
        # The rank exceeds no matrix of this base; the output has 286 rows.
        tensors = [(part, _quantised(values, kind), kind) for part, values in tensors]
        paths.append(write_gguf(tmp_path / f"{allowed.name}.gguf", arch, keys, tensors))
        assert check_adapter(paths[-1], info).rank == rank
    moved = load_in_child(base, paths)
    assert {path.stem: result for path, result in moved.items() if result in ("died", "refused", "nan", "0.0")} == {}


def key(name, *value):
    """A change: the key gets this value and type, or is left out."""

    def change(arch, keys, tensors):
        keys = {known: entry for known, entry in keys.items() if known != name}
        return arch, keys | ({name: value} if value else {}), tensors

    return change


def tensor(part, new):
    """A change: tensors whose names end in `part` become `new(name, values)`, a list."""

    def change(arch, keys, tensors):
        out = []
        for name, values in tensors:
            out += new(name, values) if name.endswith(part) else [(name, values)]
        return arch, keys, out

    return change


def put(where, value):
    def new(name, values):
        values = values.copy()
        values[where] = value
        return [(name, values)]

    return new


def retyped(kind):
    def new(name, values):
        return [(name, values.astype(kind))]

    return new


def rank_of_a(n):
    return tensor("attn_q.weight.lora_a", lambda name, values: [(name, values[:n])])


def q8_with_nan(name, values):
    blocks = np.zeros((values.shape[0], values.shape[1] // 32 * 34), np.uint8)
    blocks[:, 1] = 0x7E
    return [(name, blocks, Ggml.Q8_0)]


A, B, Q = ".lora_a", ".lora_b", "blk.0.attn_q.weight"
DIMS3 = lambda name, values: [(name, np.stack([values, values]))]  # noqa: E731
MALFORMED = {
    # keys: a wrong type aborts llama.cpp's process
    "type missing": (key("general.type"), "general.type is missing"),
    "type is a number": (key("general.type", 1, Kind.UINT32), "general.type is UINT32, not STRING"),
    "a model": (key("general.type", "model", Kind.STRING), "general.type is 'model'"),
    "adapter type missing": (key("adapter.type"), "adapter.type is missing"),
    "a control vector": (key("adapter.type", "control_vector", Kind.STRING), "not 'lora'"),
    "adapter type is a flag": (key("adapter.type", True, Kind.BOOL), "adapter.type is BOOL, not STRING"),
    "architecture missing": (lambda arch, *rest: (None, *rest), "general.architecture is missing"),
    "another architecture": (lambda arch, *rest: ("qwen2", *rest), "'qwen2', the base is 'llama'"),
    "architecture is a number": (key("general.architecture", 3, Kind.UINT32), "architecture is UINT32, not STRING"),
    "alpha missing": (key("adapter.lora.alpha"), "alpha is missing"),
    "alpha is FLOAT64": (key("adapter.lora.alpha", 16.0, Kind.FLOAT64), "alpha is FLOAT64, not FLOAT32"),
    "alpha is UINT32": (key("adapter.lora.alpha", 16, Kind.UINT32), "alpha is UINT32, not FLOAT32"),
    "alpha is text": (key("adapter.lora.alpha", "16", Kind.STRING), "alpha is STRING, not FLOAT32"),
    "alpha is 0": (key("adapter.lora.alpha", 0.0, Kind.FLOAT32), "alpha is 0.0"),
    "alpha is negative": (key("adapter.lora.alpha", -1.0, Kind.FLOAT32), "alpha is -1.0"),
    "alpha is NaN": (key("adapter.lora.alpha", float("nan"), Kind.FLOAT32), "alpha is nan"),
    "alpha is infinite": (key("adapter.lora.alpha", float("inf"), Kind.FLOAT32), "alpha is inf"),
    "alpha is absurd": (key("adapter.lora.alpha", 1e30, Kind.FLOAT32), "within 65504"),
    "task name is a number": (key("adapter.lora.task_name", 1, Kind.INT8), "task_name is INT8, not STRING"),
    "prefix is a list": (key("adapter.lora.prompt_prefix", ["a"], Kind.ARRAY, Kind.STRING), "ARRAY of STRING"),
    "prefix holds a zero byte": (key("adapter.lora.prompt_prefix", "a\0b", Kind.STRING), "without zero bytes"),
    "aLoRA tokens are INT32": (
        key("adapter.alora.invocation_tokens", [5, 6], Kind.ARRAY, Kind.INT32),
        "ARRAY of INT32, not ARRAY of UINT32",
    ),
    "aLoRA tokens are no list": (key("adapter.alora.invocation_tokens", 5, Kind.UINT32), "UINT32, not ARRAY"),
    "aLoRA token out of range": (
        key("adapter.alora.invocation_tokens", [5, 286], Kind.ARRAY, Kind.UINT32),
        "names token 286; the vocabulary has 286",
    ),
    "rank lies": (key("slm_edge.lora.rank", 5, Kind.UINT32), "says 5, the highest rank is 4"),
    "rank is text": (key("slm_edge.lora.rank", "4", Kind.STRING), "rank is STRING, not UINT32"),
    "fingerprint is no hash": (key("slm_edge.base.fingerprint", "abc", Kind.STRING), "not a sha256: 'abc'"),
    "fingerprint of another base": (key("slm_edge.base.fingerprint", HEX, Kind.STRING), "made for another base"),
    # names
    "unexpected suffix": (tensor(A, lambda name, values: [(name[:-7], values)]), "neither .lora_a nor .lora_b"),
    "PEFT's names": (tensor(A, lambda name, values: [(name.replace(A, ".lora_A"), values)]), "neither .lora_a nor"),
    "suffix twice": (tensor(A, lambda name, values: [(name + A, values)]), "the base has no such tensor"),
    "a without b": (tensor("q.weight.lora_b", lambda name, values: []), "there is lora_a but no lora_b"),
    "b without a": (tensor("q.weight.lora_a", lambda name, values: []), "there is lora_b but no lora_a"),
    "unknown target": (
        lambda arch, keys, ts: (arch, keys, [(name.replace("blk.1", "blk.9"), values) for name, values in ts]),
        "blk.9.attn_q.weight: the base has no such tensor",
    ),
    "a replaced norm": (
        lambda arch, keys, ts: (arch, keys, [*ts, ("blk.0.attn_norm.weight", np.ones(64, np.float32))]),
        "llama.cpp ignores replaced norms",
    ),
    "a pair on a norm": (
        lambda arch, keys, ts: (
            *(arch, keys),
            [
                *ts,
                ("blk.0.attn_norm.weight.lora_a", np.ones((1, 64), np.float32)),
                ("blk.0.attn_norm.weight.lora_b", np.ones((1, 1), np.float32)),
            ],
        ),
        "the pair would do nothing",
    ),
    "no tensors": (lambda arch, keys, ts: (arch, keys, []), "holds no LoRA pair"),
    # shapes
    "a of another width": (
        tensor(Q + A, lambda name, values: [(name, values[:, :32])]),
        "lora_a has the shape [32, 4]",
    ),
    "b of another height": (tensor(Q + B, lambda name, values: [(name, values[:32])]), "lora_b has the shape [4, 32]"),
    "a transposed": (tensor(Q + A, lambda name, values: [(name, values.T)]), "must be [64, 4]"),
    "ranks differ": (rank_of_a(3), "lora_b's rank 4 it must be [64, 4]"),
    "three dimensions of a": (tensor(Q + A, DIMS3), "has 3 dimensions"),
    "three dimensions of b": (tensor(Q + B, DIMS3), "has 3 dimensions"),
    "four dimensions": (tensor(Q + A, lambda name, values: [(name, values.reshape(2, 1, 2, 64))]), "has 4 dimensions"),
    "rank above the matrix": (
        lambda arch, keys, ts: (
            *(arch, keys | {"slm_edge.lora.rank": (65, Kind.UINT32)}),
            [(Q + A, np.ones((65, 64), np.float32)), (Q + B, np.ones((64, 65), np.float32))],
        ),
        "rank 65 exceeds the matrix",
    ),
    # types
    "F64 crashes at decode": (tensor(A, retyped(np.float64)), "lora_a is F64"),
    "I32 crashes at decode": (tensor(B, retyped(np.int32)), "lora_b is I32"),
    "I8": (tensor(B, retyped(np.int8)), "lora_b is I8"),
    # values
    "NaN in F32": (tensor(Q + A, put((3, 63), np.nan)), f"{Q}.lora_a holds NaN"),
    "infinity in F32": (tensor(Q + B, put((0, 0), -np.inf)), f"{Q}.lora_b holds NaN"),
    "an absurd value": (tensor(Q + B, put((0, 0), 1e30)), "a value beyond 65504"),
    "infinity in F16": (
        tensor(Q + B, lambda name, values: [(name, put((0, 0), np.inf)(name, values.astype(np.float16))[0][1])]),
        "holds NaN",
    ),
    "NaN in BF16": (
        tensor(Q + A, lambda name, values: [(name, np.full((4, 128), 0xFF, np.uint8), Ggml.BF16)]),
        "holds NaN",
    ),
    "NaN in a scale of Q8_0": (tensor(Q + A, q8_with_nan), f"{Q}.lora_a holds NaN"),
    "never trained": (tensor(B, lambda name, values: [(name, values * -0.0)]), "multiplies to zero"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_adapters_are_refused(tmp_path, base, parts, name):
    change, reason = MALFORMED[name]
    arch, keys, tensors = change(parts[0], dict(parts[1]), list(parts[2]))
    path = write_gguf(tmp_path / "bad.gguf", arch, keys, tensors)
    with pytest.raises(InputError) as caught:
        check_adapter(path, BaseInfo.open(base))
    assert reason in str(caught.value)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)


def test_without_the_check_llama_cpp_dies(tmp_path, base, parts, untied):
    paths = []
    for name in ("alpha is FLOAT64", "architecture is a number", "three dimensions of a", "I32 crashes at decode"):
        arch, keys, tensors = MALFORMED[name][0](parts[0], dict(parts[1]), list(parts[2]))
        paths.append(write_gguf(tmp_path / f"{len(paths)}.gguf", arch, keys, tensors))
    paths.append(tiny_adapter(tmp_path / "embedding.gguf", untied, targets=("token_embd",), fingerprint=None))
    assert load_in_child(base, paths) == dict.fromkeys(paths, "died")


def test_all_faults_are_named_at_once(tmp_path, base, parts):
    arch, keys, tensors = parts
    for name in ("alpha is text", "F64 crashes at decode", "NaN in F32", "a replaced norm", "type missing"):
        arch, keys, tensors = MALFORMED[name][0](arch, dict(keys), list(tensors))
    with pytest.raises(InputError) as caught:
        check_adapter(write_gguf(tmp_path / "bad.gguf", arch, keys, tensors), BaseInfo.open(base))
    problems = "\n".join(caught.value.problems)
    assert all(part in problems for part in ("STRING, not FLOAT32", "is F64", "replaced norms", "general.type is"))


def test_embedding_and_head_need_an_output_matrix_of_their_own(tmp_path, base, untied):
    for target, reason in (("token_embd", "llama.cpp would abort"), ("output", "no output matrix of its own")):
        path = tiny_adapter(tmp_path / "x.gguf", untied, targets=("attn_q", target), fingerprint=None)
        check_adapter(path, BaseInfo.open(untied))
        with pytest.raises(InputError, match=reason):
            check_adapter(path, BaseInfo.open(base))


def test_embedding_pairs_lie_the_other_way_round(tmp_path, untied):
    arch, keys, tensors = adapter_parts(untied, targets=("token_embd",), rank=4)
    (a_name, a), (b_name, b) = tensors
    for wrong in ([(a_name, a.T), (b_name, b)], [(a_name, a), (b_name, b.T)], [(a_name, a[:, :2]), (b_name, b)]):
        with pytest.raises(InputError, match=r"token_embd.weight.lora_. has the shape"):
            check_adapter(write_gguf(tmp_path / "x.gguf", arch, keys, wrong), BaseInfo.open(untied))


def test_pairs_on_biases_are_refused(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", architecture="qwen2")
    arch, keys, tensors = adapter_parts(base, targets=("attn_q",))
    bias = "blk.0.attn_q.bias"
    tensors += [(f"{bias}.lora_a", np.ones((1, 64), np.float32)), (f"{bias}.lora_b", np.ones((1, 1), np.float32))]
    with pytest.raises(InputError, match="applies no LoRA to this tensor"):
        check_adapter(write_gguf(tmp_path / "x.gguf", arch, keys, tensors), BaseInfo.open(base))


def test_unequal_ranks_dropped_dimensions_and_alignment_are_fine(tmp_path, base, parts):
    arch, keys, tensors = parts
    rank1 = [(name, values[:1] if name.endswith(A) else values[:, :1]) for name, values in tensors if "attn_q" in name]
    mixed = rank1 + [row for row in tensors if "ffn_down" in row[0]]
    # ggml's own writer drops trailing dimensions of 1, as in lora_a of rank 1.
    dropped = [(name, values[0] if name.endswith(A) and "attn_q" in name else values) for name, values in mixed]
    paths = [
        write_gguf(tmp_path / "mixed.gguf", arch, keys, mixed),
        write_gguf(tmp_path / "dropped.gguf", arch, keys, dropped),
        write_gguf(tmp_path / "wide.gguf", arch, keys, mixed, alignment_bytes=128),
        write_gguf(tmp_path / "narrow.gguf", arch, keys, mixed, alignment_bytes=8),
    ]
    for path in paths:
        assert check_adapter(path, BaseInfo.open(base)).rank == 4
    moved = load_in_child(base, paths)
    assert len(set(moved.values())) == 1 and float(moved[paths[0]]) > 0.01


def test_the_wrong_base_is_named_with_both_fingerprints(tmp_path, base):
    other = tiny_base(tmp_path / "other.gguf", seed=9)
    path = tiny_adapter(tmp_path / "x.gguf", other)
    with pytest.raises(InputError) as caught:
        check_adapter(path, BaseInfo.open(base))
    assert BaseInfo.open(base).fingerprint in str(caught.value)
    assert BaseInfo.open(other).fingerprint in str(caught.value)


def test_broken_containers(tmp_path, base):
    good = tiny_adapter(tmp_path / "good.gguf", base, rank=4, targets=("attn_q",))
    info = BaseInfo.open(base)
    data = good.read_bytes()
    bad = tmp_path / "bad.gguf"
    for damaged, error in (
        (data[:-1000], DamagedError),
        (data[:40], DamagedError),
        (data[:4] + struct.pack("<I", 1) + data[8:], UnsupportedError),
        (data[:4] + struct.pack(">I", 3) + data[8:], UnsupportedError),
        (data[:8] + struct.pack("<Q", 1 << 62) + data[16:], DamagedError),
        (data[:16] + struct.pack("<Q", 1 << 62) + data[24:], DamagedError),
        (b"PK\3\4" + data[4:], InputError),
        (b"", InputError),
    ):
        bad.write_bytes(damaged)
        with pytest.raises(error):
            check_adapter(bad, info)
    with pytest.raises(InputError, match="no such file"):
        check_adapter(tmp_path / "none.gguf", info)


def _mutations(data: bytes, n: int) -> list[bytes]:
    """Bit flips in the header and anywhere, truncations, swapped types and small numbers, repeated pieces."""
    rng = np.random.default_rng(20261124)
    header = data.index(b"blk.") + 1200
    out = []
    for i in range(n):
        new = bytearray(data)
        kind = i % 5
        if kind == 0:
            for _ in range(rng.integers(1, 4)):
                new[rng.integers(4, header)] ^= 1 << rng.integers(8)
        elif kind == 1:
            new[rng.integers(len(new))] ^= 1 << rng.integers(8)
        elif kind == 2:
            new = new[: rng.integers(len(new))]
        elif kind == 3:
            # Types, dimensions and small lengths are little numbers.
            small = [at for at in range(24, header) if new[at] in range(1, 64) and new[at + 1 : at + 4] == b"\0\0\0"]
            new[small[rng.integers(len(small))]] = int(rng.integers(0, 40))
        else:
            start, length = int(rng.integers(24, header)), int(rng.integers(1, 64))
            new[start:start] = new[start : start + length]
        out.append(bytes(new))
    return out


def test_no_mutated_adapter_that_passes_kills_llama_cpp(tmp_path, base):
    good = tiny_adapter(tmp_path / "good.gguf", base, rank=2, targets=("attn_q", "attn_k"))
    info = BaseInfo.open(base)
    accepted = []
    # The long form: SLM_EDGE_MUTATIONS=20000
    n = int(os.environ.get("SLM_EDGE_MUTATIONS", "600"))
    for i, data in enumerate(_mutations(good.read_bytes(), n)):
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(data)
        try:
            check_adapter(path, info)
        except SlmEdgeError:
            path.unlink()
        else:
            accepted.append(path)
    assert n / 20 < len(accepted) < n * 2 / 3
    fates = load_in_child(base, accepted)
    assert [path.name for path, fate in fates.items() if fate in ("died", "refused", "nan")] == []
