"""Checks an ONNX adapter file before its numbers are used, and reads them.

    adapter = OnnxAdapter.open("math.onnx_adapter", OnnxBase.open("onnx-folder"))
    adapter.arrays["model.layers.0.self_attn.q_proj.lora_A.weight"]      # a view into the bytes, (n_in, rank)

The file is onnxruntime's own format, so that genai and others load it; here onnxruntime never reads it: this strict
reader does, and hands out views. onnxruntime would take NaN, other inputs' names, changed bytes and two adapters at
once in silence. Files are read once, hash and numbers from the same bytes: what becomes of the file later does nothing.

Layout: a flatbuffer with the identifier TORT. Root: format version, adapter version, model version (our short
fingerprint), parameters. Parameter: name, dims (int64), element type (1 F32, 10 F16, as in ONNX), bytes.
"""

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DamagedError, InputError
from ..files.read import open_regular, read_json
from .folder import LoraInput, OnnxBase

IDENTIFIER: Final = b"TORT"
FORMAT_VERSION: Final = 1
ADAPTER_VERSION: Final = 1
SUFFIX: Final = ".onnx_adapter"
MAX_PARAMETERS: Final = 100_000
MAX_NAME_BYTES: Final = 1024
# An adapter of rank 256 for a model of 8B parameters has 1.3 GB.
MAX_FILE_BYTES: Final = 4 << 30
ELEMENT_TYPES: Final[Mapping[int, tuple[str, Any]]] = {1: ("f32", np.float32), 10: ("f16", np.float16)}
# Above this llama.cpp's kernels overflow; kept alike here, so that one adapter is good or bad on both engines.
LARGEST: Final = 65504.0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parameter:
    """One tensor of the file; `values` is a view into it, or None for an element type that is no float."""

    name: str
    dims: tuple[int, ...]
    element_type: int
    values: Array | None


@dataclass(frozen=True)
class AdapterFile:
    """A file as it is, not yet compared with any base.

    Attributes:
        sha256: of its bytes.
        size_bytes: of all of it.
    """

    sha256: str
    size_bytes: int
    adapter_version: int
    model_version: int
    parameters: tuple[Parameter, ...]


class _Reader:
    """Reads a flatbuffer by its bounds; anything outside is a DamagedError."""

    def __init__(self, data: bytes, path: Path) -> None:
        self.data = data
        self.path = path

    def number(self, code: str, at: int) -> int:
        if at < 0 or at + struct.calcsize("<" + code) > len(self.data):
            raise DamagedError(f"it points outside of itself, to byte {at}", where=self.path)
        return int(struct.unpack_from("<" + code, self.data, at)[0])

    def follow(self, at: int) -> int:
        """Where the offset stored at `at` leads."""
        return at + self.number("I", at)

    def fields(self, table: int, n_fields: int) -> list[int | None]:
        """Where a table's fields stand; None for those left out."""
        places = table - self.number("i", table)
        size = self.number("H", places)
        if size < 4 or size % 2 or self.number("H", places + 2) < 4:
            raise DamagedError(f"the table at byte {table} is not valid", where=self.path)
        found: list[int | None] = []
        for index in range(n_fields):
            entry = 4 + 2 * index
            offset = self.number("H", places + entry) if entry < size else 0
            found.append(table + offset if offset else None)
        return found

    def vector(self, at: int, item_bytes: int) -> tuple[int, int]:
        """Start and length of the vector that the offset at `at` leads to, all of it inside the file."""
        start = self.follow(at)
        n_items = self.number("I", start)
        if start + 4 + n_items * item_bytes > len(self.data):
            raise DamagedError(f"a list at byte {start} goes beyond its end", where=self.path)
        return start + 4, n_items


