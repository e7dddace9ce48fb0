"""The fingerprint of a base model, by which its adapters know it.

    fingerprint(GgufFile.open("base.gguf"), "llama")

It is the same for every quantisation of one model, because it is taken from what a quantiser leaves
alone: hyper-parameters, tokenizer, tensor names and shapes, and the bytes of the vectors (norms and biases), which
are F32 in all of them. A model whose matrices alone were changed, such as one with a LoRA merged in, keeps it.
"""

import hashlib
import struct
from typing import Final

from .file import GgufFile, MetaValue, ValueType

# Present or not, and as they are, these change nothing that an adapter was trained against.
_NOT_IDENTITY: Final = ("context_length", "vocab_size")
_NOT_IDENTITY_TENSORS: Final = ("output.weight", "rope_freqs.weight")


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
