"""Reads an importance matrix: how strongly each input of each weight matrix was used on a calibration text.

    imatrix = read_imatrix(Path("model.imatrix"))
    imatrix.entries["blk.0.ffn_down.weight"]      # (n_in,) float32, mean of x²

Both formats of llama.cpp's llama-imatrix are read: GGUF (`general.type` = imatrix) and the older binary one.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...edge.errors import DamagedError, InputError
from ...edge.files.read import open_regular, read_bytes
from ...edge.gguf.file import GgufFile, TensorInfo

MAX_NAME_BYTES: Final = 4096
EMBEDDING: Final = "token_embd.weight"
SHOWN: Final = 20


@dataclass(frozen=True)
class Imatrix:
    """A read importance matrix.

    Attributes:
        entries: weight name -> (n_in,) float32.
        dataset: the text that it was made from; empty if it doesn't say.
        n_chunks: pieces of that text; 0 if it doesn't say.
    """

    path: Path
    entries: dict[str, npt.NDArray[np.float32]]
    dataset: str
    n_chunks: int


def read_imatrix(path: Path) -> Imatrix:
    """Reads a file of either format.

    Raises:
        InputError: it is not there, or no importance matrix.
        DamagedError: it was cut short, or holds NaN, infinity or negative numbers.
    """
    with open_regular(path, whole=True) as stream:
        magic = stream.read(4)
    found = _read_gguf(path) if magic == b"GGUF" else _read_legacy(path)
    bad = [
        f"{name} holds NaN, infinity or a negative number"
        for name, values in found.entries.items()
        if not (np.isfinite(values).all() and (values >= 0).all())
    ]
    if bad:
        raise DamagedError("the importance matrix is not usable", where=path, problems=bad[:SHOWN])
    if not found.entries:
        raise InputError("the importance matrix is empty", where=path)
    return found


def _read_gguf(path: Path) -> Imatrix:
    file = GgufFile.open(path)
    if file.get("general.type") != "imatrix":
        raise InputError("is a GGUF file, but no importance matrix", where=path)
    entries = {}
    problems = []
    for name in file.tensors:
        if not name.endswith(".in_sum2"):
            continue
        weight = name.removesuffix(".in_sum2")
        if f"{weight}.counts" not in file.tensors:
            problems.append(f"{weight} has sums, but no counts")
            continue
        counts = file.array(f"{weight}.counts").reshape(-1, 1)
        sums = file.array(name).reshape(len(counts), -1)
        # An expert that saw nothing counts evenly, as llama-quantize has it.
        entries[weight] = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32).reshape(-1)
    if problems:
        raise DamagedError("the importance matrix is incomplete", where=path, problems=problems[:SHOWN])
    datasets = file.get("imatrix.datasets") or [""]
    return Imatrix(path, entries, str(datasets[0]), int(file.get("imatrix.chunk_count") or 0))


def _read_legacy(path: Path) -> Imatrix:
    """int32 count; per entry: name length, name, calls, length, float32 values; then chunks and the data set's name."""
    data = read_bytes(path)
    at = 0

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        return int(value)

    def take(n_bytes: int) -> bytes:
        nonlocal at
        if n_bytes < 0 or at + n_bytes > len(data):
            raise ValueError
        at += n_bytes
        return data[at - n_bytes : at]

    entries: dict[str, npt.NDArray[np.float32]] = {}
    try:
        for _ in range(number()):
            length = number()
            if not 0 < length <= MAX_NAME_BYTES:
                raise ValueError
            name = take(length).decode("utf-8")
            n_calls, n_values = number(), number()
            sums = np.frombuffer(take(4 * n_values), "<f4")
            entries[name] = (sums / np.float32(max(n_calls, 1))).astype(np.float32)
        n_chunks = number() if at < len(data) else 0
        dataset = take(number()).decode("utf-8") if at < len(data) else ""
    except (ValueError, struct.error, UnicodeDecodeError):
        raise DamagedError("is not an importance matrix, or was cut short", where=path) from None
    return Imatrix(path, entries, dataset, n_chunks)


def check_imatrix(imatrix: Imatrix, tensors: dict[str, TensorInfo]) -> list[str]:
    """Checks an importance matrix against a model's matrices.

    Returns:
        Names of the layers' matrices that it says nothing about.

    Raises:
        InputError: it belongs to another model: names or sizes do not agree.
    """
    problems = []
    for name, values in imatrix.entries.items():
        info = tensors.get(name)
        if info is None:
            problems.append(f"{name} is not in the model")
        elif len(values) != info.shape[0] * (info.shape[2] if len(info.shape) > 2 else 1) and name != EMBEDDING:
            problems.append(f"{name} has {len(values)} inputs there, {info.shape[0]} in the model")
    # A tied model may well have been calibrated as output.weight.
    problems = [problem for problem in problems if not problem.startswith("output.weight is not")]
    if problems:
        raise InputError(
            "the importance matrix belongs to another model",
            where=imatrix.path,
            problems=[*problems[:SHOWN], *([f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])],
        )
    return [
        name
        for name, info in tensors.items()
        if name.startswith("blk.") and len(info.shape) > 1 and name not in imatrix.entries
    ]
