"""A `llama_batch` over arrays of our own."""

import ctypes

import numpy as np

from .binding import lib


class TokenBatch:
    """Made once and filled anew for every decode; each token belongs to one sequence.

    Attributes:
        tokens, positions, sequences, outputs: shape (n_tokens,); an output is a token whose logits are wanted.
        struct: the `llama_batch` that points to them; its `n_tokens` says how many count.
    """

    def __init__(self, n_tokens: int) -> None:
        self.tokens = np.zeros(n_tokens, np.int32)
        self.positions = np.zeros(n_tokens, np.int32)
        self.sequences = np.zeros(n_tokens, np.int32)
        self.outputs = np.zeros(n_tokens, np.int8)
        self._n_sequences = np.ones(n_tokens, np.int32)
        # seq_id is an array of pointers, each to one token's list of sequences: here a list of length one.
        self._pointers = self.sequences.ctypes.data + 4 * np.arange(n_tokens, dtype=np.uintp)
        llama = lib()
        types = dict(llama.llama_batch._fields_)
        self.struct = llama.llama_batch()
        for name, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self._n_sequences),
            ("seq_id", self._pointers),
            ("logits", self.outputs),
        ):
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, types[name]))
