"""Checks a GGUF LoRA adapter against its base before the C library sees it.

    info = check_adapter("math.gguf", BaseInfo.open("base.gguf"))
    info.rank, info.n_pairs

llama.cpp aborts the process on keys of a wrong type, crashes at the first decode on tensors of a wrong type or
number of dimensions, and takes NaN, pairs without effect and adapters of another base in silence. Each of these
is an error here, and all faults of a file are named at once. How it computes: y = W x + (alpha / rank) B (A x),
`lora_a` is A and `lora_b` is B; the token embedding's pair is the other way round (src/llama-adapter.cpp there).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .base import BaseInfo
from .file import GgufFile, TensorInfo, ValueType
from .types import GgmlType

# As llama.cpp's converter writes it
BASE_MODEL_KEY: Final = "general.base_model.0.name"
FINGERPRINT_KEY: Final = "slm_edge.base.fingerprint"  # STRING, hex: BaseInfo.fingerprint of the base
ANOTHER_BASE: Final = "it was made for another base"
ALIKE_SHOWN: Final = 1
BASE_NAME_KEY: Final = "slm_edge.base.name"  # STRING
RANK_KEY: Final = "slm_edge.lora.rank"  # UINT32, the highest rank in the file
SOURCE_SHA256_KEY: Final = "slm_edge.source.sha256"  # STRING, hex: of the PEFT adapter_model.safetensors
ALPHA_KEY: Final = "adapter.lora.alpha"  # FLOAT32
TASK_NAME_KEY: Final = "adapter.lora.task_name"  # STRING
PROMPT_PREFIX_KEY: Final = "adapter.lora.prompt_prefix"  # STRING
ALORA_TOKENS_KEY: Final = "adapter.alora.invocation_tokens"  # ARRAY of UINT32

_BLOCK_MATRIX: Final = re.compile(r"blk\.\d+\.(.+)\.weight")
# Convolutions and tables, which no architecture multiplies through the LoRA path
_NEVER: Final = re.compile(r"conv|ssm_[ad]$|_norm|_scale$")
_EXPERTS: Final = "_exps"
_EMBEDDING: Final = "token_embd.weight"
_OUTPUT: Final = "output.weight"


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter that passed every check.

    Attributes:
        rank: the highest of its pairs.
        alpha: llama.cpp scales each pair by alpha / its rank.
        alora_tokens: the invocation tokens of an activated LoRA; empty for a plain one.
        fingerprint: of the base it was made for, equal to the base's; None when the file does not say.
        targets: names of the base's tensors that it changes.
    """

    path: Path
    rank: int
    alpha: float
    n_pairs: int
    size_bytes: int
    task_name: str | None
    prompt_prefix: str | None
    alora_tokens: tuple[int, ...]
    fingerprint: str | None
    targets: tuple[str, ...]


def check_adapter(path: str | os.PathLike[str], base: BaseInfo) -> AdapterInfo:
    """Checks everything in an adapter file: keys, pairs, shapes, types, values, and that it belongs to `base`.

    Memory stays at a few MiB whatever the adapter's size.

    Raises:
        InputError: it is no adapter for this base; `problems` has every fault.
        DamagedError: the container is broken.
        UnsupportedError: the container has a version or tensor type that is not known.
    """
    file = GgufFile.open(path)
    faults: list[str] = []
    alpha = _check_keys(file, base, faults)
    pairs = _pairs(file, faults)
    ranks = [_check_pair(file, base, target, pair, faults) for target, pair in pairs.items()]
    rank = max(ranks, default=0)
    stated = file.metadata.get(RANK_KEY)
    if stated is not None and stated.type is ValueType.UINT32 and stated.value != rank and not faults:
        faults.append(f"{RANK_KEY} says {stated.value}, the highest rank is {rank}")
    _check_values(file, pairs, faults)
    if faults:
        problems = _grouped(faults)
        raise InputError(f"cannot be used as an adapter for {base.file.path.name}", where=file.path, problems=problems)
    return AdapterInfo(
        path=file.path,
        rank=rank,
        alpha=alpha,
        n_pairs=len(pairs),
        size_bytes=file.size_bytes,
        task_name=file.get(TASK_NAME_KEY),
        prompt_prefix=file.get(PROMPT_PREFIX_KEY),
        alora_tokens=tuple(file.get(ALORA_TOKENS_KEY, ())),
        fingerprint=file.get(FINGERPRINT_KEY),
        targets=tuple(pairs),
    )


