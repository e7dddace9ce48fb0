"""The keys and values of one sequence as bytes, out of a context and into one of the same kind.

    blob = read_sequence(context, 0)
    write_sequence(other, 3, blob)

llama.cpp checks that layers, types and row sizes fit, and nothing else: not which model computed them, under which
adapters, from which tokens. `prefix_store.py` and `prefix_disk.py` keep those books.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import Context
from .errors import EngineError
from .llama import lib, quiet_logs

Blob = npt.NDArray[np.uint8]


def sequence_bytes(context: Context, sequence: int) -> int:
    """How many bytes `read_sequence` would give."""
    return int(lib().llama_state_seq_get_size(context.handle, sequence))


def read_sequence(context: Context, sequence: int) -> Blob:
    """Everything that the KV cache holds of a sequence, shape (n_bytes,).

    Raises:
        EngineError: llama.cpp fails.
    """
    blob = np.empty(sequence_bytes(context, sequence), np.uint8)
    with quiet_logs() as log:
        n_bytes = lib().llama_state_seq_get_data(context.handle, _pointer(blob), blob.size, sequence)
    if n_bytes != blob.size:
        raise EngineError("llama.cpp cannot give out the KV cache", problems=log.errors())
    return blob


def write_sequence(context: Context, sequence: int, blob: Blob) -> bool:
    """Replaces what the KV cache holds of a sequence; False, with the sequence empty, when llama.cpp refuses it."""
    with quiet_logs():
        n_bytes = lib().llama_state_seq_set_data(context.handle, _pointer(blob), blob.size, sequence)
    if n_bytes == blob.size:
        return True
    context.remove(sequence, 0)
    return False


def _pointer(blob: Blob) -> Any:
    return blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
