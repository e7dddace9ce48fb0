"""Reads GGUF files strictly: header, keys with their types, tensor table, and tensor bytes by memory map.

    file = GgufFile.open("base.gguf")
    file.get("llama.block_count")            # 30
    file.tensors["token_embd.weight"].shape  # (576, 49152), ggml order: row length first

Everything is checked against the file's bounds before it is believed, so that the C library never sees a file
that is not what it says. Layout: the GGUF v3 specification of ggml (docs/gguf.md there). Nothing is written here.
"""

import enum
import math
import mmap
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DamagedError, InputError, UnsupportedError
from ..files.read import open_regular
from .types import GgmlType

MAX_DIMS: Final = 4
MAX_NAME_BYTES: Final = 63
# What is decoded takes many times the bytes that it has in the file, and a file with holes has as many as it likes.
# Real files have up to 600,000 merges, 20 MB of them, and 100 keys.
MAX_KEYS: Final = 1 << 14
MAX_KEY_BYTES: Final = (1 << 16) - 1
MAX_TENSORS: Final = 1 << 16
MAX_VALUES: Final = 1 << 20
MAX_BYTE_VALUES: Final = 1 << 23
MAX_TEXT_BYTES: Final = 1 << 24
MAX_ARRAY_BYTES: Final = 1 << 25


class ValueType(enum.IntEnum):
    """Types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct codes of the values that have one size
SCALAR_FORMATS: Final = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table.

    Attributes:
        shape: ggml order, the row length first; numpy's shape is its reverse.
        offset_bytes: from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset_bytes: int
    size_bytes: int

    @property
    def n_values(self) -> int:
        return math.prod(self.shape)


class MetaValue:
    """One metadata value. Arrays are decoded when first asked for: a vocabulary has 150,000 strings.

    Attributes:
        type: the value's type.
        element_type: of an array's elements, else None.
        n_values: length of an array, else 1.
    """

    def __init__(
        self, data: mmap.mmap, type: ValueType, element_type: ValueType | None, n_values: int, start: int, end: int
    ) -> None:
        self.type = type
        self.element_type = element_type
        self.n_values = n_values
        self._data = data
        self._start = start
        self._end = end

    def _check(self) -> None:
        if self._data.size() < self._end:
            # Reading the map there would end the process.
            raise DamagedError("a GGUF file was cut while it was in use", hint="put it back")

    @property
    def raw(self) -> bytes:
        """The value's bytes as they stand in the file, an array's without its header."""
        self._check()
        return self._data[self._start : self._end]

    @cached_property
    def value(self) -> Any:
        """The value: int, float, bool, str, or a list of these."""
        self._check()
        kind = self.type if self.element_type is None else self.element_type
        if kind is ValueType.STRING:
            strings: list[str] = []
            data, at, length_at = self._data, self._start, struct.Struct("<Q").unpack_from
            for _ in range(self.n_values):
                end = at + 8 + length_at(data, at)[0]
                # A vocabulary may hold byte sequences that are no UTF-8 by themselves.
                strings.append(data[at + 8 : end].decode("utf-8", "surrogateescape"))
                at = end
            return strings if self.type is ValueType.ARRAY else strings[0]
        numbers = list(struct.unpack_from(f"<{self.n_values}{SCALAR_FORMATS[kind]}", self._data, self._start))
        return numbers if self.type is ValueType.ARRAY else numbers[0]

    def __repr__(self) -> str:
        shown = f"{self.n_values} values" if self.type is ValueType.ARRAY else repr(self.value)
        return f"MetaValue({self.type.name}, {shown})"


class _Cursor:
    """Reads forward over the map; going past the end is a DamagedError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def _need(self, n_bytes: int, what: str) -> int:
        start = self.at
        if n_bytes < 0 or start + n_bytes > len(self.data):
            raise DamagedError(f"the file ends inside {what}, at byte {start}", where=self.path)
        self.at = start + n_bytes
        return start

    def bounded(self, n: int, most: int, what: str) -> int:
        """The number as given; DamagedError where it is more than real files have."""
        if n > most:
            raise DamagedError(f"{what}: {n}; {most} at most make sense", where=self.path)
        return n

    def number(self, code: str, what: str) -> Any:
        start = self._need(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.data, start)[0]

    def string(self, what: str, most_bytes: int) -> str:
        length = self.number("Q", what)
        start = self._need(length, what)
        self.bounded(length, most_bytes, f"the bytes of {what}")
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedError(f"{what} is not UTF-8", where=self.path) from None

    def value(self, key: str) -> MetaValue:
        what = f"the value of {key!r}"
        kind = self._type(self.number("I", what), what)
        if kind is not ValueType.ARRAY:
            start = self.at
            self._skip(kind, 1, what)
            self.bounded(self.at - start, MAX_TEXT_BYTES, f"the bytes of {what}")
            return MetaValue(self.data, kind, None, 1, start, self.at)
        element = self._type(self.number("I", what), what)
        if element is ValueType.ARRAY:
            raise UnsupportedError(f"{what} is an array of arrays", where=self.path)
        n_values = self.number("Q", what)
        start = self.at
        if element is not ValueType.STRING:
            self._skip(element, n_values, what)
        wide = SCALAR_FORMATS.get(element, "") not in ("B", "b", "?")
        self.bounded(n_values, MAX_VALUES if wide else MAX_BYTE_VALUES, f"the length of {what}")
        if element is ValueType.STRING:
            self._skip(element, n_values, what)
        self.bounded(self.at - start, MAX_ARRAY_BYTES, f"the bytes of {what}")
        return MetaValue(self.data, kind, element, n_values, start, self.at)

    def _type(self, code: int, what: str) -> ValueType:
        try:
            return ValueType(code)
        except ValueError:
            raise DamagedError(f"{what} has an unknown type, {code}", where=self.path) from None

    def _skip(self, kind: ValueType, n_values: int, what: str) -> None:
        if kind is not ValueType.STRING:
            self._need(n_values * struct.calcsize("<" + SCALAR_FORMATS[kind]), what)
            return
        at, end, data, unpack = self.at, len(self.data), self.data, struct.Struct("<Q").unpack_from
        if n_values * 8 > end - at:
            raise DamagedError(f"the file ends inside {what}, at byte {at}", where=self.path)
        for _ in range(n_values):
            if at + 8 > end:
                raise DamagedError(f"the file ends inside {what}, at byte {at}", where=self.path)
            at += 8 + unpack(data, at)[0]
        if at > end:
            raise DamagedError(f"the file ends inside {what}, at byte {self.at}", where=self.path)
        self.at = at