def _check_keys(file: GgufFile, base: BaseInfo, faults: list[str]) -> float:
    """Checks every key that means something here or to llama.cpp; gives alpha."""
    kind = _text(file, "general.type", faults, needed=True)
    if kind not in (None, "adapter"):
        faults.append(f"general.type is {kind!r}, not 'adapter': this is another kind of GGUF file")
    kind = _text(file, "adapter.type", faults, needed=True)
    if kind not in (None, "lora"):
        faults.append(f"adapter.type is {kind!r}, not 'lora'")
    architecture = _text(file, "general.architecture", faults, needed=True)
    if architecture not in (None, base.architecture):
        faults.append(f"it is made for the architecture {architecture!r}, the base is {base.architecture!r}")
    for key in ("general.name", TASK_NAME_KEY, PROMPT_PREFIX_KEY):
        _text(file, key, faults)
    _check_provenance(file, base, faults)
    _check_alora(file, base, faults)
    return _check_alpha(file, faults)


def _grouped(faults: list[str]) -> list[str]:
    """The faults, those that many blocks share in one line: an adapter of another model has one for each matrix."""
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        kind = re.sub(r"^(?:blk\.\d+\.)?[\w.]+: (?=the base has no such tensor)", "", fault)
        kinds.setdefault(re.sub(r"\bblk\.\d+\.", "blk.*.", kind), []).append(fault)
    lines = [
        line
        for alike in kinds.values()
        for line in (alike if len(alike) <= ALIKE_SHOWN else [f"{alike[0]} ({len(alike) - 1} more like this)"])
    ]
    first = [line for line in lines if line.startswith(ANOTHER_BASE)]
    if not first or len(lines) <= len(first) + 2:
        return lines
    rest = [line for line in lines if line not in first]
    return [*first, rest[0], f"{len(rest) - 1} more faults that follow from it"]


def _text(file: GgufFile, key: str, faults: list[str], needed: bool = False) -> str | None:
    entry = file.metadata.get(key)
    if entry is None:
        if needed:
            faults.append(f"the key {key} is missing")
        return None
    if entry.type is not ValueType.STRING:
        faults.append(f"{key} is {_type_name(entry.type, entry.element_type)}, not STRING")
        return None
    value = str(entry.value)
    if "\0" in value or any("\udc80" <= letter <= "\udcff" for letter in value):
        faults.append(f"{key} is not UTF-8 text without zero bytes")
        return None
    return value


def _type_name(kind: ValueType, element: ValueType | None) -> str:
    return kind.name if element is None else f"{kind.name} of {element.name}"


def _check_provenance(file: GgufFile, base: BaseInfo, faults: list[str]) -> None:
    base_name = _text(file, BASE_NAME_KEY, faults)
    for key in (FINGERPRINT_KEY, SOURCE_SHA256_KEY):
        value = _text(file, key, faults)
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            faults.append(f"{key} is not a sha256: {value[:80]!r}")
        elif key == FINGERPRINT_KEY and value not in (None, base.fingerprint):
            made_for = f" ({base_name})" if base_name else ""
            faults.append(
                f"{ANOTHER_BASE}: its fingerprint is {value}{made_for}, "
                f"that of {base.file.path.name} is {base.fingerprint} ({base.name})"
            )
    rank = file.metadata.get(RANK_KEY)
    if rank is not None and rank.type is not ValueType.UINT32:
        faults.append(f"{RANK_KEY} is {_type_name(rank.type, rank.element_type)}, not UINT32")


def names_another_base(named: str, base: BaseInfo) -> bool:
    """Whether a base's name, as an adapter states it, is neither that of this base nor a part of it, nor around it."""
    known = [_plain(str(name)) for name in (base.name, base.file.get("general.basename", ""), base.file.path.stem)]
    plain = _plain(named)
    return bool(plain) and not any(name in plain or plain in name for name in known if name)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def provenance_note(adapter: str | os.PathLike[str], base: BaseInfo) -> str | None:
    """What to know of an adapter without our fingerprint, as llama.cpp's converter makes them, that names another base.

    The adapter must have passed `check_adapter`.
    """
    file = GgufFile.open(adapter)
    named = file.get(BASE_MODEL_KEY)
    if FINGERPRINT_KEY in file.metadata or not isinstance(named, str) or not names_another_base(named, base):
        return None
    return (
        f"{file.path.name} says that it was made for {named!r}, the base calls itself {base.name!r}: if they are not "
        "the same model, the adapter will not work"
    )


