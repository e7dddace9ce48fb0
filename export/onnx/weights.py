"""A GGUF base's tensors, put into an ONNX data file: blocks as they are, floats as floats, the rest requantised.

    weights = Weights(BaseInfo.open("base.gguf"), data, "keep")
    weights.matrix("model.layers.0.self_attn.q_proj", ["blk.0.attn_q.weight"])

Rows of q and k of the Llama family go back from llama.cpp's order (neighbouring pairs) to Hugging Face's (halves).
Memory is one matrix of a layer; embedding and head go through in pieces.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ...edge.errors import DamagedError, UnsupportedError
from ...edge.gguf.base import BaseInfo
from ...edge.gguf.hf_form import halves_order
from ...edge.gguf.types import GgmlType
from ..files.encode import decode_rows
from .blocks import CARRIERS
from .data import DataFile

OnnxType = Literal["keep", "f32", "f16", "int8", "int4"]
FLOATS: Final = frozenset({GgmlType.F32, GgmlType.F16, GgmlType.BF16})
PIECE_VALUES: Final = 1 << 22
F16_MAX: Final = 65504.0


@dataclass(frozen=True)
class Matrix:
    """One matrix in the data file, by the names of its tensors.

    Attributes:
        held: the ggml type whose blocks it has; None for floats.
        weight: quants, (n_out, n_blocks, bytes), or floats: (n_in, n_out) transposed, (n_out, n_in) else.
        scales: (n_out, n_blocks); None for floats.
        offsets: (n_blocks, n_out); None if the type has none.
    """

    n_in: int
    n_out: int
    held: GgmlType | None
    weight: str
    scales: str | None = None
    offsets: str | None = None


class Weights:
    """Moves tensors from the base into the data file.

    Args:
        kind: "keep" leaves every type that MatMulNBits can hold; the others make all matrices so.
        on_bytes: told of the source's bytes as they are read.

    Attributes:
        dtype: of the graph's floats, np.float32 or np.float16.
        held: ggml type (or "F32", "F16") -> matrices that are held so.
        losses: source type -> (held type, relative root mean square error), where numbers had to change.
    """

    def __init__(
        self, info: BaseInfo, data: DataFile, kind: OnnxType, on_bytes: Callable[[int], object] = lambda n: None
    ) -> None:
        self._info = info
        self._data = data
        self._kind = kind
        self._on_bytes = on_bytes
        self.dtype: Any = np.float16 if kind == "f16" else np.float32
        self.held: Counter[str] = Counter()
        self._errors: dict[tuple[str, str], list[float]] = {}

    @property
    def losses(self) -> dict[str, tuple[str, float]]:
        return {
            source: (held, float(np.sqrt(noise / max(signal, 1e-30))))
            for (source, held), (noise, signal) in self._errors.items()
            if noise
        }

    def held_as(self, name: str) -> GgmlType | None:
        """As which ggml type a matrix will be held; None for floats."""
        source = self._info.file.tensors[name]
        own = CARRIERS.get(source.type)
        wide = GgmlType.Q8_0 if source.shape[0] % 32 == 0 else None
        if self._kind in ("f32", "f16") or wide is None:
            return None
        if self._kind == "keep":
            return source.type if own else None if source.type in FLOATS else wide
        whole_model = name in ("token_embd.weight", "output.weight")
        if self._kind == "int8" or whole_model:
            return source.type if own and own.bits == 8 and not own.has_offsets else wide
        return source.type if own and own.bits == 4 else GgmlType.Q4_0

    def vector(self, name: str, tensors: Sequence[str]) -> str:
        """A norm or bias; several are put behind one another."""
        parts = []
        for tensor in tensors:
            values = self._info.file.array(tensor).reshape(-1)
            order = self._order(tensor)
            parts.append(values if order is None else values[order])
        return self._data.add(name, self._narrow(name, np.concatenate(parts)))

    def matrix(self, name: str, tensors: Sequence[str], *, transposed: bool = True) -> Matrix:
        """A matrix; several of one width are put below one another, if `held_as` is the same for all.

        Args:
            transposed: floats are written (n_in, n_out).
        """
        file = self._info.file
        n_in = file.tensors[tensors[0]].shape[0]
        n_out = sum(file.tensors[tensor].shape[1] for tensor in tensors)
        held = self.held_as(tensors[0])
        self.held[np.dtype(self.dtype).name.replace("float", "F") if held is None else held.name] += len(tensors)
        if held is None:
            return self._floats(name, tensors, n_in, n_out, transposed)
        carrier = CARRIERS[held]
        n_blocks, block_bytes = n_in // carrier.block_values, carrier.block_values * carrier.bits // 8
        quants = self._data.reserve(f"{name}.quants", np.uint8, (n_out, n_blocks, block_bytes))
        scales = self._data.reserve(f"{name}.scales", np.float32, (n_out, n_blocks))
        offsets: list[npt.NDArray[np.float32]] = []
        for tensor in tensors:
            for rows in self._rows(tensor):
                blocks = carrier.blocks(self._as_type(tensor, rows, held))
                if not np.isfinite(blocks.scales).all():
                    raise DamagedError("a block's scale is not a finite number", where=f"{file.path}, {tensor}")
                quants.write(blocks.quants)
                scales.write(blocks.scales)
                if blocks.offsets is not None:
                    offsets.append(blocks.offsets)
        constant = None
        if offsets:
            constant = self._data.add(f"{name}.offsets", np.ascontiguousarray(np.concatenate(offsets).T))
        return Matrix(n_in, n_out, held, quants.name, scales.name, constant)

    def _floats(self, name: str, tensors: Sequence[str], n_in: int, n_out: int, transposed: bool) -> Matrix:
        if transposed:
            rows = np.concatenate([self._values(t, rows) for t in tensors for rows in self._rows(t)])
            self._data.add(f"{name}.weight", np.ascontiguousarray(self._narrow(name, rows).T))
        else:
            region = self._data.reserve(f"{name}.weight", self.dtype, (n_out, n_in))
            for tensor in tensors:
                for piece in self._rows(tensor):
                    region.write(self._narrow(name, self._values(tensor, piece)))
        return Matrix(n_in, n_out, None, f"{name}.weight")

    def _narrow(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        largest = float(np.abs(values).max(initial=0))
        if not np.isfinite(largest):
            raise DamagedError("holds NaN or infinity", where=f"{self._info.file.path}, {name}")
        if self.dtype == np.float16 and largest > F16_MAX:
            raise UnsupportedError(
                f"{name} reaches {largest:.3g}, beyond F16", where=self._info.file.path, hint="take --type f32 or int8"
            )
        return values.astype(self.dtype, copy=False)

    def _order(self, tensor: str) -> npt.NDArray[np.int64] | None:
        info = self._info
        n_heads = info.family.n_interleaved_heads(tensor, info.n_heads, info.n_kv_heads)
        return None if n_heads is None else halves_order(info.tensor_shapes[tensor][-1], n_heads)

    def _rows(self, tensor: str) -> Iterator[npt.NDArray[np.uint8]]:
        """Raw rows in Hugging Face's order, a few MiB at a time."""
        entry = self._info.file.tensors[tensor]
        raw = self._info.file.raw(tensor).reshape(entry.shape[1], -1)
        order = self._order(tensor)
        step = max(1, PIECE_VALUES // entry.shape[0])
        for first in range(0, entry.shape[1], step):
            rows = raw[first : first + step] if order is None else raw[order[first : first + step]]
            yield np.ascontiguousarray(rows)
            self._on_bytes(rows.nbytes)
        self._info.file.release()

    def _values(self, tensor: str, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return decode_rows(rows, self._info.file.tensors[tensor].type)

    def _as_type(self, tensor: str, rows: npt.NDArray[np.uint8], held: GgmlType) -> npt.NDArray[np.uint8]:
        """Raw rows of the held type: the source's own where it is that, else requantised, its error noted."""
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        source = self._info.file.tensors[tensor].type
        if source is held:
            return rows
        values = self._values(tensor, rows)
        made = np.asarray(quantize(values, GGMLQuantizationType(int(held))))
        errors = self._errors.setdefault((source.name, held.name), [0.0, 0.0])
        errors[0] += float(np.square(decode_rows(made, held) - values, dtype=np.float64).sum())
        errors[1] += float(np.square(values, dtype=np.float64).sum())
        return made
