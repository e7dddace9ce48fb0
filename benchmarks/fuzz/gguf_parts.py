"""A GGUF file as its parts, which may each be damaged and written again, whatever they then say."""

import math
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ...edge.gguf.file import SCALAR_FORMATS, GgufFile, ValueType
from ...edge.gguf.types import GgmlType
from .damage import FLOATS, NUMBERS, TEXTS, damaged_bytes

_STRING: Final = int(ValueType.STRING)
_ARRAY: Final = int(ValueType.ARRAY)
# Of a tensor that is laid out anew
_MOST_VALUES: Final = 1 << 20
_FORMATS: Final = {int(kind): code for kind, code in SCALAR_FORMATS.items()}


@dataclass
class Key:
    """A key; `data` is its value as it stands in the file, an array's with its header."""

    name: bytes
    type: int
    data: bytes


@dataclass
class Row:
    """A row of the tensor table."""

    name: bytes
    shape: list[int]
    type: int
    offset_bytes: int


@dataclass
class Parts:
    """The file; `n_more` is what its header counts beyond the tensors and keys that there are."""

    keys: list[Key]
    rows: list[Row]
    data: bytes
    version: int = 3
    alignment_bytes: int = 32
    n_more: list[int] = field(default_factory=lambda: [0, 0])

    @classmethod
    def read(cls, path: Path) -> "Parts":
        """The parts of a valid file."""
        file = GgufFile.open(path)
        keys = []
        for name, entry in file.metadata.items():
            head = b"" if entry.element_type is None else struct.pack("<IQ", entry.element_type, entry.n_values)
            keys.append(Key(name.encode(), int(entry.type), head + entry.raw))
        rows = [
            Row(name.encode(), list(info.shape), int(info.type), info.offset_bytes - file.data_start_bytes)
            for name, info in file.tensors.items()
        ]
        return cls(keys, rows, path.read_bytes()[file.data_start_bytes :], file.version, file.alignment_bytes)

    def write(self) -> bytes:
        """The bytes of the file."""
        n_tensors, n_keys = (
            _wrapped(n + more) for n, more in zip((len(self.rows), len(self.keys)), self.n_more, strict=True)
        )
        out = bytearray(b"GGUF" + struct.pack("<IQQ", self.version, n_tensors, n_keys))
        for key in self.keys:
            out += _string(key.name) + struct.pack("<I", key.type) + key.data
        for row in self.rows:
            out += _string(row.name) + struct.pack("<I", len(row.shape))
            out += b"".join(struct.pack("<Q", _wrapped(side)) for side in row.shape)
            out += struct.pack("<IQ", row.type, _wrapped(row.offset_bytes))
        out += bytes(-len(out) % self.alignment_bytes)
        return bytes(out + self.data)