def _check_alora(file: GgufFile, base: BaseInfo, faults: list[str]) -> None:
    tokens = file.metadata.get(ALORA_TOKENS_KEY)
    if tokens is None:
        return
    if tokens.type is not ValueType.ARRAY or tokens.element_type is not ValueType.UINT32:
        faults.append(f"{ALORA_TOKENS_KEY} is {_type_name(tokens.type, tokens.element_type)}, not ARRAY of UINT32")
    elif not tokens.n_values:
        faults.append(f"{ALORA_TOKENS_KEY} is empty; an adapter that is always on has no such key")
    elif max(tokens.value) >= base.n_vocab:
        faults.append(f"{ALORA_TOKENS_KEY} names token {max(tokens.value)}; the vocabulary has {base.n_vocab}")


def _check_alpha(file: GgufFile, faults: list[str]) -> float:
    alpha = file.metadata.get(ALPHA_KEY)
    if alpha is None:
        faults.append(f"the key {ALPHA_KEY} is missing: llama.cpp would leave out the factor alpha / rank")
    elif alpha.type is not ValueType.FLOAT32:
        faults.append(f"{ALPHA_KEY} is {_type_name(alpha.type, alpha.element_type)}, not FLOAT32")
    elif not 0 < alpha.value <= 65504:
        faults.append(f"{ALPHA_KEY} is {alpha.value}; it must be a number above 0 and within 65504")
    else:
        return float(alpha.value)
    return 0.0


def _pairs(file: GgufFile, faults: list[str]) -> dict[str, dict[str, TensorInfo]]:
    """Target name -> {"lora_a": ..., "lora_b": ...}, either of which may be missing."""
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for name, info in file.tensors.items():
        target, _, part = name.rpartition(".")
        if part in ("lora_a", "lora_b"):
            pairs.setdefault(target, {})[part] = info
        elif name.endswith("_norm.weight"):
            faults.append(f"{name}: llama.cpp ignores replaced norms; an adapter can only hold LoRA pairs")
        else:
            faults.append(f"{name}: its name ends in neither .lora_a nor .lora_b")
    if not pairs:
        faults.append("it holds no LoRA pair")
    return pairs


def _check_pair(file: GgufFile, base: BaseInfo, target: str, pair: dict[str, TensorInfo], faults: list[str]) -> int:
    """Checks one pair against its target; returns its rank, 0 when that is not clear."""
    for part, other in (("lora_a", "lora_b"), ("lora_b", "lora_a")):
        if part not in pair:
            faults.append(f"{target}: there is {other} but no {part}")
    for info in pair.values():
        if info.type not in FLOATS and info.type not in SCALES:
            allowed = ", ".join(kind.name for kind in (*FLOATS, *SCALES))
            faults.append(f"{info.name} is {info.type.name}; it can be {allowed}")
    if not _check_target(base, target, faults) or len(pair) < 2:
        return 0
    # Of experts there is a matrix for each, and a pair for each.
    n_in, n_out, *experts = base.tensor_shapes[target]
    a, b = (_dims(pair[part], 2 + len(experts), faults) for part in ("lora_a", "lora_b"))
    if a is None or b is None:
        return 0
    rank = b[0]
    right_a: tuple[int, ...] = (n_in, rank, *experts)
    right_b: tuple[int, ...] = (rank, n_out, *experts)
    if target == _EMBEDDING:
        right_a, right_b = (rank, n_out), (rank, n_in)
    if b != right_b:
        faults.append(f"{target}.lora_b has the shape {list(b)}; with rank {rank} it must be {list(right_b)}")
    if a != right_a:
        faults.append(f"{target}.lora_a has the shape {list(a)}; with lora_b's rank {rank} it must be {list(right_a)}")
    if rank > max(n_in, n_out):
        faults.append(f"{target}: rank {rank} exceeds the matrix of {n_in} x {n_out}")
    return rank


