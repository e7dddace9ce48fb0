"""Matches a PEFT adapter with a base GGUF and decides how each matrix will be stored; every misfit is a reason.

    tensors = plan_tensors(folder, base, scaling, "auto", reasons)

PEFT's A (rank, n_in) and B (n_out, rank) become `<base tensor>.lora_a` and `.lora_b` in the same order of rows;
of an embedding A is turned around; rows of B of q and k are reordered as the base's own rows are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...edge.gguf.base import BaseInfo
from ...edge.gguf.families import Family
from ...edge.gguf.hf_form import interleave_rows
from ...edge.gguf.other_bases import adapted_family, value_orders
from ...edge.gguf.types import GgmlType
from ..files.encode import F16_MAX, decode_rows, encode_rows
from ..files.gguf_writer import Chunk, NewTensor
from ..files.safetensors import READABLE, SafetensorsFile
from ..reasons import Reasons
from .peft_config import LoraPair
from .peft_folder import PeftFolder
from .scaling import FileScaling

LoraType = Literal["auto", "f32", "f16", "bf16", "q8_0"]
LORA_TYPES: Final = get_args(LoraType)

# Below this root mean square, F16's smallest step (2^-24, of a value or of Q8_0's scale) costs over 1 %.
SMALLEST_RMS: Final = {GgmlType.F32: 0.0, GgmlType.F16: 3e-6, GgmlType.Q8_0: 4e-4}
# Root mean square difference, relative, from which a copied embedding is not the base's. Of two models it is about 1.4.
COPY_TOLERANCE: Final = 0.5
COPY_ROWS: Final = 64


@dataclass(frozen=True)
class PlannedTensor:
    """One matrix of the file to write.

    Attributes:
        source: name in the safetensors file.
        n_rows, row_length: as written.
        factor: what the values are multiplied by.
        transposed: the source lies the other way round (an embedding's A; both of mlx-lm's).
        n_heads: heads whose rows are reordered; None if they stay.
        rows, columns: which of the source's stand at each place; None: all as they are.
    """

    name: str
    source: str
    n_rows: int
    row_length: int
    type: GgmlType
    factor: float
    transposed: bool
    n_heads: int | None
    rows: npt.NDArray[np.int64] | None = None
    columns: npt.NDArray[np.int64] | None = None

    def values(self, weights: SafetensorsFile) -> npt.NDArray[np.float32]:
        """The matrix as it will be read back, (n_rows, row_length), before it is encoded."""
        found = _values(weights, self.source, self.factor, self.transposed, self.n_heads)
        found = found if self.rows is None else found[self.rows]
        return found if self.columns is None else np.ascontiguousarray(found[:, self.columns])

    def new(self, weights: SafetensorsFile) -> NewTensor:
        """The tensor for `write_gguf`: read and converted when its turn comes."""

        def chunks() -> Iterator[Chunk]:
            yield encode_rows(self.values(weights), self.type)

        return NewTensor(self.name, (self.row_length, self.n_rows), self.type, chunks)


def _values(
    weights: SafetensorsFile, source: str, factor: float, transposed: bool, n_heads: int | None
) -> npt.NDArray[np.float32]:
    rows: npt.NDArray[Any] = weights.rows(source, 0, weights.tensors[source].shape[0]).astype(np.float32, copy=False)
    if factor != 1.0:
        rows = (rows * np.float64(factor)).astype(np.float32)
    if transposed:
        rows = np.ascontiguousarray(rows.T)
    return rows if n_heads is None else interleave_rows(rows, n_heads)


def plan_tensors(
    folder: PeftFolder, base: BaseInfo, scaling: FileScaling, kind: LoraType, reasons: Reasons
) -> list[PlannedTensor]:
    """Every tensor to write, A before B, in the source's order; reads all values once to see that they can be held.

    Args:
        kind: "auto" takes Q8_0 where rows are a multiple of 32, else F16, and a wider type where values are so small
            that this would cost over 1 %; "q8_0" and "f16" insist.
    """
    weights = folder.weights
    if weights is None:
        return []
    planned: list[PlannedTensor] = []
    zero = True
    family = adapted_family(base.family, [pair.module for pair in folder.pairs])
    for pair in folder.pairs:
        targets = _targets(pair, base, family, weights, reasons)
        if not targets or not all(weights.tensors[name].dtype in READABLE for name in (pair.a, pair.b)):
            continue
        sizes = []
        for part, source in (("lora_a", pair.a), ("lora_b", pair.b)):
            is_b = part == "lora_b"
            turned = pair.turned != (pair.embedding and not is_b)
            n_rows, length = weights.tensors[source].shape[:: -1 if turned else 1]
            factor = scaling.factor_of(pair.module) if is_b else 1.0
            with np.errstate(over="ignore"):
                size = _Size.of(_values(weights, source, factor, False, None))
            sizes.append(size)
            _check_range(source, size, reasons)
            stored = _choose(kind, length, size)
            start = 0
            for target in targets:
                rows, columns = value_orders(base.file, target) if family.tiled_values else (None, None)
                heads = family.n_interleaved_heads(target, base.n_heads, base.n_kv_heads)
                if len(targets) > 1:
                    rows = np.arange(start, start + base.tensor_shapes[target][1])
                    start += len(rows)
                order = (heads, rows, None) if is_b else (None, None, columns)
                n = len(rows) if is_b and rows is not None else n_rows
                planned.append(PlannedTensor(f"{target}.{part}", source, n, length, stored, factor, turned, *order))
        zero = zero and min(size.largest for size in sizes) == 0
    _check_copies(folder, base, weights, reasons)
    if planned and zero:
        reasons.wrong("every pair multiplies to zero: the adapter changes nothing (was it saved before training?)")
    return planned


@dataclass(frozen=True)
class _Size:
    """How large a matrix's values are; `largest` is NaN or infinite when a value is."""

    largest: float
    rms: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> "_Size":
        flat = values.reshape(-1)
        largest = max(abs(float(flat.max())), abs(float(flat.min())))
        # numpy's max keeps a NaN, so one number tells of all.
        if not math.isfinite(largest) or largest == 0:
            return cls(largest, largest)
        scaled = flat / np.float32(largest)
        return cls(largest, largest * math.sqrt(float(np.dot(scaled, scaled)) / flat.size))


