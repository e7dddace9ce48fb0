"""The bytes in which llama.cpp gives out one sequence's keys and values, made fit for contexts of other sizes.

A context whose sequences have their own parts of the cache calls these parts streams, writes how many there are, and
how many cells each one has of the sequence: none, but for the sequence's own. It rejects state saved with another
number of streams, though nothing else depends on it. So sequences are kept as a context of one stream would write them.

Layout (llama-context.cpp and llama-kv-cache.cpp of 2026-10): magic, sequence, number of streams; then for each stream
its number of cells and, where that is not 0, the cells. All numbers are uint32.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Blob = npt.NDArray[np.uint8]
WORD_BYTES: Final = 4
# Where the number of streams stands, and the first stream behind it.
_N_STREAMS: Final = slice(2 * WORD_BYTES, 3 * WORD_BYTES)
_STREAMS: Final = 3 * WORD_BYTES


def of_one_stream(blob: Blob, n_streams: int) -> Blob:
    """What a context of `n_streams` has written, as one of a single stream writes it."""
    if n_streams == 1:
        return blob
    counts = blob[_STREAMS : _STREAMS + n_streams * WORD_BYTES].view(np.uint32)
    n_before = int(np.flatnonzero(counts)[0]) if counts.any() else n_streams - 1
    n_after = n_streams - 1 - n_before
    cells = blob[_STREAMS + n_before * WORD_BYTES : blob.size - n_after * WORD_BYTES]
    return np.concatenate([blob[: _N_STREAMS.start], _word(1), cells])


def of_streams(blob: Blob, n_streams: int) -> Blob:
    """The reverse, the sequence's cells in the first stream: which one they come from does not matter."""
    if n_streams == 1:
        return blob
    empty = np.zeros((n_streams - 1) * WORD_BYTES, np.uint8)
    return np.concatenate([blob[: _N_STREAMS.start], _word(n_streams), blob[_STREAMS:], empty])


def _word(value: int) -> Blob:
    return np.array([value], np.uint32).view(np.uint8)