def _check_target(base: BaseInfo, target: str, faults: list[str]) -> bool:
    if target == _OUTPUT and not base.has_output:
        faults.append(
            f"{target}: the base has no output matrix of its own; export the base again with one "
            "(slm-edge export base … --output-weight), then the adapter for that base"
        )
    elif target not in base.tensor_shapes:
        faults.append(f"{target}: the base has no such tensor")
    elif target == _EMBEDDING and not base.has_output:
        faults.append(
            f"{target}: the base uses its embedding as the output matrix too, where llama.cpp would abort on this "
            "pair; export the base again with --output-weight, then the adapter for that base"
        )
    elif target not in (_EMBEDDING, _OUTPUT) and not takes_lora(base, target):
        faults.append(f"{target}: llama.cpp applies no LoRA to this tensor, the pair would do nothing")
    else:
        return True
    return False


def takes_lora(base: BaseInfo, tensor: str) -> bool:
    """Whether llama.cpp multiplies this tensor of a block through its LoRA path."""
    found = _BLOCK_MATRIX.fullmatch(tensor)
    if found is None or found[1] in base.family.matrices:
        return found is not None
    # Whether it does is seen when the adapter is tried (`session/shelf.py`).
    if base.family.proved or _NEVER.search(found[1]):
        return False
    return len(base.tensor_shapes[tensor]) == (3 if found[1].endswith(_EXPERTS) else 2)


def _dims(info: TensorInfo, n_dims: int, faults: list[str]) -> tuple[int, ...] | None:
    # A writer may drop trailing dimensions of 1, or write them; ggml sees no difference.
    shape = (*info.shape, *(1,) * n_dims)[: max(n_dims, len(info.shape))]
    if any(n != 1 for n in shape[n_dims:]):
        faults.append(f"{info.name} has {len(shape)} dimensions, {list(shape)}; a LoRA matrix has {n_dims}")
        return None
    return shape[:n_dims]


def _check_values(file: GgufFile, pairs: dict[str, dict[str, TensorInfo]], faults: list[str]) -> None:
    """Looks for NaN, infinity and huge values in every tensor, and for an adapter that is zero everywhere."""
    zero = True
    for pair in pairs.values():
        part_is_zero = {"lora_a": False, "lora_b": False}
        for part, info in pair.items():
            if info.type not in FLOATS and info.type not in SCALES:
                return
            sane, part_is_zero[part] = sane_and_zero(file, info)
            if not sane:
                faults.append(f"{info.name} holds NaN, infinity or a value beyond 65504")
        zero = zero and any(part_is_zero.values())
    if pairs and zero:
        faults.append("every pair multiplies to zero: the adapter changes nothing (was it saved before training?)")


# Where the F16 scales stand in a block of each quantised type, in bytes (block structs of ggml-common.h).
SCALES: Final[dict[GgmlType, tuple[int, ...]]] = {
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.IQ4_NL: (0,),
    GgmlType.Q2_K: (80, 82),
    GgmlType.Q3_K: (108,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
    GgmlType.IQ4_XS: (0,),
}
# Unsigned type of the same width, and the bits of 65504, F16's largest number (of BF16: the next one below).
# Without their signs, floats order as their bits do; infinity and NaN are above all numbers.
FLOATS: Final[dict[GgmlType, tuple[Any, int]]] = {
    GgmlType.F32: (np.uint32, 0x477FE000),
    GgmlType.F16: (np.uint16, 0x7BFF),
    GgmlType.BF16: (np.uint16, 0x477F),
}
_CHUNK_VALUES: Final = 1 << 20


def sane_and_zero(file: GgufFile, info: TensorInfo) -> tuple[bool, bool]:
    """Whether all values of a tensor are numbers within 65504, and whether all are zero; of blocks, their scales."""
    unsigned, limit = FLOATS.get(info.type, FLOATS[GgmlType.F16])
    sign = unsigned(1 << (8 * np.dtype(unsigned).itemsize - 1))
    largest = max((int((bits & ~sign).max()) for bits in _chunks(file, info, unsigned)), default=0)
    file.release()
    return largest <= limit, largest == 0


def _chunks(file: GgufFile, info: TensorInfo, unsigned: Any) -> Iterator[npt.NDArray[Any]]:
    raw = file.raw(info.name)
    if info.type in FLOATS:
        values = raw.view(unsigned)
        for start in range(0, len(values), _CHUNK_VALUES):
            yield values[start : start + _CHUNK_VALUES]
        return
    block_values, block_bytes = info.type.block
    blocks, step = raw.reshape(-1, block_bytes), _CHUNK_VALUES // block_values
    for start in range(0, len(blocks), step):
        for at in SCALES[info.type]:
            yield np.ascontiguousarray(blocks[start : start + step, at : at + 2]).view(unsigned)
