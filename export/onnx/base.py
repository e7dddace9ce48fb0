"""A base as ONNX: a checkpoint or GGUF becomes one folder that onnxruntime, genai and optimum can run.

    export_onnx("base.gguf", "onnx", kind="keep")

A checkpoint goes through a GGUF of its own element type first (beside the output, removed afterwards): its tokenizer
is proved there, its fingerprint is that of the GGUF base, and both engines get their numbers from the same file.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...edge.console import progress
from ...edge.errors import InputError, UnsupportedError
from ...edge.files.aside import folder_beside
from ...edge.files.atomic import atomic_folder, write_json
from ...edge.files.read import sha256_file
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.base_keys import number_of, typed
from ...edge.gguf.file import ValueType
from ...edge.gguf.rope import DEFAULT_ROPE_THETA, LONG_FACTORS, LONGROPE, ROPE_FACTORS, SHORT_FACTORS
from ...edge.onnx.folder import BASE_FILE, DATA_FILE, MODEL_FILE, ONNX_FILE, SCHEMA, TOKENIZER_FILE, LoraInput, OnnxBase
from ..base.base import export_base
from ..base.quantize import TYPES
from ..checkpoint.checkpoint import Checkpoint
from ..files.gguf_writer import keys_of, write_gguf
from .data import DataFile
from .decoder import Parts, build, store
from .others import write_configs
from .rope import computed_tokens, head_size_of
from .weights import OnnxType, Weights

# Tables of cos and sin for more positions than this are asked for, not given: 131,072 rows would be tens of MB.
DEFAULT_MAX_LENGTH_TOKENS: Final = 8192
# GroupQueryAttention rotates 16 numbers at a time, and fails while it runs where a head is no multiple.
HEAD_SIZE_STEP: Final = 16
ACCURACY_LEVELS: Final = {"int8": 4, "f32": 1}
# Keys that a base without a proved row was not asked for, and what they are where it has none; None: it must.
_FLOATS: Final = {
    "attention.layer_norm_rms_epsilon": None,
    "rope.freq_base": DEFAULT_ROPE_THETA,
    "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
}


@dataclass(frozen=True)
class ExportedOnnx:
    """What was made.

    Attributes:
        base: the folder, opened again.
        losses: source type -> (held type, relative root mean square error), where numbers had to change.
        size_bytes: of all files.
        notes: what the user should know, though it is no fault.
    """

    base: OnnxBase
    losses: dict[str, tuple[str, float]]
    size_bytes: int
    seconds_s: float
    notes: tuple[str, ...]


def export_onnx(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    kind: OnnxType | None = None,
    packed: bool = False,
    max_length_tokens: int | None = None,
    activations: str = "int8",
    force: bool = False,
) -> ExportedOnnx:
    """Writes the folder `dest`.

    Args:
        source: a Hugging Face folder, or a GGUF base.
        kind: None: "keep" for a GGUF (every type that MatMulNBits can hold stays as it is), "int8" for a checkpoint.
        packed: q, k, v and gate, up as one matrix and one LoRA pair each: fewer nodes, larger adapters.
        max_length_tokens: of prompt and answer; None: what the base was trained for, up to 8,192.
        activations: "int8" rounds the inputs of quantised matrices to int8 blocks, as llama.cpp does; "f32" does not.
        force: replace a folder that this made before.

    Raises:
        InputError, UnsupportedError, DamagedError: something about the source, all reasons together.
        DoesNotFitError: the disk is too full.
    """
    began = time.monotonic()
    source, dest = Path(source), Path(dest)
    if not source.exists():
        raise InputError("no such file or folder", where=source)
    if force and dest.exists() and any(dest.iterdir()) and not (dest / ONNX_FILE).is_file():
        raise InputError("is not a folder that this command made", where=dest, hint="choose another place")
    if source.is_dir() and kind == "keep":
        raise InputError("`keep` is for GGUF sources; name a type", where=source)
    kind = kind or ("int8" if source.is_dir() else "keep")
    with _as_gguf(source, dest) as (gguf, notes):
        info = BaseInfo.open(gguf)
        _check(info, source)
        packed = packed or info.family.fused
        longest = computed_tokens(info)
        length = max_length_tokens or min(longest, DEFAULT_MAX_LENGTH_TOKENS)
        if length > longest:
            known = f"was trained for {longest}"
            if longest < info.n_ctx_train_tokens:
                known = f"turns positions at other speeds beyond {longest} (longrope)"
            raise InputError(f"a length of {length} tokens is asked for; the base {known}", where="--max-length")
        with atomic_folder(dest, replace=force) as folder:
            total_bytes = sum(tensor.size_bytes for tensor in info.file.tensors.values())
            with DataFile.create(folder / DATA_FILE) as data, progress("writing", total_bytes, "bytes") as advance:
                weights = Weights(info, data, kind, advance)
                parts = store(info, weights, data, packed=packed, max_length_tokens=length)
            level = ACCURACY_LEVELS[activations]
            for name, lora in ((MODEL_FILE, True), (BASE_FILE, False)):
                graph = build(info, parts, data, weights.dtype, lora=lora, accuracy_level=level)
                graph.save(folder / name, Path(name).stem)
            write_gguf(folder / TOKENIZER_FILE, keys_of(info.file), [])
            notes += write_configs(folder, info, length, source if source.is_dir() else None, weights.dtype)
            sha256 = None if source.is_dir() else sha256_file(source)
            description = _describe(info, parts, weights, packed=packed, length=length, sha256=sha256)
            description["activations"] = activations
            description["files"] = {
                path.name: {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
                for path in sorted(folder.iterdir())
            }
            write_json(folder / ONNX_FILE, description)
            OnnxBase.open(folder)
    size_bytes = sum(path.stat().st_size for path in dest.iterdir())
    return ExportedOnnx(OnnxBase.open(dest), weights.losses, size_bytes, time.monotonic() - began, tuple(notes))


@contextlib.contextmanager
def _as_gguf(source: Path, dest: Path) -> Iterator[tuple[Path, list[str]]]:
    """The source as a GGUF, and notes on how it became one."""
    if not source.is_dir():
        yield source, []
        return
    with Checkpoint.open(source) as checkpoint:
        own_type = checkpoint.float_type.name.lower()
    parent = dest.absolute().parent
    if not parent.is_dir():
        raise InputError("the folder to write into does not exist", where=parent, hint=f"mkdir -p {parent}")
    with folder_beside(dest) as folder:
        path = folder / f"{source.resolve().name}.gguf"
        result = export_base(source, path, TYPES[own_type])
        yield path, list(result.notes)


def _check(info: BaseInfo, source: Path) -> None:
    """Refuses what the graph cannot compute as the base means it; all reasons at once."""
    file, arch = info.file, info.architecture
    if "onnx" not in info.family.uses:
        raise UnsupportedError(f"ONNX graphs of the architecture {arch!r} are not made", where=source)
    reasons = [] if info.family.proved else _unlike_the_row(info)
    if reasons:
        raise UnsupportedError("cannot be an ONNX graph", where=source, problems=reasons)
    size = head_size_of(info)
    if size % HEAD_SIZE_STEP:
        reasons.append(
            f"its heads are {size} wide; onnxruntime's GroupQueryAttention rotates multiples of {HEAD_SIZE_STEP}"
        )
    if int(file.get(f"{arch}.attention.value_length", info.n_embd // info.n_heads)) != size:
        reasons.append("its keys and values have different widths")
    turned = int(file.get(f"{arch}.rope.dimension_count", size))
    if turned != size and (info.family.proved or turned % HEAD_SIZE_STEP):
        reasons.append(
            f"{turned} of the {size} numbers of each head are rotated; a part is handled of Phi-3 alone, where it is "
            f"a multiple of {HEAD_SIZE_STEP}"
        )
    scaling = str(file.get(f"{arch}.rope.scaling.type", "none"))
    stretched = scaling == LONGROPE and not info.family.proved and SHORT_FACTORS in file.tensors
    if scaling not in ("none", "", "linear") and not stretched:
        reasons.append(f"its positions are scaled by {scaling!r}; plain, linear and Llama 3's scaling are handled")
    known = set(_known_tensors(info))
    other = [name for name in info.tensor_shapes if name not in known]
    if other:
        shown = ", ".join(other[:4]) + ("…" if len(other) > 4 else "")
        reasons.append(f"it has tensors that the graph does not compute with: {shown}")
    if reasons:
        raise UnsupportedError("cannot be an ONNX graph", where=source, problems=reasons)


def _unlike_the_row(info: BaseInfo) -> list[str]:
    """What keys and tensors are not as the row has them, of a base that was taken as it is."""
    file, arch = info.file, info.architecture
    faults: list[str] = []
    usual = info.n_embd // info.n_heads
    head, value, turned = (
        number_of(file, f"{arch}.{key}", faults, usual)
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
    )
    if number_of(file, f"{arch}.rope.scaling.original_context_length", faults, 0) < 0:
        faults.append(f"{arch}.rope.scaling.original_context_length is below 0")
    for key, default in _FLOATS.items():
        number = typed(file, f"{arch}.{key}", ValueType.FLOAT32, faults, default)
        if number is not None and not 0 < number < np.inf:
            faults.append(f"{arch}.{key} is {number}")
    lists = [key for key, entry in file.metadata.items() if entry.type is ValueType.ARRAY]
    faults += [f"{key} is a list" for key in lists if key.startswith(f"{arch}.")]
    if info.n_heads % info.n_kv_heads:
        faults.append(f"{info.n_heads} attention heads cannot share {info.n_kv_heads} K/V heads evenly")
    if not 0 < turned <= head:
        faults.append(f"{turned} of the {head} numbers of each head are rotated")
    sizes = {
        "n_embd": info.n_embd,
        "n_qkv": (info.n_heads + info.n_kv_heads) * head + info.n_kv_heads * value,
        "n_o": info.n_heads * value,
        "n_ff": info.n_ff,
        "n_gate_up": 2 * info.n_ff,
    }
    expected: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (info.n_embd, info.n_vocab),
        "output_norm.weight": (info.n_embd,),
    }
    if info.has_output:
        expected["output.weight"] = (info.n_embd, info.n_vocab)
    for layer in range(info.n_layers):
        for name, dims in info.family.tensors():
            expected[f"blk.{layer}.{name}"] = tuple(sizes[dim] for dim in dims)
    if {SHORT_FACTORS, LONG_FACTORS} & file.tensors.keys():
        expected |= dict.fromkeys((SHORT_FACTORS, LONG_FACTORS), (turned // 2,))
    for name, shape in expected.items():
        found = info.tensor_shapes.get(name)
        if found != shape:
            faults.append(f"{name} " + ("is missing" if found is None else f"has the shape {found}, not {shape}"))
    return faults[:8]


def _known_tensors(info: BaseInfo) -> Iterator[str]:
    yield from ("token_embd.weight", "output_norm.weight", "output.weight", ROPE_FACTORS)
    if not info.family.proved:
        yield from (SHORT_FACTORS, LONG_FACTORS)
    for layer in range(info.n_layers):
        for part in info.family.block:
            yield f"blk.{layer}.{part.name}.weight"
            if part.is_matrix:
                yield f"blk.{layer}.{part.name}.bias"


def _describe(
    info: BaseInfo, parts: Parts, weights: Weights, *, packed: bool, length: int, sha256: str | None
) -> dict[str, Any]:
    lora = [
        LoraInput(*linear.pair, n_in=linear.n_in, widths=linear.widths, targets=linear.targets)
        for linear in parts.linears
    ]
    return {
        "schema": SCHEMA,
        "fingerprint": info.fingerprint,
        "name": info.name,
        "architecture": info.architecture,
        "dtype": "f16" if np.dtype(weights.dtype) == np.float16 else "f32",
        "packed": packed,
        "n_layers": info.n_layers,
        "n_embd": info.n_embd,
        "n_heads": info.n_heads,
        "n_kv_heads": info.n_kv_heads,
        "head_size": parts.head_size,
        "n_ff": info.n_ff,
        "n_vocab": info.n_vocab,
        "max_length_tokens": length,
        "weights": dict(weights.held),
        "source_sha256": sha256,
        "losses": {source: {"held": held, "error": error} for source, (held, error) in weights.losses.items()},
        "lora": [asdict(pair) for pair in lora],
    }
