"""Writes GGUF files as a stream: header, typed keys, tensor table, then each tensor's bytes as they are produced.

    keys = {"general.architecture": text("llama"), "adapter.lora.alpha": float32(32.0)}
    write_gguf(path, keys, [NewTensor.of("blk.0.attn_q.weight.lora_a", array, GgmlType.F32)])

No tensor is held longer than its chunks last, so memory is a chunk, not the model. Layout: the GGUF v3
specification of ggml (docs/gguf.md there), little-endian.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError
from ...edge.gguf.file import MAX_NAME_BYTES, SCALAR_FORMATS, GgufFile, ValueType
from ...edge.gguf.types import GgmlType
from .encode import encode_rows

ALIGNMENT_BYTES: Final = 32
VERSION: Final = 3

Chunk = bytes | bytearray | memoryview | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Value:
    """A metadata value with its exact type. llama.cpp aborts the process on a key of another type.

    Attributes:
        element_type: of an array's elements; None for anything else.
    """

    type: ValueType
    value: Any
    element_type: ValueType | None = None


def text(value: str) -> Value:
    """A STRING."""
    return Value(ValueType.STRING, value)


def uint32(value: int) -> Value:
    """A UINT32."""
    return Value(ValueType.UINT32, value)


def float32(value: float) -> Value:
    """A FLOAT32."""
    return Value(ValueType.FLOAT32, value)


def boolean(value: bool) -> Value:
    """A BOOL."""
    return Value(ValueType.BOOL, value)


def array(element_type: ValueType, values: Sequence[Any]) -> Value:
    """An ARRAY of `element_type`, for example `array(ValueType.UINT32, [1, 2])`."""
    return Value(ValueType.ARRAY, values, element_type)


def keys_of(file: GgufFile) -> dict[str, Value]:
    """The keys of an open file, with their types, ready to be written again."""
    return {key: Value(entry.type, entry.value, entry.element_type) for key, entry in file.metadata.items()}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write.

    Attributes:
        shape: ggml order, the row length first.
        chunks: gives the tensor's bytes in order, in pieces of any size; called once, when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    chunks: Callable[[], Iterable[Chunk]]

    @property
    def size_bytes(self) -> int:
        block_values, block_bytes = self.type.block
        return math.prod(self.shape) // block_values * block_bytes

    @classmethod
    def of(cls, name: str, values: npt.NDArray[Any], type: GgmlType) -> "NewTensor":
        """A tensor from an array in memory, numpy order (rows, row length), encoded when it is written.

        Args:
            type: F32, F16, BF16 or Q8_0.
        """

        def chunks() -> Iterable[Chunk]:
            flat = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
            return [encode_rows(flat, type)]

        return cls(name, values.shape[::-1], type, chunks)

    @classmethod
    def copied(cls, file: GgufFile, name: str, new_name: str | None = None) -> "NewTensor":
        """A tensor of an open file, its bytes as they are."""
        info = file.tensors[name]

        def chunks() -> Iterable[Chunk]:
            raw = file.raw(name)
            step = 8 << 20
            return (raw[at : at + step] for at in range(0, len(raw), step))

        return cls(new_name or name, info.shape, info.type, chunks)


def _string(value: str) -> bytes:
    data = value.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(entry: Value) -> bytes:
    if entry.type is ValueType.ARRAY:
        element = entry.element_type
        if element is None or element is ValueType.ARRAY:
            raise ValueError("an array needs a plain element type")
        head = struct.pack("<IQ", element, len(entry.value))
        if element is ValueType.STRING:
            return head + b"".join(_string(item) for item in entry.value)
        return head + struct.pack(f"<{len(entry.value)}{SCALAR_FORMATS[element]}", *entry.value)
    if entry.type is ValueType.STRING:
        return _string(entry.value)
    return struct.pack("<" + SCALAR_FORMATS[entry.type], entry.value)


def _padding(size: int, alignment: int) -> int:
    return -size % alignment


def _header(keys: Mapping[str, Value], tensors: Sequence[NewTensor], alignment: int) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(keys))]
    for key, entry in keys.items():
        try:
            parts += [_string(key), struct.pack("<I", entry.type), _value(entry)]
        except (struct.error, OverflowError, UnicodeEncodeError) as error:
            raise InputError(f"the key {key!r} cannot be written to a GGUF ({error})") from None
    offset = 0
    names: set[str] = set()
    for tensor in tensors:
        name = tensor.name.encode()
        if not name or len(name) > MAX_NAME_BYTES or tensor.name in names:
            raise ValueError(f"tensor name {tensor.name!r} is empty, longer than {MAX_NAME_BYTES}, or stands twice")
        if tensor.shape[0] % tensor.type.block[0]:
            raise ValueError(f"{tensor.name}: rows of {tensor.shape[0]} don't fill blocks of {tensor.type.name}")
        names.add(tensor.name)
        parts += [_string(tensor.name), struct.pack("<I", len(tensor.shape))]
        parts += [struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, offset)]
        offset += tensor.size_bytes + _padding(tensor.size_bytes, alignment)
    head = b"".join(parts)
    return head + bytes(_padding(len(head), alignment))


def _write_tensor(stream: BinaryIO, tensor: NewTensor, alignment: int, on_bytes: Callable[[int], object]) -> None:
    written = 0
    for chunk in tensor.chunks():
        view = chunk.data.cast("B") if isinstance(chunk, np.ndarray) else memoryview(chunk).cast("B")
        stream.write(view)
        written += len(view)
        on_bytes(len(view))
    if written != tensor.size_bytes:
        raise ValueError(f"{tensor.name}: {written} bytes were given, its shape and type need {tensor.size_bytes}")
    stream.write(bytes(_padding(written, alignment)))


def file_size_bytes(keys: Mapping[str, Value], tensors: Sequence[NewTensor]) -> int:
    """How large the file will be."""
    data = sum(tensor.size_bytes + _padding(tensor.size_bytes, ALIGNMENT_BYTES) for tensor in tensors)
    return len(_header(keys, tensors, ALIGNMENT_BYTES)) + data


def write_gguf(
    path: Path,
    keys: Mapping[str, Value],
    tensors: Sequence[NewTensor],
    on_bytes: Callable[[int], object] = lambda n_bytes: None,
) -> None:
    """Writes a whole file. Use it inside `edge.files.atomic_file`, so that a half-written one is never seen.

    Args:
        keys: in file order; `general.architecture` goes first. `general.alignment` is honoured.
        on_bytes: called with the length of every piece of tensor data written.

    Raises:
        ValueError: a name, shape or number of bytes is not what the format allows (a mistake of the caller).
        InputError: a key's value does not fit its type, or is a text with half a surrogate pair.
    """
    alignment = int(keys["general.alignment"].value) if "general.alignment" in keys else ALIGNMENT_BYTES
    with path.open("wb") as stream:
        stream.write(_header(keys, tensors, alignment))
        for tensor in tensors:
            _write_tensor(stream, tensor, alignment, on_bytes)
