"""What a base GGUF is: its sizes, its tensors, and the fingerprint that ties adapters to it.

info = BaseInfo.open("base.gguf")
info.n_layers, info.has_output, info.fingerprint
"""

import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from ..errors import InputError, UnsupportedError
from .families import FAMILIES, Family
from .file import GgufFile, TensorInfo, ValueType
from .fingerprint import fingerprint
from .types import GgmlType

# ggml's TENSOR_ALIGNMENT: a buffer over mapped memory that starts elsewhere ends the process.
LEAST_ALIGNMENT_BYTES: Final = 32
_COUNTS: Final = (ValueType.UINT32, ValueType.INT32, ValueType.UINT16)


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
        return FAMILIES[self.architecture]

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of what stays the same through every quantisation (see edge/gguf/fingerprint.py)."""
        return fingerprint(self.file, self.architecture)

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
        UnsupportedError: an architecture, a split file or a mixture of experts that is not handled here.
    """
    faults: list[str] = []
    kind = _typed(file, "general.type", ValueType.STRING, faults, default="model")
    if kind not in (None, "model"):
        raise InputError(f"is of the kind {kind!r}, not a base model", where=file.path)
    if file.alignment_bytes % LEAST_ALIGNMENT_BYTES:
        faults.append(
            f"its tensors are aligned to {file.alignment_bytes} bytes; mapped ones need {LEAST_ALIGNMENT_BYTES}"
        )
    architecture = _typed(file, "general.architecture", ValueType.STRING, faults)
    if architecture is None:
        raise InputError("is not a base model", where=file.path, problems=faults)
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedError(
            f"the architecture {architecture!r} is not handled; {', '.join(FAMILIES)} are", where=file.path
        )
    if _number(file, "split.count", faults, default=1) != 1:
        raise UnsupportedError(
            "is one part of a split model", where=file.path, hint="join the parts with llama-gguf-split --merge"
        )
    if _number(file, f"{architecture}.expert_count", faults, default=0):
        raise UnsupportedError("is a mixture of experts; adapters of those are not handled", where=file.path)
    sizes = _sizes(file, architecture, faults)
    n_vocab = _check_tokenizer(file, faults)
    if not faults:
        _check_tensors(file, family, sizes, n_vocab, faults)
    if faults:
        raise InputError("is not a base model that can be run", where=file.path, problems=faults)
    return BaseInfo(
        file=file,
        architecture=architecture,
        name=str(file.get("general.name", file.path.stem)),
        n_layers=sizes["n_layers"],
        n_embd=sizes["n_embd"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        n_ff=sizes["n_ff"],
        n_vocab=n_vocab,
        n_ctx_train_tokens=sizes["n_ctx_train_tokens"],
        has_output="output.weight" in file.tensors,
        tensor_shapes={name: info.shape for name, info in file.tensors.items()},
    )


def _typed(file: GgufFile, key: str, kind: ValueType, faults: list[str], default: Any = None) -> Any:
    """A scalar of one type; a wrong type, or a missing key without a default, is a fault and gives None."""
    entry = file.metadata.get(key)
    if entry is None:
        if default is None:
            faults.append(f"the key {key} is missing")
        return default
    if entry.type is not kind:
        faults.append(f"{key} is {entry.type.name}, not {kind.name}")
        return None
    return entry.value


def _number(file: GgufFile, key: str, faults: list[str], default: int | None = None) -> int:
    """An integer key, of any of the integer types that llama.cpp's writers have used; 0 after a fault."""
    entry = file.metadata.get(key)
    if entry is None:
        if default is None:
            faults.append(f"the key {key} is missing")
        return default or 0
    if entry.type not in _COUNTS:
        faults.append(f"{key} is {entry.type.name}, not UINT32")
        return 0
    return int(entry.value)


def _sizes(file: GgufFile, architecture: str, faults: list[str]) -> dict[str, int]:
    def size(key: str, default: int | None = None, most: int = 1 << 20) -> int:
        before = len(faults)
        value = _number(file, f"{architecture}.{key}", faults, default)
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
        number = _typed(file, key, ValueType.FLOAT32, faults, default=default)
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


def _check_tokenizer(file: GgufFile, faults: list[str]) -> int:
    """Checks the tokenizer's keys; returns the size of the vocabulary."""
    model = _typed(file, "tokenizer.ggml.model", ValueType.STRING, faults)
    _typed(file, "tokenizer.ggml.pre", ValueType.STRING, faults, default="default")
    _typed(file, "tokenizer.chat_template", ValueType.STRING, faults, default="")

    def array(key: str, kind: ValueType, needed: bool) -> int | None:
        entry = file.metadata.get(key)
        if entry is None:
            if needed:
                faults.append(f"the key {key} is missing")
            return None
        if entry.type is not ValueType.ARRAY or entry.element_type is not kind:
            faults.append(f"{key} is not an array of {kind.name}")
            return None
        return entry.n_values

    n_vocab = array("tokenizer.ggml.tokens", ValueType.STRING, True) or 0
    for key, kind, needed in (
        ("tokenizer.ggml.token_type", ValueType.INT32, False),
        ("tokenizer.ggml.scores", ValueType.FLOAT32, model == "llama"),
    ):
        length = array(key, kind, needed)
        if length is not None and length != n_vocab:
            faults.append(f"{key} has {length} values for {n_vocab} tokens")
    array("tokenizer.ggml.merges", ValueType.STRING, model == "gpt2")
    if not faults:
        _check_tokens(file.get("tokenizer.ggml.tokens"), model, faults)
    for key in file.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            token_id = _number(file, key, faults)
            if not 0 <= token_id < max(n_vocab, 1):
                faults.append(f"{key} is {token_id}; the vocabulary has {n_vocab} tokens")
    return n_vocab


def _check_tokens(tokens: list[str], model: str, faults: list[str]) -> None:
    """Refuses vocabularies that end the process: twins at load, an SPM without byte tokens at the first odd byte."""
    if model not in ("gpt2", "llama"):
        faults.append(f"tokenizer.ggml.model is {model!r}; 'gpt2' (BPE) and 'llama' (SPM) are handled")
    known = set(tokens)
    if len(known) < len(tokens):
        twins = [token for token, count in Counter(tokens).items() if count > 1 and token]
        faults += [f"the vocabulary holds {token!r} more than once" for token in twins[:5]]
    if model == "llama":
        missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in known and chr(byte) not in known]
        if missing:
            faults.append(f"the vocabulary has no token for {len(missing)} of the 256 bytes, such as {missing[0]}")


def _check_tensors(file: GgufFile, family: Family, sizes: dict[str, int], n_vocab: int, faults: list[str]) -> None:
    n_embd = sizes["n_embd"]
    expected: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_embd, n_vocab),
        "output_norm.weight": (n_embd,),
    }
    if "output.weight" in file.tensors:
        expected["output.weight"] = (n_embd, n_vocab)
    for layer in range(sizes["n_layers"]):
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
        elif not np.isfinite(file.array(info.name)).all():
            faults.append(f"{info.name} holds NaN or infinity")
