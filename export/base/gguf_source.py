"""An existing GGUF model as the source of another one: re-quantised, or with a key or the head's tensor changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...edge.errors import InputError, UnsupportedError
from ...edge.gguf.file import GgufFile
from ...edge.gguf.types import GgmlType
from ..files.gguf_writer import NewTensor, Value, keys_of
from .quantize import QuantType

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
_FLOATS = frozenset({GgmlType.F32, GgmlType.F16, GgmlType.BF16})


@dataclass(frozen=True)
class GgufSource:
    """An opened GGUF model."""

    file: GgufFile

    @classmethod
    def open(cls, path: Path) -> "GgufSource":
        """Opens and checks a file.

        Raises:
            InputError: it is no model, or a part of one.
            DamagedError: it was cut short.
        """
        file = GgufFile.open(path)
        kind = file.get("general.type", "model")
        if kind != "model":
            raise InputError(f"is a GGUF of the kind {kind!r}, not a model", where=path)
        if int(file.get("split.count") or 1) > 1:
            raise UnsupportedError(
                "is one part of a split model", where=path, hint="join it first: llama-gguf-split --merge"
            )
        if EMBEDDING not in file.tensors:
            raise InputError(f"has no {EMBEDDING}: it holds no language model's weights", where=path)
        return cls(file)

    def check_type(self, type: QuantType | None, allow_requantize: bool) -> list[str]:
        """Whether the source is good enough for `type`; returns what the user should know.

        Floats are exact or nearly so whatever they come from, and Q8_0 is nearly lossless: both are taken. Quantising
        again what has fewer bits adds one error to another, so it must be asked for.

        Raises:
            UnsupportedError: it is quantised below 8 bits, and this was not allowed.
        """
        low = sorted(
            {
                info.type.name
                for info in self.file.tensors.values()
                if info.type not in _FLOATS and info.type is not GgmlType.Q8_0
            }
        )
        if type is None or type.direct in _FLOATS:
            return []
        if low and not allow_requantize:
            raise UnsupportedError(
                f"is quantised already ({', '.join(low)}); quantising it again loses more than quantising once",
                where=self.file.path,
                hint="take the float checkpoint, or say --allow-requantize",
            )
        if low:
            return [f"quantised from {', '.join(low)}: worse than the same type made from the float checkpoint"]
        quantised = any(info.type is GgmlType.Q8_0 for info in self.file.tensors.values())
        return ["quantised from Q8_0, not from the float checkpoint"] if quantised and type.name != "q8_0" else []

    def keys(self, changes: Mapping[str, Value]) -> dict[str, Value]:
        """The file's keys with some changed or added."""
        return keys_of(self.file) | dict(changes)

    def tensors(self, *, output_weight: bool) -> list[NewTensor]:
        """The file's tensors as they are; with a copy of the embedding as the head, where asked and not there."""
        found = [NewTensor.copied(self.file, name) for name in self.file.tensors]
        if output_weight and HEAD not in self.file.tensors:
            found.append(NewTensor.copied(self.file, EMBEDDING, HEAD))
        return found
