"""The bytes in which llama.cpp gives out one sequence's keys and values, made fit for contexts of other sizes.

A context whose sequences have their own parts of the cache calls these parts streams, writes how many there are, and
how many cells each one has of the sequence: none, but for the sequence's own. It rejects state saved with another
number of streams, though nothing else depends on it. So sequences are kept as a context of one stream would write them.

Layout (llama-context.cpp and llama-kv-cache.cpp of 2026-10): magic, sequence, then one cache, or two where there are
windows (that of the other layers first), then states. Of a cache: its number of streams; for each stream its number of
cells and, where that is not 0, the cells. All these numbers are uint32. States know no streams.
"""

import mmap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .states import Memory

Blob = npt.NDArray[np.uint8]
WORD_BYTES: Final = 4
_HEAD_BYTES: Final = 2 * WORD_BYTES
# Of each cell: position, number of sequences, the sequence; and three more in some models
_CELL_WORDS: Final = 3
_LONG_CELL_WORDS: Final = 6
_PAGES_BYTES: Final = 16 << 10


def new_blob(n_bytes: int) -> Blob:
    """Memory for `n_bytes`, shape (n_bytes,), of any content.

    From 16 KiB on it is pages of its own, the system's again once it is freed: kept prompts come and go in every size,
    and a heap that they share with all else would keep the holes.
    """
    if n_bytes < _PAGES_BYTES:
        return np.empty(n_bytes, np.uint8)
    return np.frombuffer(mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def of_one_stream(blob: Blob, n_streams: int, memory: "Memory") -> Blob:
    """What a context of `n_streams` has written, as one of a single stream writes it."""

    def alone(cache: Blob) -> list[Blob]:
        if memory.cuttable:
            # One cache fills the bytes, and of its streams one has cells: how these are written does not matter.
            counts = cache[WORD_BYTES : (1 + n_streams) * WORD_BYTES].view(np.uint32)
            n_before = int(np.flatnonzero(counts)[0]) if counts.any() else n_streams - 1
            n_after = n_streams - 1 - n_before
            return [_word(1), cache[(1 + n_before) * WORD_BYTES : cache.size - n_after * WORD_BYTES]]
        at = WORD_BYTES
        found = _word(0)
        for _ in range(n_streams):
            end = _stream_end(cache, at, memory)
            if end > at + WORD_BYTES:
                found = cache[at:end]
            at = end
        return [_word(1), found]

    return blob if n_streams == 1 else _mapped(blob, memory, alone)


def of_streams(blob: Blob, n_streams: int, memory: "Memory") -> Blob:
    """The reverse, the sequence's cells in the first stream: which one they come from does not matter."""
    empty = np.zeros((n_streams - 1) * WORD_BYTES, np.uint8)
    if n_streams == 1:
        return blob
    return _mapped(blob, memory, lambda cache: [_word(n_streams), cache[WORD_BYTES:], empty])


def _mapped(blob: Blob, memory: "Memory", change: "Callable[[Blob], list[Blob]]") -> Blob:
    parts = [blob[:_HEAD_BYTES]]
    at = _HEAD_BYTES
    for start, end in _caches(blob, memory):
        parts += change(blob[start:end])
        at = end
    parts.append(blob[at:])
    return np.concatenate(parts, out=new_blob(sum(part.size for part in parts)))


def _caches(blob: Blob, memory: "Memory") -> Iterator[tuple[int, int]]:
    """Where each cache begins and ends."""
    if memory.cuttable:
        yield _HEAD_BYTES, blob.size
        return
    at = _HEAD_BYTES
    for _ in range(2 if memory.window_tokens else 1):
        start = at
        at += WORD_BYTES
        for _ in range(_number(blob, start)):
            at = _stream_end(blob, at, memory)
        yield start, at


def _stream_end(blob: Blob, at: int, memory: "Memory") -> int:
    """Where the cells of a stream end whose number of cells stands at `at`."""
    n_cells = _number(blob, at)
    at += WORD_BYTES
    if not n_cells:
        return at
    at += n_cells * (_LONG_CELL_WORDS if memory.long_cells else _CELL_WORDS) * WORD_BYTES
    transposed, n_layers = _number(blob, at), _number(blob, at + WORD_BYTES)
    at += 2 * WORD_BYTES
    for _ in range(n_layers):
        # type, bytes of a row (uint64), rows
        at += 3 * WORD_BYTES + n_cells * _number(blob, at + WORD_BYTES)
    for _ in range(n_layers):
        if transposed:
            # type, bytes of an element, elements of a row
            at += 3 * WORD_BYTES + n_cells * _number(blob, at + WORD_BYTES) * _number(blob, at + 2 * WORD_BYTES)
        else:
            at += 3 * WORD_BYTES + n_cells * _number(blob, at + WORD_BYTES)
    return at


def _number(blob: Blob, at: int) -> int:
    return int.from_bytes(blob[at : at + WORD_BYTES].tobytes(), "little")


def _word(value: int) -> Blob:
    return np.array([value], np.uint32).view(np.uint8)