def read_adapter_file(path: str | os.PathLike[str], sha256: str | None = None) -> AdapterFile:
    """Reads a file's table strictly.

    Args:
        sha256: what the hash of its bytes must be; None: any.

    Raises:
        InputError: it is not there, or no ONNX adapter.
        DamagedError: it is cut short, contradicts itself, or has another hash.
    """
    path = Path(path)
    with open_regular(path, whole=True) as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        if size_bytes > MAX_FILE_BYTES:
            raise InputError(f"is not an ONNX adapter: it has {size_bytes} bytes", where=path)
        data = stream.read(size_bytes)
    found = hashlib.sha256(data).hexdigest()
    # Before what is in it: changed bytes may be any.
    if sha256 not in (None, found):
        raise DamagedError("its bytes changed since it was exported", where=path, hint="copy or export it again")
    if len(data) < size_bytes:
        raise DamagedError("was cut while it was read", where=path)
    if size_bytes < 16:
        raise InputError(f"is not an ONNX adapter: it has {size_bytes} bytes", where=path)
    if data[4:8] != IDENTIFIER:
        raise InputError("is not an ONNX adapter", where=path, hint="slm-edge export onnx-adapter makes one")
    reader = _Reader(data, path)
    format_at, adapter_at, model_at, list_at = reader.fields(reader.follow(0), 4)
    version = reader.number("i", format_at) if format_at else 0
    if version != FORMAT_VERSION:
        raise DamagedError(f"its format version is {version}, not {FORMAT_VERSION}", where=path)
    start, n_items = reader.vector(list_at, 4) if list_at else (0, 0)
    if n_items > MAX_PARAMETERS:
        raise DamagedError(f"it claims {n_items} tensors", where=path)
    parameters = tuple(_parameter(reader, reader.follow(start + 4 * index)) for index in range(n_items))
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        raise DamagedError("two tensors have the same name", where=path)
    return AdapterFile(
        sha256=found,
        size_bytes=len(data),
        adapter_version=reader.number("i", adapter_at) if adapter_at else 0,
        model_version=reader.number("i", model_at) if model_at else 0,
        parameters=parameters,
    )


def _parameter(reader: _Reader, table: int) -> Parameter:
    name_at, dims_at, type_at, raw_at = reader.fields(table, 4)
    if name_at is None or dims_at is None or raw_at is None:
        raise DamagedError("a tensor lacks its name, shape or bytes", where=reader.path)
    at, length = reader.vector(name_at, 1)
    if not 1 <= length <= MAX_NAME_BYTES:
        raise DamagedError(f"a tensor's name has {length} bytes", where=reader.path)
    try:
        name = reader.data[at : at + length].decode("utf-8")
    except UnicodeDecodeError:
        raise DamagedError(f"a tensor's name is not UTF-8 text, at byte {at}", where=reader.path) from None
    at, n_dims = reader.vector(dims_at, 8)
    if n_dims > 8:
        raise DamagedError(f"{name[:80]!r} has {n_dims} dimensions", where=reader.path)
    dims = struct.unpack_from(f"<{n_dims}q", reader.data, at)
    kind = reader.number("i", type_at) if type_at else 0
    at, n_bytes = reader.vector(raw_at, 1)
    if kind not in ELEMENT_TYPES or min(dims, default=0) < 1:
        return Parameter(name, dims, kind, None)
    dtype = np.dtype(ELEMENT_TYPES[kind][1])
    if math.prod(dims) * dtype.itemsize != n_bytes or at % dtype.itemsize:
        raise DamagedError(
            f"{name[:80]!r}: {n_bytes} bytes at {at} do not hold the shape {list(dims)}", where=reader.path
        )
    values = np.frombuffer(reader.data, dtype, math.prod(dims), at).reshape(dims)
    return Parameter(name, dims, kind, values)