def damage(draw: random.Random, parts: Parts, names: Sequence[str], n: int) -> bytes:
    """The bytes of a file with `n` of its parts damaged.

    Args:
        parts: changed in place.
        names: of keys that are worth putting in.
    """
    for _ in range(n):
        way = draw.randrange(20)
        if way <= 11:
            _damage_key(draw, parts, names)
        elif way <= 16:
            _damage_row(draw, parts)
        elif way == 17:
            at = draw.randrange(len(parts.data) // 4) * 4
            value = struct.pack("<f", draw.choice(FLOATS))
            parts.data = parts.data[:at] + value + parts.data[at + 4 :]
        elif way == 18:
            cut = draw.randrange(len(parts.data))
            parts.data = parts.data[:cut] if draw.random() < 0.5 else parts.data + bytes(cut % 5000)
        elif draw.random() < 0.5:
            parts.n_more[draw.randrange(2)] = draw.choice((-1, 1, *NUMBERS))
        else:
            parts.version = draw.choice((0, 1, 2, 4, 2**31, 3 << 24))
    if draw.random() < 0.7:
        _lay_out(parts)
    data = parts.write()
    if draw.random() < 0.08:
        head = len(data) - len(parts.data)
        data = damaged_bytes(draw, data[:head]) + data[head:] if draw.random() < 0.7 else damaged_bytes(draw, data)
    return data


def _damage_key(draw: random.Random, parts: Parts, names: Sequence[str]) -> None:
    key = draw.choice(parts.keys)
    way = draw.randrange(10)
    if way <= 2:
        key.data = _value(draw, key.type)
    elif way == 3:
        key.type = draw.choice([*_FORMATS, _STRING, _ARRAY, 13, 2**32 - 1])
        key.data = key.data if draw.random() < 0.2 else _value(draw, key.type)
    elif way == 4:
        parts.keys.remove(key)
        parts.keys = parts.keys or [key]
    elif way == 5:
        key.name = draw.choice((b"", key.name + b"\0", b"\xff", b"x" * 70000, key.name.upper(), *map(_encoded, names)))
    elif way <= 7:
        kind = draw.choice([*_FORMATS, _STRING, _ARRAY])
        parts.keys.insert(
            draw.randrange(len(parts.keys) + 1), Key(_encoded(draw.choice(names)), kind, _value(draw, kind))
        )
    elif key.type == _ARRAY or way == 8:
        arrays = [one for one in parts.keys if one.type == _ARRAY and len(one.data) >= 12]
        if arrays:
            key = draw.choice(arrays)
            key.data = _damaged_array(draw, key.data)
    else:
        parts.keys.append(Key(key.name, key.type, key.data))


def _damage_row(draw: random.Random, parts: Parts) -> None:
    if not parts.rows:
        return
    row = draw.choice(parts.rows)
    way = draw.randrange(8)
    if way == 0:
        row.type = draw.choice([*map(int, GgmlType), 4, 5, 99, 2**32 - 1])
    elif way == 1:
        row.shape[draw.randrange(len(row.shape))] = draw.choice(NUMBERS)
    elif way == 2:
        row.shape = draw.choice((row.shape[::-1], [*row.shape, 1], row.shape[:-1] or [1], [1] * 5, row.shape * 3))
    elif way == 3:
        row.offset_bytes = draw.choice((*NUMBERS, row.offset_bytes + 32, row.offset_bytes - 32))
    elif way == 4:
        row.name = draw.choice((draw.choice(parts.rows).name, b"", b"x" * 64, row.name[:-1], row.name + b"\0", b"\xfe"))
    elif way == 5:
        parts.rows.remove(row)
    elif way == 6:
        # A further tensor of nothing but what is there
        parts.rows.append(Row(b"more.weight", [1], 0, len(parts.data)))
        parts.data += bytes(32)
    else:
        other = draw.choice(parts.rows)
        row.name, other.name = other.name, row.name


def _lay_out(parts: Parts) -> None:
    """Puts the tensors one behind the other as their types and shapes have it, so that a damaged row is looked at."""
    at = 0
    for row in parts.rows:
        if row.type not in map(int, GgmlType):
            return
        values, size_bytes = GgmlType(row.type).block
        n_values = math.prod(row.shape)
        if not 0 < n_values < _MOST_VALUES:
            return
        row.offset_bytes = at
        at += -(-(n_values // values * size_bytes) // parts.alignment_bytes) * parts.alignment_bytes
    parts.data = parts.data[:at] + bytes(max(0, at - len(parts.data)))


def _value(draw: random.Random, kind: int, depth: int = 0) -> bytes:
    if kind == _STRING:
        return _string(_encoded(draw.choice(TEXTS + WORDS)))
    if kind == _ARRAY:
        element = draw.choice([*_FORMATS, _STRING, 77, *([_ARRAY] if depth < 2 else [])])
        n = draw.choice((0, 1, 2, 4, 300))
        count = n if draw.random() < 0.8 else draw.choice(NUMBERS)
        return struct.pack("<IQ", element, _wrapped(count)) + b"".join(
            _value(draw, element, depth + 1) for _ in range(n)
        )
    code = _FORMATS.get(kind, "Q")
    if code in ("f", "d"):
        return struct.pack(f"<{code}", draw.choice(FLOATS))
    return draw.choice(NUMBERS).to_bytes(16, "little", signed=True)[: struct.calcsize(f"<{code}")]


def _damaged_array(draw: random.Random, data: bytes) -> bytes:
    element, n = struct.unpack_from("<IQ", data)
    values: list[bytes] = []
    at, size = 12, struct.calcsize(f"<{_FORMATS.get(element, 'Q')}")
    for _ in range(min(n, 1 << 16)):
        if at + size > len(data):
            return damaged_bytes(draw, data)
        end = at + size + (struct.unpack_from("<Q", data, at)[0] if element == _STRING else 0)
        if end > len(data):
            return damaged_bytes(draw, data)
        values.append(data[at:end])
        at = end
    place = draw.randrange(len(values) + 1)
    way = draw.randrange(7)
    if way <= 1 and place < len(values):
        values[place] = _value(draw, element)
    elif way == 2 and values:
        values[place % len(values)] = draw.choice(values)
    elif way == 3:
        del values[place : place + draw.choice((1, 1, 2, 400))]
    elif way == 4:
        values[place:place] = [_value(draw, element)] * draw.choice((1, 1, 3, 300))
    elif way == 5:
        return struct.pack("<IQ", element, draw.choice((n - 1 if n else 0, n + 1, 2**32, 2**63))) + data[12:]
    else:
        return struct.pack("<IQ", draw.choice([*_FORMATS, _STRING, _ARRAY]), n) + data[12:]
    return struct.pack("<IQ", element, len(values)) + b"".join(values)


# What keys of these files say, in other places
WORDS: Final = (
    *("llama", "qwen2", "qwen3", "gpt2", "bert", "mamba", "gemma3", "none", "linear", "yarn", "longrope", "rwkv"),
    *("model", "adapter", "lora", "default", "llama-bpe", "smollm", "tekken", "deepseek-llm", "mmproj", "imatrix"),
)


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _wrapped(number: int) -> int:
    return number % (1 << 64)
