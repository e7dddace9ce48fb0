"""Reads a SentencePiece `tokenizer.model` by itself: pieces, scores, types and the few settings that matter.

    SentencePieceModel.open("tokenizer.model").pieces[3]      # Piece(text="<0x00>", score=0.0, type=6)

The file is a protocol buffer (`ModelProto` in SentencePiece's sentencepiece_model.proto); field numbers below are
those of that file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...edge.errors import DamagedError, UnsupportedError
from ...edge.files.read import read_bytes

BPE: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary. `type` is SentencePiece's, which is also llama.cpp's: 1 normal … 6 byte."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A read model.

    Attributes:
        add_space_prefix: a space is put before the text.
        ids: of the special tokens that it names ("bos", "eos", "unk", "pad"); -1 if it has none.
    """

    pieces: tuple[Piece, ...]
    add_space_prefix: bool
    ids: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> "SentencePieceModel":
        """Reads a file.

        Raises:
            UnsupportedError: a unigram model or a tiktoken file, neither of which is llama.cpp's "llama" tokenizer.
            DamagedError: not a SentencePiece model.
        """
        data = read_bytes(path)
        pieces: list[Piece] = []
        # A whole file says how it was trained, if only that nothing was set.
        kind: int | None = None
        prefix, ids = True, {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
        try:
            for field, value in _fields(data):
                if field == 1:
                    piece = dict(_fields(value))
                    score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                    pieces.append(Piece(piece[1].decode("utf-8"), score, piece.get(3, 1)))
                elif field == 2:
                    trainer = dict(_fields(value))
                    kind = trainer.get(3, 1)
                    for name, number in (("unk", 40), ("bos", 41), ("eos", 42), ("pad", 43)):
                        ids[name] = _signed(trainer.get(number, ids[name]))
                elif field == 3:
                    prefix = bool(dict(_fields(value)).get(3, 1))
        except (ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError, AttributeError, TypeError):
            pieces = []
        if not pieces or kind is None:
            if b" " in data[:200] and b"=" in data[:200]:
                raise UnsupportedError(
                    "is a tiktoken file", where=path, hint="give the checkpoint with its tokenizer.json"
                )
            raise DamagedError("is not a SentencePiece model", where=path)
        if kind != BPE:
            raise UnsupportedError("is a unigram model; llama.cpp's tokenizer for this family is BPE", where=path)
        return cls(tuple(pieces), prefix, ids)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("not a protocol buffer")
        if at + size > len(data):
            raise ValueError("it was cut short")
        yield field, data[at : at + size]
        at += size