def _choose(kind: LoraType, row_length: int, size: _Size) -> GgmlType:
    if kind in ("f32", "bf16"):
        return GgmlType[kind.upper()]
    narrow = GgmlType.F16 if kind == "f16" or row_length % GgmlType.Q8_0.block[0] else GgmlType.Q8_0
    if kind != "auto":
        return narrow
    fitting = [
        stored
        for stored in (narrow, GgmlType.F16, GgmlType.F32)
        if size.largest == 0 or size.rms >= SMALLEST_RMS[stored]
    ]
    return fitting[0] if fitting else GgmlType.F32


def _check_range(source: str, size: _Size, reasons: Reasons) -> None:
    if math.isnan(size.largest):
        reasons.wrong("values that are not finite", f"{source} holds NaN")
    elif math.isinf(size.largest):
        reasons.wrong("values that are not finite", f"{source} holds infinity")
    elif size.largest > F16_MAX:
        # The runtime refuses them in every type: llama.cpp's kernels go through F16 in places.
        reasons.wrong(f"values beyond {F16_MAX:.0f}, F16's largest number", f"{source} reaches {size.largest:.3g}")


def _targets(pair: LoraPair, base: BaseInfo, family: Family, weights: SafetensorsFile, reasons: Reasons) -> list[str]:
    """The base's tensors that a pair changes, in the order of its rows; none with a reason."""
    targets = [f"{name}.weight" for name in family.gguf_names(pair.module)]
    if {"token_embd.weight", "output.weight"}.intersection(targets) and not base.has_output:
        reasons.unsupported(
            "the base uses one matrix as embedding and as head, where llama.cpp cannot adapt either", pair.module
        )
        reasons.hint = (
            "export the base with a head of its own: slm-edge export base HF_DIR -o base.gguf --output-weight; "
            "then the adapter for that base"
        )
        return []
    if any(pair.module.endswith(f".{name}") for name in family.unreached):
        reasons.unsupported("llama.cpp multiplies these past the adapter, which would do nothing", pair.module)
        return []
    shapes = [base.tensor_shapes.get(target, ()) for target in targets]
    if not targets or any(len(shape) != 2 for shape in shapes):
        reasons.wrong("the base has no such matrix (is it another model's adapter?)", pair.module)
        return []
    n_in, n_out = shapes[0][0], sum(shape[1] for shape in shapes)
    a, b = (weights.tensors[name].shape[:: -1 if pair.turned else 1] for name in (pair.a, pair.b))
    if pair.embedding != (targets == ["token_embd.weight"]):
        reasons.wrong("an embedding's pair on another layer, or the other way round", pair.module)
        return []
    found = (a[1], b[0]) if not pair.embedding else (b[0], a[1])
    if found != (n_in, n_out):
        resized = targets[0] in ("token_embd.weight", "output.weight") and found[0] == n_in
        reasons.wrong(
            "the vocabulary was resized: a GGUF adapter holds no new token rows"
            if resized
            else "made for matrices of another size than the base's (is it another model's adapter?)",
            f"{pair.module} is {found[0]} -> {found[1]}, the base's {n_in} -> {n_out}",
        )
        return []
    if pair.rank > max(n_in, n_out):
        reasons.wrong("a rank above the matrix's sides", f"{pair.module} has rank {pair.rank} on {n_in} -> {n_out}")
    return targets


def _check_copies(folder: PeftFolder, base: BaseInfo, weights: SafetensorsFile, reasons: Reasons) -> None:
    """PEFT adds copies of an embedding or head that it adapts: they must be the base's own, in shape and values."""
    for module, name in folder.base_copies.items():
        target = f"{base.family.gguf_name(module)}.weight"
        if target == "output.weight" and not base.has_output:
            target = "token_embd.weight"
        shape = weights.tensors[name].shape
        if target not in base.tensor_shapes:
            reasons.wrong("a copy of a layer that the base lacks", name)
        elif shape != base.tensor_shapes[target][::-1]:
            reasons.wrong(
                "the vocabulary was resized: a GGUF adapter holds no new token rows",
                f"{name} is {list(shape)}, the base's {list(base.tensor_shapes[target][::-1])}",
            )
        elif weights.tensors[name].dtype in READABLE:
            difference = _copy_difference(weights, name, base, target)
            if not difference <= COPY_TOLERANCE:
                reasons.wrong(
                    "its copy of the base's layer differs from the base (is it another model's adapter?)",
                    f"{name} by {difference:.0%}",
                )


def _copy_difference(weights: SafetensorsFile, name: str, base: BaseInfo, target: str) -> float:
    """Root mean square difference of some rows of a copy from the base's, relative to the base's."""
    info = base.file.tensors[target]
    raw = base.file.raw(target).reshape(info.shape[1], -1)
    picked = np.unique(np.linspace(0, info.shape[1] - 1, COPY_ROWS).astype(int))
    ours = np.concatenate([weights.rows(name, int(row), 1) for row in picked]).astype(np.float64)
    theirs = decode_rows(raw[picked], info.type).astype(np.float64).reshape(ours.shape)
    scale = float(np.sqrt(np.mean(theirs**2)))
    return float(np.sqrt(np.mean((ours - theirs) ** 2))) / scale if scale else math.inf