class GgufFile:
    """An open GGUF file.

    Attributes:
        path: where it is.
        version: 2 or 3.
        alignment_bytes: of tensor data.
        metadata: every key with its typed value, in file order.
        tensors: the tensor table, in file order.
        data_start_bytes: where tensor data begins.
        size_bytes: of the whole file.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self._data = data
        self.size_bytes = len(data)
        cursor = _Cursor(data, path)
        cursor.at = 4
        self.version: int = cursor.number("I", "the version")
        if self.version not in (2, 3):
            raise UnsupportedError(f"GGUF version {self.version} is not read here, only 2 and 3", where=path)
        n_tensors: int = cursor.number("Q", "the header")
        n_keys: int = cursor.number("Q", "the header")
        cursor.bounded(n_tensors, MAX_TENSORS, "the number of tensors")
        cursor.bounded(n_keys, MAX_KEYS, "the number of keys")
        self.metadata: dict[str, MetaValue] = {}
        for _ in range(n_keys):
            key = cursor.string("a key", MAX_KEY_BYTES)
            if not key or key in self.metadata:
                raise DamagedError(f"the key {key!r} is empty or is listed twice", where=path)
            self.metadata[key] = cursor.value(key)
        self.alignment_bytes = self._alignment()
        self.tensors: dict[str, TensorInfo] = {}
        rows = [self._tensor_row(cursor) for _ in range(n_tensors)]
        self.data_start_bytes = -(-cursor.at // self.alignment_bytes) * self.alignment_bytes
        self._place(rows)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, whole: bool = True) -> "GgufFile":
        """Maps and checks a file.

        Args:
            whole: refuse one that is nearly all holes.

        Raises:
            InputError: it is not there, or not a GGUF file.
            DamagedError: it is cut short, or its tables contradict each other.
            UnsupportedError: a version or tensor type that is not known here.
        """
        path = Path(path)
        try:
            if path.is_dir():
                raise InputError("is a folder, not a GGUF file", where=path, hint=_folder_hint(path))
            with open_regular(path, whole=whole) as stream:
                head = stream.read(16)
                if head[:4] != b"GGUF":
                    raise InputError("is not a GGUF file", where=path, hint=_file_hint(head))
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path) from None
        return cls(path, data)

    def _alignment(self) -> int:
        entry = self.metadata.get("general.alignment")
        if entry is None:
            return 32
        if entry.type is not ValueType.UINT32 or entry.value <= 0 or entry.value & (entry.value - 1):
            raise DamagedError("general.alignment is not a UINT32 power of two", where=self.path)
        return int(entry.value)

    def _tensor_row(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], GgmlType, int]:
        name = cursor.string("a tensor's name", MAX_KEY_BYTES)
        what = f"the table row of {name!r}"
        if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise DamagedError(
                f"tensor name {name[:80]!r} is empty, holds a zero byte or is longer than {MAX_NAME_BYTES} bytes",
                where=self.path,
            )
        n_dims = cursor.number("I", what)
        if not 1 <= n_dims <= MAX_DIMS:
            raise DamagedError(f"{what} has {n_dims} dimensions; it must have 1 to {MAX_DIMS}", where=self.path)
        shape = tuple(int(cursor.number("Q", what)) for _ in range(n_dims))
        code = cursor.number("I", what)
        try:
            kind = GgmlType(code)
        except ValueError:
            raise UnsupportedError(f"{what} has a type that is not known here, {code}", where=self.path) from None
        return name, shape, kind, cursor.number("Q", what)

    def _place(self, rows: list[tuple[str, tuple[int, ...], GgmlType, int]]) -> None:
        expected = 0
        for name, shape, kind, offset in rows:
            block_values, block_bytes = kind.block
            n_values = math.prod(shape)
            if name in self.tensors:
                raise DamagedError(f"the tensor {name!r} is listed twice", where=self.path)
            if min(shape) < 1 or n_values >= 1 << 62:
                raise DamagedError(f"the tensor {name!r} has an impossible shape {shape}", where=self.path)
            if shape[0] % block_values:
                raise DamagedError(
                    f"{name!r}: rows of {shape[0]} are not a multiple of {kind.name}'s block of {block_values}",
                    where=self.path,
                )
            size = n_values // block_values * block_bytes
            if offset != expected:
                raise DamagedError(f"{name!r} starts at {offset}, not at {expected} as the table says", where=self.path)
            start = self.data_start_bytes + offset
            if start + size > self.size_bytes:
                raise DamagedError(
                    f"it is cut short: the data of {name!r} ends at byte {start + size}, the file at {self.size_bytes}",
                    where=self.path,
                    hint="copy or download it again",
                )
            self.tensors[name] = TensorInfo(name, shape, kind, start, size)
            expected = -(-(offset + size) // self.alignment_bytes) * self.alignment_bytes

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` where the file has none."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, a read-only view into the map, shape (size_bytes,).

        Raises:
            DamagedError: the file was cut since it was opened.
        """
        info = self.tensors[name]
        if self._data.size() < info.offset_bytes + info.size_bytes:
            raise DamagedError("was cut while it was in use", where=self.path, hint="put the file back")
        return np.frombuffer(self._data, np.uint8, info.size_bytes, info.offset_bytes)

    def release(self) -> None:
        """Gives the pages read so far back to the system, so that a large file read once does not count as memory.

        Arrays over them stay valid: what is read again comes from the file.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def array(self, name: str) -> npt.NDArray[np.float32]:
        """An F32, F16 or BF16 tensor as float32, numpy order (the reverse of `shape`).

        Raises:
            UnsupportedError: the tensor is quantised.
        """
        info = self.tensors[name]
        raw = self.raw(name)
        shape = info.shape[::-1]
        if info.type is GgmlType.F32:
            return raw.view(np.float32).reshape(shape)
        if info.type is GgmlType.F16:
            return raw.view(np.float16).reshape(shape).astype(np.float32)
        if info.type is GgmlType.BF16:
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        raise UnsupportedError(f"{name!r} is {info.type.name}, not a float type", where=self.path)


def _folder_hint(folder: Path) -> str | None:
    """What makes a GGUF of a folder that people have instead."""
    if (folder / "adapter_config.json").is_file():
        return f"slm-edge export lora {folder} --base BASE.gguf -o OUT.gguf makes one of it"
    return f"slm-edge export base {folder} -o OUT.gguf makes one of it" if (folder / "config.json").is_file() else None


def _file_hint(head: bytes) -> str | None:
    """What is known of a file that begins otherwise."""
    if head.startswith(b"version https://"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull`, or download it"
    if head[8:9] == b"{" and head[7:8] == b"\0":
        return "it reads as safetensors: slm-edge export lora (of an adapter) or export base makes a GGUF of its folder"
    return "it reads as PyTorch's, or as another zip archive" if head.startswith(b"PK\3\4") else None
