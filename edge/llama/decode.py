"""What one decode takes: a `llama_batch` over arrays of our own, and the threads that compute it.

The number of threads is one that was given, or as many as the machine has room for. The bits of a prompt do not depend
on it, nor do those of single tokens while at most 256 are in the cache. Beyond that flash attention splits one token's
keys and values among the threads, and adds the parts up in another order. So a single token that belongs to a prompt is
computed on one thread where the number is left open: a kept prefix is the same then.
"""

import ctypes
from typing import Any, Final

import numpy as np

from ..errors import InputError
from ..system.load import room
from ..system.machine import default_decode_threads, default_threads
from .binding import lib

# GGML_MAX_N_THREADS of ggml.h
MAX_THREADS: Final = 512


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


class Threads:
    """The numbers of threads of one context.

    Args:
        llama: the binding.
        one, many: for single tokens, and for prompts and batches. None: `many` is as `one` or the fast physical cores,
            `one` is `machine.default_decode_threads`, and fewer while other processes want the CPUs.

    Attributes:
        one, many: the most that are used.
        given: as they were given.
        adapts: whether fewer may be used.
        llama: the binding, where a proof may put a clock around `llama_decode`.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, llama: Any, one: int | None, many: int | None) -> None:
        for number in (one, many):
            if number is not None and not 1 <= number <= MAX_THREADS:
                raise InputError(f"{number} threads are asked for; 1 to {MAX_THREADS} are allowed")
        self.given = one, many
        self.one: int = one or default_decode_threads()
        self.many: int = many or one or default_threads()
        self.adapts = one is None and max(self.one, self.many) > 1
        self._many_adapts = many is None
        self.llama = llama
        self._set = (self.one, self.many)

    @property
    def now(self) -> int:
        """For the next single token."""
        return min(self.one, room().cpus) if self.adapts else self.one

    @property
    def many_now(self) -> int:
        """For the next prompt or batch."""
        return min(self.many, room().cpus) if self.adapts and self._many_adapts else self.many

    def decode(self, handle: Any, batch: Any, steady: bool = False) -> int:
        """`llama_decode` on as many threads as there is room for; returns its code.

        Args:
            steady: a single token is computed on one thread.
        """
        llama_decode = self.llama.llama_decode
        if not self.adapts:
            return int(llama_decode(handle, batch))
        space, (one, many) = room(), self._set
        if batch.n_tokens > 1:
            measured = self._many_adapts
            many = space.begin(self.many) if measured else many
        else:
            measured = not steady
            one = space.begin(self.one) if measured else 1
        if (one, many) != self._set:
            self.llama.llama_set_n_threads(handle, one, many)
            self._set = one, many
        code = int(llama_decode(handle, batch))
        if measured:
            space.end()
        return code
