"""An adapter merged into its base: one GGUF without adapters, to ship a single task.

    merge(Path("base.gguf"), Path("math.gguf"), Path("base-math.gguf"), TYPES["q4_0"])

W' = W + scale · alpha / rank · B·A on the base's dequantised values, in F32 (as llama.cpp applies it beside
W, src/llama-adapter.cpp there), then quantised as a whole. What was quantised is quantised again: an adapter that stays
beside its base loses nothing of either.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...edge.console import progress
from ...edge.errors import InputError, UnsupportedError
from ...edge.files.atomic import atomic_file, check_new
from ...edge.gguf.adapter import AdapterInfo, check_adapter
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from ..files.encode import matrix_rows
from ..files.gguf_writer import NewTensor, file_size_bytes, text, write_gguf
from .base import Options, Result, check_disk, n_parameters, quantize_file, result_of
from .gguf_source import EMBEDDING, HEAD, GgufSource
from .quantize import QuantType

# Rows of a matrix that are held as floats at once.
PIECE_ROWS = 1024


def merge(base: Path, adapter: Path, dest: Path, type: QuantType, scale: float = 1.0, *, force: bool = False) -> Result:
    """Writes the base with the adapter added in. Memory: the base's largest matrix in pieces, and one pair.

    Args:
        scale: on top of the adapter's own.

    Raises:
        InputError: the adapter is not of this base, or `dest` exists.
        UnsupportedError: it is activated by tokens, or changes the embedding or the head.
        DoesNotFitError: the disk is too full.
    """
    began = time.monotonic()
    check_new(dest, force)
    if dest.exists() and any(dest.samefile(source) for source in (base, adapter)):
        raise InputError("is one of the sources itself", where=dest, hint="write to another file")
    if type.needs_imatrix:
        raise InputError(f"{type.name} needs an importance matrix", hint="merge to f16, then slm-edge export base")
    source = GgufSource.open(base)
    info = check_adapter(adapter, BaseInfo.open(base))
    if info.alora_tokens:
        raise UnsupportedError(
            "is an activated LoRA (aLoRA): it acts from its invocation on, not always", where=adapter
        )
    outside = [name for name in info.targets if name in (EMBEDDING, HEAD)]
    if outside:
        raise UnsupportedError(
            "changes the embedding or the head, which is not merged here", where=adapter, problems=outside
        )
    pairs = GgufFile.open(adapter)
    tensors = [
        _merged(source.file, pairs, info, one, scale) if one.name in info.targets else one
        for one in source.tensors(output_weight=False)
    ]
    name = f"{source.file.get('general.name', base.stem)} + {info.task_name or adapter.stem}"
    keys = source.keys({"general.name": text(name)})
    notes = source.check_type(type, allow_requantize=True)
    size_bytes = file_size_bytes(keys, tensors)
    with atomic_file(dest) as aside:
        check_disk(aside, size_bytes + int(n_parameters(tensors) * type.bits / 8))
        floats = aside.with_name("merged.gguf")
        with progress("merging", size_bytes, "bytes") as advance:
            write_gguf(floats, keys, tensors, advance)
        quantize_file(floats, aside, type, Options(), notes)
        result = result_of(aside, type.name, notes)
    result.path = str(dest)
    result.seconds_s = round(time.monotonic() - began, 2)
    return result


def _merged(base: GgufFile, pairs: GgufFile, info: AdapterInfo, one: NewTensor, scale: float) -> NewTensor:
    def chunks() -> Iterator[npt.NDArray[np.uint8]]:
        a, b = matrix_rows(pairs, f"{one.name}.lora_a"), matrix_rows(pairs, f"{one.name}.lora_b")
        strength = scale * info.alpha / len(a)
        for first in range(0, one.shape[1], PIECE_ROWS):
            rows = matrix_rows(base, one.name, first, PIECE_ROWS)
            rows = rows + strength * (b[first : first + len(rows)] @ a)
            yield np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1)

    return NewTensor(one.name, one.shape, GgmlType.F32, chunks)
