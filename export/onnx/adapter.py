"""An adapter for the ONNX form of a base: from a PEFT folder or a GGUF adapter to onnxruntime's adapter file.

    export_onnx_adapter("peft/math", "onnx-folder", "math.onnx_adapter")

A PEFT folder goes through a GGUF adapter in F32 first: its refusals, its scaling and its checks are the same for both
engines. What is written: A transposed; B transposed, times alpha / rank; for a packed base A side by side and B on the
diagonal. Beside it `math.onnx_adapter.json` states base fingerprint, sha256 and source.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError, UnsupportedError
from ...edge.files.atomic import atomic_file, check_new, write_json
from ...edge.files.read import sha256_file
from ...edge.gguf.adapter import AdapterInfo, check_adapter
from ...edge.gguf.file import GgufFile
from ...edge.gguf.hf_form import halves_order
from ...edge.onnx.adapter import ADAPTER_VERSION, LARGEST, OnnxAdapter, description_path
from ...edge.onnx.folder import LoraInput, OnnxBase, StatedBase
from ..files.encode import matrix_rows
from ..lora.lora import export_lora
from ..lora.mlx_folder import MLX_WEIGHTS_FILE
from ..lora.peft_folder import WEIGHTS_FILE, PeftFolder
from ..reasons import Reasons

SCHEMA: Final = 1
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ExportedOnnxAdapter:
    """What was written.

    Attributes:
        adapter: as it was read back and checked.
        task: its task's name, None if the source states none.
        notes: what the user should know, though it is no fault.
    """

    adapter: OnnxAdapter
    task: str | None
    notes: tuple[str, ...]


def export_onnx_adapter(
    source: str | os.PathLike[str],
    base: OnnxBase | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    force: bool = False,
) -> ExportedOnnxAdapter:
    """Writes `output` and its description.

    Args:
        source: the folder that PEFT saved, or a GGUF adapter.
        base: the folder that `export_onnx` made of the base.
        force: replace an existing file.

    Raises:
        UnsupportedError: an ONNX adapter cannot hold this one; all reasons are in `problems`.
        InputError: it is wrong in itself or not made for this base; all reasons are in `problems`.
        DamagedError: a file is cut short.
    """
    import onnxruntime as ort

    source, output = Path(source), Path(output)
    base = base if isinstance(base, OnnxBase) else OnnxBase.open(base)
    check_new(output, force and not (output.exists() and output.samefile(source)))
    stated = base.stated()
    with _as_gguf(source, stated) as (gguf, notes):
        info = check_adapter(gguf, stated)
        if info.alora_tokens:
            raise UnsupportedError(
                "is an activated LoRA (aLoRA); ONNX graphs apply an adapter to all tokens", where=source
            )
        arrays = _arrays(GgufFile.open(gguf), info, base)
        too_large = [name for name, values in arrays.items() if not float(np.abs(values).max()) <= LARGEST]
        if too_large:
            raise UnsupportedError(
                f"its scale makes values of B larger than {LARGEST:.0f}", where=source, problems=too_large[:5]
            )
        dtype = np.float16 if base.dtype == "f16" else np.float32
        # The OrtValues are views: the arrays behind them must live until the file is written.
        narrow = {name: np.ascontiguousarray(values.astype(dtype)) for name, values in arrays.items()}
        file = ort.AdapterFormat()
        file.set_adapter_version(ADAPTER_VERSION)
        file.set_model_version(base.version_number)
        file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in narrow.items()})
        with atomic_file(output) as aside:
            file.export_adapter(str(aside))
            OnnxAdapter.open(aside, base)
        written = sha256_file(output)
        description = {
            "schema": SCHEMA,
            "sha256": written,
            "size_bytes": output.stat().st_size,
            "fingerprint": base.fingerprint,
            "base": base.name,
            "dtype": base.dtype,
            "packed": base.packed,
            "rank": info.rank,
            "n_pairs": info.n_pairs,
            "task": info.task_name,
            "prompt_prefix": info.prompt_prefix,
            "source_sha256": sha256_file(_weights_file(source)),
        }
        write_json(description_path(output), description)
    return ExportedOnnxAdapter(OnnxAdapter.open(output, base), info.task_name, tuple(notes))


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    return next(path for name in (WEIGHTS_FILE, MLX_WEIGHTS_FILE) if (path := source / name).is_file())


@contextlib.contextmanager
def _as_gguf(source: Path, base: StatedBase) -> Iterator[tuple[Path, list[str]]]:
    """The source as a GGUF adapter, and notes on how it became one."""
    if not source.exists():
        raise InputError("no such file or folder", where=source)
    if not source.is_dir():
        yield source, []
        return
    reasons = Reasons()
    with PeftFolder.open(source, reasons) as folder:
        outside = [pair.module for pair in folder.pairs if pair.module in ("model.embed_tokens", "lm_head")]
        if outside:
            reasons.unsupported("the ONNX graph has no LoRA on the embedding or the head", *outside)
            reasons.raise_any("cannot be exported", source)
    with tempfile.TemporaryDirectory(prefix="slm-edge-") as place:
        done = export_lora(source, base, Path(place) / "adapter.gguf", kind="f32")
        yield done.info.path, list(done.notes)


def _arrays(file: GgufFile, info: AdapterInfo, base: OnnxBase) -> dict[str, Matrix]:
    """Every LoRA input that the adapter fills, in F32."""
    family = base.stated().family
    found: dict[str, Matrix] = {}
    for pair in base.lora:
        parts: list[tuple[Matrix, Matrix] | None] = []
        for target in pair.targets:
            if target not in info.targets:
                parts.append(None)
                continue
            down, up = matrix_rows(file, f"{target}.lora_a"), matrix_rows(file, f"{target}.lora_b")
            n_heads = family.n_interleaved_heads(target, base.n_heads, base.n_kv_heads)
            if n_heads is not None:
                up = up[halves_order(len(up), n_heads)]
            parts.append((down.T, (up.T * (info.alpha / len(down))).astype(np.float32)))
        if any(part is not None for part in parts):
            found[pair.a], found[pair.b] = _side_by_side(pair, parts)
    return found


def _side_by_side(pair: LoraInput, parts: list[tuple[Matrix, Matrix] | None]) -> tuple[Matrix, Matrix]:
    """One A and B for several matrices: their A next to each other, their B on the diagonal, zeros elsewhere."""
    downs = [part[0] for part in parts if part is not None]
    rank = sum(down.shape[1] for down in downs)
    b = np.zeros((rank, pair.n_out), np.float32)
    row = column = 0
    for part, width in zip(parts, pair.widths, strict=True):
        if part is not None:
            up = part[1]
            b[row : row + len(up), column : column + width] = up
            row += len(up)
        column += width
    return np.concatenate(downs, axis=1), b