@dataclass(frozen=True)
class OnnxAdapter:
    """An adapter that passed every check for one base.

    Attributes:
        sha256: of its file.
        rank: the highest of its pairs; packed pairs count the ranks of their parts together.
        arrays: LoRA input -> its numbers, (n_in, rank) or (rank, n_out), views into its bytes.
    """

    path: Path
    sha256: str
    size_bytes: int
    rank: int
    n_pairs: int
    arrays: Mapping[str, Array] = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str], base: OnnxBase, *, sha256: str | None = None) -> "OnnxAdapter":
        """Checks everything in a file: names, types, shapes, equal ranks, finite values, base, hash.

        Args:
            sha256: what its hash must be; None takes it from the description beside the file, if there is one.

        Raises:
            InputError: it is no adapter for this base; `problems` has every fault.
            DamagedError: the container is broken, or its bytes are not those that were exported.
        """
        path = Path(path)
        faults: list[str] = []
        if sha256 is None:
            sha256 = _beside(path, base, faults)
        file = read_adapter_file(path, sha256)
        if file.adapter_version != ADAPTER_VERSION:
            faults.append(f"its adapter version is {file.adapter_version}; slm-edge writes {ADAPTER_VERSION}")
        if file.model_version != base.version_number:
            faults.append(
                f"it was made for another base: its model version is {file.model_version}, "
                f"that of {base.name} is {base.version_number}"
            )
        arrays = {parameter.name: parameter for parameter in file.parameters}
        known = {name for pair in base.lora for name in (pair.a, pair.b)}
        faults += [f"{name[:120]!r} is no LoRA input of this base" for name in arrays if name not in known]
        ranks = [_check_pair(pair, arrays, base.dtype, faults) for pair in base.lora]
        n_pairs = sum(rank is not None for rank in ranks)
        if not n_pairs:
            faults.append("it holds no LoRA pair")
        elif not faults and not any(_acts(pair, arrays) for pair in base.lora):
            faults.append("every pair multiplies to zero: the adapter changes nothing")
        if faults:
            shown = [*faults[:20], *([f"… and {len(faults) - 20} more"] if len(faults) > 20 else [])]
            raise InputError("is not an adapter for this base", where=path, problems=shown)
        return cls(
            path=path,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            rank=max(rank for rank in ranks if rank is not None),
            n_pairs=n_pairs,
            arrays={name: p.values for name, p in arrays.items() if p.values is not None},
        )

    def scaled(self, scale: float, base: OnnxBase) -> dict[str, Array]:
        """The arrays at another strength: B is multiplied, in memory; at 1 they are the file's own."""
        if scale == 1:
            return dict(self.arrays)
        is_b = {pair.b for pair in base.lora}
        # Where it overflows, trying the adapter says it.
        with np.errstate(over="ignore"):
            return {
                name: (values * np.float32(scale)).astype(values.dtype) if name in is_b else values
                for name, values in self.arrays.items()
            }


def description_path(path: Path) -> Path:
    """Where the description of an adapter file lies: beside it."""
    return path.with_name(path.name + ".json")


def _beside(path: Path, base: OnnxBase, faults: list[str]) -> str | None:
    """The sha256 that the description beside a file states; None if there is no description."""
    place = description_path(path)
    if not place.is_file():
        return None
    stated = read_json(place)
    if not isinstance(stated, dict) or not isinstance(stated.get("sha256"), str):
        faults.append(f"{place.name} is not a description of an adapter")
        return None
    if stated.get("fingerprint") != base.fingerprint:
        faults.append(
            f"it was made for another base: {place.name} has the fingerprint {str(stated.get('fingerprint'))[:64]}, "
            f"that of {base.name} is {base.fingerprint}"
        )
    return str(stated["sha256"])


def _check_pair(pair: LoraInput, arrays: Mapping[str, Parameter], dtype: str, faults: list[str]) -> int | None:
    """Checks one pair; returns its rank, None if the adapter has no such pair or it is faulty."""
    a, b = arrays.get(pair.a), arrays.get(pair.b)
    if a is None and b is None:
        return None
    if a is None or b is None:
        faults.append(f"{pair.b if a is None else pair.a}: the other half of the pair is missing")
        return None
    before = len(faults)
    for part in (a, b):
        found = ELEMENT_TYPES.get(part.element_type, ("not a float type that can be read",))[0]
        if found != dtype:
            faults.append(f"{part.name} is {found}; this base takes {dtype}")
        if len(part.dims) != 2 or min(part.dims) < 1:
            faults.append(f"{part.name} has the shape {list(part.dims)}; a LoRA matrix has two sides")
    if len(faults) > before:
        return None
    rank = a.dims[1]
    if a.dims[0] != pair.n_in:
        faults.append(f"{a.name} has the shape {list(a.dims)}; its first side must be {pair.n_in}")
    if b.dims != (rank, pair.n_out):
        faults.append(f"{b.name} has the shape {list(b.dims)}; with A's rank {rank} it must be {[rank, pair.n_out]}")
    if rank > len(pair.widths) * max(pair.n_in, pair.n_out):
        faults.append(f"{a.name}: rank {rank} exceeds the matrix of {pair.n_in} x {pair.n_out}")
    for part in (a, b):
        # Written so that NaN fails.
        if part.values is None or not float(np.abs(part.values).max()) <= LARGEST:
            faults.append(f"{part.name} holds NaN, infinity or a value beyond {LARGEST:.0f}")
    return rank if len(faults) == before else None


def _acts(pair: LoraInput, arrays: Mapping[str, Parameter]) -> bool:
    a, b = arrays.get(pair.a), arrays.get(pair.b)
    return a is not None and b is not None and bool(np.any(a.values)) and bool(np.any(b.values))
