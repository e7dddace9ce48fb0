"""What a base GGUF is: its sizes, its tensors, and the fingerprint that ties adapters to it.

    info = BaseInfo.open("base.gguf")
    info.n_layers, info.has_output, info.fingerprint

The fingerprint is the same for every quantisation of one model, because it is taken from what a quantiser leaves
alone: hyper-parameters, tokenizer, tensor names and shapes, and the bytes of the vectors (norms and biases), which
are F32 in all of them. A model whose matrices alone were changed, such as one with a LoRA merged in, keeps it.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from ..errors import InputError, UnsupportedError
from .base_keys import check_keys, check_tokenizer, check_windows, number_of, typed, unproved_keys, unproved_tokenizer
from .families import FAMILIES, Family
from .file import GgufFile, MetaValue, TensorInfo, ValueType
from .types import GgmlType

# Present or not, and as they are, these change nothing that an adapter was trained against.
_NOT_IDENTITY: Final = ("context_length", "vocab_size")
_NOT_IDENTITY_TENSORS: Final = ("output.weight", "rope_freqs.weight")


# ggml's TENSOR_ALIGNMENT: a buffer over mapped memory that starts elsewhere ends the process.
LEAST_ALIGNMENT_BYTES: Final = 32
# Values of a vector that are looked at together, so that a long one takes no memory
_PART_VALUES: Final = 1 << 20
# Types of matrices that were multiplied here; Q8_K and Q8_1 are llama.cpp's own for activations, and end the process.
_PROVED_TYPES: Final = frozenset(
    GgmlType[name]
    for name in (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    )
)
_ACTIVATIONS: Final = (GgmlType.Q8_K, GgmlType.Q8_1)


@dataclass(frozen=True)
class BaseInfo:
    """A base model as adapters see it.

    Attributes:
        n_vocab: entries of the vocabulary.
        n_ctx_train_tokens: the context it was trained for.
        has_output: the head has a matrix of its own; else it shares the token embedding ("tied").
        tensor_shapes: every tensor's shape in ggml order, the row length first.
    """

    file: GgufFile
    architecture: str
    name: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_vocab: int
    n_ctx_train_tokens: int
    has_output: bool
    tensor_shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, file: GgufFile) -> "BaseInfo":
        """Checks an open file and describes it; raises as `check_base` does."""
        return check_base(file)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "BaseInfo":
        """Opens, checks and describes a base; raises as `GgufFile.open` and `check_base` do."""
        return check_base(GgufFile.open(path))

    @property
    def family(self) -> Family:
        """The architecture's row in the table of families."""
        return _family(self.file, self.architecture)

    @property
    def window_ignored(self) -> bool:
        """llama.cpp attends beyond the window that the model was trained with; the context ends there."""
        return self.n_ctx_train_tokens < int(self.file.get(f"{self.architecture}.context_length", 0))

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of what stays the same through every quantisation."""
        return fingerprint(self.file, self.architecture)

    @cached_property
    def unproved(self) -> tuple[str, ...]:
        """What of the file was not tried here: its first load is tried in a child process (`llama/first_load.py`)."""
        types = {info.type for info in self.file.tensors.values()} - _PROVED_TYPES
        keys = unproved_keys(self.file, self.architecture)
        return (
            *(keys if self.family.proved else [f"the architecture {self.architecture}{_with_experts(self.file)}"]),
            *unproved_tokenizer(self.file),
            *(f"tensors of {kind.name}" for kind in sorted(types)),
        )

    def describe(self) -> str:
        """ "llama, 30 layers, width 576, vocabulary 49152, fingerprint 0123456789ab" """
        return (
            f"{self.architecture}, {self.n_layers} layers, width {self.n_embd}, "
            f"vocabulary {self.n_vocab}, fingerprint {self.fingerprint[:12]}"
        )


def check_base(file: GgufFile) -> BaseInfo:
    """Checks that a file is a whole decoder model that the runtime can take, before the C library sees it.

    Raises:
        InputError: it is no model, or keys, tokenizer or tensors are missing or wrong; all faults are named.
        UnsupportedError: what is computed wrongly, or a split file.
    """
    faults: list[str] = []
    kind = typed(file, "general.type", ValueType.STRING, faults, default="model")
    if kind not in (None, "model"):
        raise InputError(f"is of the kind {kind!r}, not a base model", where=file.path)
    if file.alignment_bytes % LEAST_ALIGNMENT_BYTES:
        faults.append(
            f"its tensors are aligned to {file.alignment_bytes} bytes; mapped ones need {LEAST_ALIGNMENT_BYTES}"
        )
    architecture = typed(file, "general.architecture", ValueType.STRING, faults)
    if architecture is None:
        raise InputError("is not a base model", where=file.path, problems=faults)
    family = _family(file, architecture)
    if number_of(file, "split.count", faults, default=1) != 1:
        raise UnsupportedError(
            "is one part of a split model", where=file.path, hint="join the parts with llama-gguf-split --merge"
        )
    n_experts = number_of(file, f"{architecture}.expert_count", faults, default=0)
    if number_of(file, f"{architecture}.expert_used_count", faults, default=0) > n_experts:
        # llama.cpp ends the process.
        faults.append(f"{architecture}.expert_used_count is more than its expert_count, {n_experts}")
    refused = [key for key in family.refused_keys if file.get(f"{architecture}.{key}")]
    if refused:
        raise UnsupportedError(f"its {architecture}.{', '.join(refused)} is not handled here", where=file.path)
    sizes = _sizes(file, architecture, faults) if family.proved else _other_sizes(file, architecture, faults)
    n_vocab = check_tokenizer(file, faults, proved=family.proved)
    if family.proved:
        check_keys(file, architecture, sizes, faults)
        check_windows(file, family, sizes["n_layers"], faults)
    name = typed(file, "general.name", ValueType.STRING, faults, default=file.path.stem)
    n_ctx_tokens = sizes["n_ctx_train_tokens"]
    if not family.proved or "phi" in (name or "").lower():
        from .other_bases import check_silent, computed_tokens

        check_silent(file, architecture, name)
        n_ctx_tokens = computed_tokens(file, architecture, n_ctx_tokens)
    if not faults:
        _check_tensors(file, family, sizes, n_vocab, faults)
    if faults:
        raise InputError("is not a base model that can be run", where=file.path, problems=faults)
    return BaseInfo(
        file=file,
        architecture=architecture,
        name=name,
        n_layers=sizes["n_layers"],
        n_embd=sizes["n_embd"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        n_ff=sizes["n_ff"],
        n_vocab=n_vocab,
        n_ctx_train_tokens=n_ctx_tokens,
        has_output="output.weight" in file.tensors,
        tensor_shapes={name: info.shape for name, info in file.tensors.items()},
    )


def _family(file: GgufFile, architecture: str) -> Family:
    family = FAMILIES.get(architecture)
    # Rows are of dense models: Mixtral's architecture is Llama's.
    if family is not None and not _with_experts(file):
        return family
    from .other_bases import other_family

    return other_family(architecture)


def _with_experts(file: GgufFile) -> str:
    """ " with 8 experts", or "" of a dense model."""
    n_experts = file.get(f"{file.get('general.architecture')}.expert_count", 0)
    return f" with {n_experts} experts" if n_experts else ""


def _other_sizes(file: GgufFile, architecture: str, faults: list[str]) -> dict[str, int]:
    from .other_bases import other_sizes

    return other_sizes(file, architecture, faults)


def _sizes(file: GgufFile, architecture: str, faults: list[str]) -> dict[str, int]:
    def size(key: str, default: int | None = None, most: int = 1 << 20) -> int:
        before = len(faults)
        value = number_of(file, f"{architecture}.{key}", faults, default)
        if len(faults) == before and not 1 <= value <= most:
            faults.append(f"{architecture}.{key} is {value}; 1 to {most} make sense")
        return max(value, 1)

    n_embd, n_heads = size("embedding_length"), size("attention.head_count")
    n_kv_heads = size("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads:
        faults.append(f"{n_heads} attention heads cannot share {n_kv_heads} K/V heads evenly")
    key_length = size("attention.key_length", max(n_embd // n_heads, 1))
    value_length = size("attention.value_length", max(n_embd // n_heads, 1))
    eps = f"{architecture}.attention.layer_norm_rms_epsilon"
    for key, default in ((eps, None), (f"{architecture}.rope.freq_base", 10000.0)):
        number = typed(file, key, ValueType.FLOAT32, faults, default=default)
        if number is not None and not (np.isfinite(number) and number > 0):
            faults.append(f"{key} is {number}")
    return {
        "n_layers": size("block_count", most=1000),
        "n_embd": n_embd,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "n_ff": size("feed_forward_length"),
        "n_ctx_train_tokens": size("context_length", most=1 << 28),
        "head": key_length,
        "n_q": n_heads * key_length,
        "n_k": n_kv_heads * key_length,
        "n_v": n_kv_heads * value_length,
        "n_o": n_heads * value_length,
    }


def _check_tensors(file: GgufFile, family: Family, sizes: dict[str, int], n_vocab: int, faults: list[str]) -> None:
    n_embd = sizes["n_embd"]
    # Of other families the vocabulary may be shorter than the embedding, and norms have other names.
    expected: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_embd, n_vocab),
        "output_norm.weight": (n_embd,),
    }
    if not family.proved:
        given = file.tensors["token_embd.weight"].shape if "token_embd.weight" in file.tensors else (n_embd, n_vocab)
        expected = {"token_embd.weight": given}
    if family.proved and ("output.weight" in file.tensors or family.needs_output):
        expected["output.weight"] = (n_embd, n_vocab)
    for layer in range(sizes["n_layers"] if family.proved else 0):
        for name, dims in family.tensors():
            expected[f"blk.{layer}.{name}"] = tuple(sizes[dim] for dim in dims)
    missing = [name for name in expected if name not in file.tensors]
    faults += [f"the tensor {name} is missing" for name in missing[:8]]
    if len(missing) > 8:
        faults.append(f"{len(missing) - 8} more tensors are missing")
    for name, info in file.tensors.items():
        shape = expected.get(name, info.shape)
        if info.shape != shape:
            faults.append(f"{name} has the shape {info.shape}, not {shape}")
        _check_type(file, info, faults)


def _check_type(file: GgufFile, info: TensorInfo, faults: list[str]) -> None:
    if (info.type.name.startswith("I") and not info.type.name.startswith("IQ")) or info.type is GgmlType.F64:
        faults.append(f"{info.name} is {info.type.name}, which is not a type of weights")
    elif len(info.shape) == 1:
        if info.type is not GgmlType.F32:
            faults.append(f"{info.name} is a vector of {info.type.name}; vectors are F32")
        elif not _is_finite(file, info):
            faults.append(f"{info.name} holds NaN or infinity")
    elif info.type in _ACTIVATIONS:
        faults.append(
            f"{info.name} is {info.type.name}, a type for activations: llama.cpp multiplies by no such matrix"
        )


def _is_finite(file: GgufFile, info: TensorInfo) -> bool:
    values = file.array(info.name)
    return all(np.isfinite(values[at : at + _PART_VALUES]).all() for at in range(0, len(values), _PART_VALUES))


def fingerprint(file: GgufFile, architecture: str) -> str:
    """Hex sha256 of a checked base (`check_base`), whose sizes are there and have the right types."""
    digest = hashlib.sha256(b"slm-edge base fingerprint 1\0")

    def add(label: str, data: bytes) -> None:
        # Lengths keep neighbours apart: ("ab", "c") is not ("a", "bc").
        name = label.encode()
        digest.update(struct.pack("<QQ", len(name), len(data)) + name + data)

    add("architecture", architecture.encode())
    for key, entry in sorted(_hyper_parameters(file, architecture).items()):
        add(key, entry)
    for name in ("model", "pre", "tokens", "token_type", "scores", "merges"):
        meta = file.metadata.get(f"tokenizer.ggml.{name}")
        if meta is not None:
            # Types of elements were checked, so the raw bytes mean the same in every file.
            add(f"tokenizer.{name}", meta.raw)
    for name, info in sorted(file.tensors.items()):
        if name in _NOT_IDENTITY_TENSORS:
            continue
        add(name, struct.pack(f"<{len(info.shape)}Q", *info.shape))
        if len(info.shape) == 1:
            add(f"{name} bytes", file.raw(name).tobytes())
            # The kernel maps up to megabytes around each vector, which would count beside llama.cpp's own map.
            file.release()
    return digest.hexdigest()


def _hyper_parameters(file: GgufFile, architecture: str) -> dict[str, bytes]:
    """Every `{architecture}.*` key with its value, defaults filled in: writers differ in what they leave out."""
    prefix = f"{architecture}."
    found = {key[len(prefix) :]: meta for key, meta in file.metadata.items() if key.startswith(prefix)}
    values = {key: _value_bytes(meta) for key, meta in found.items() if key not in _NOT_IDENTITY}
    heads = found.get("attention.head_count")
    # Lists by layer, and none at all, are those of families that are taken as they are.
    n_heads = 1 if heads is None else max(heads.value) if heads.type is ValueType.ARRAY else int(heads.value)
    head = int(found["embedding_length"].value) // max(n_heads, 1)
    values.setdefault("attention.head_count_kv", struct.pack("<q", n_heads))
    values.setdefault("attention.key_length", struct.pack("<q", head))
    values.setdefault("attention.value_length", struct.pack("<q", head))
    values.setdefault("rope.dimension_count", values["attention.key_length"])
    values.setdefault("rope.freq_base", struct.pack("<d", 10000.0))
    return values


def _value_bytes(meta: MetaValue) -> bytes:
    """A value as bytes, alike for every integer type and every float type."""
    kind = meta.element_type or meta.type
    values = meta.value if meta.type is ValueType.ARRAY else [meta.value]
    if kind is ValueType.STRING:
        return b"\0".join(text.encode("utf-8", errors="surrogateescape") for text in values)
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        return struct.pack(f"<{len(values)}d", *values)
    return b"".join(_integer_bytes(int(value)) for value in values)


def _integer_bytes(value: int) -> bytes:
    # A UINT64 beyond the signed ones has a ninth byte, so that it equals no negative number.
    return struct.pack("<q", value) if value < 1 << 63 else struct.pack("<Q", value) + b"u"
