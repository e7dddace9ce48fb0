"""Owners of llama.cpp's objects: a model mapped once, its adapters, and contexts that decode tokens.

    with Model.load("base.gguf") as model, Context(model, n_ctx_tokens=512) as context:
        context.set_adapters([(model.load_adapter("math.gguf"), 1.0)])
        context.decode(model.vocab.encode("2 + 2 ="), 0)
        context.logits().argmax()

Nothing here checks what is inside a file: an adapter goes through `gguf.adapter.check_adapter` first, because llama.cpp
ends the process on malformed ones. Nothing is locked: a model with its contexts belongs to one thread at a time.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFitError, EngineError, InputError
from ..options import FlashAttention, KvType
from ..system.load import Threads
from .binding import NotCopied, lib, unheard
from .model import Adapter, Model, created
from .states import Sequences


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


Outputs = Literal["last", "all", "none"]

# enum ggml_type and enum llama_flash_attn_type of llama.h
KV_TYPES: Final[dict[str, int]] = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH_ATTENTION: Final[dict[str, int]] = {"auto": -1, "off": 0, "on": 1}
# llama_decode's answer when the KV cache has no room; it has then changed nothing
NO_KV_SLOT: Final = 1
MAX_SEQUENCES: Final = 256
# llama_get_logits_ith as an address: a view of it is made once for each row, which costs as much as choosing a token
_ADDRESS_OF_ROW: Final = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)


class Context(NotCopied, Sequences):
    """A KV cache with its compute buffers over a model: decodes tokens under the adapters that are set.

    Args:
        model: the base.
        n_ctx_tokens: room of the KV cache over all sequences; llama.cpp rounds it up to a multiple of 256.
        n_batch_tokens: tokens computed at once; longer inputs are split.
        n_seq_max: sequences kept apart.
        n_outputs_max: logit rows that one batch may give; None: one for each sequence. Rows are paid for in memory
            (4 bytes x vocabulary each), so ask for `n_batch_tokens` only where `outputs="all"` is used.
        threads, threads_batch: for one token at a time, and for prompts and batches; see `system.load.Threads`.
        kv_type: element type of the KV cache.
        flash_attention: "q8_0" needs it on; results differ in the last bits between on and off.
        kv_unified: all sequences share the whole room; else each has an equal part of it and attends to it alone.

    Attributes:
        n_ctx_tokens: the room that there is, at least what was asked.
        sequences: their numbers.
        n_ctx_seq_tokens: the longest that one sequence can be.
        memory: what llama.cpp keeps of a sequence.
        threads, threads_batch: the most that are used.
        pace: how many are used now.

    Raises:
        InputError: an argument out of its range.
        EngineError: llama.cpp cannot make it, most often for want of memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx_tokens: int,
        n_batch_tokens: int = 512,
        n_seq_max: int = 1,
        n_outputs_max: int | None = None,
        threads: int | None = None,
        threads_batch: int | None = None,
        kv_type: KvType = "f16",
        flash_attention: FlashAttention = "auto",
        kv_unified: bool = False,
    ) -> None:
        n_outputs_max = n_seq_max if n_outputs_max is None else n_outputs_max
        _check_sizes(n_ctx_tokens, n_batch_tokens, n_seq_max, n_outputs_max, kv_type, flash_attention)
        llama = lib()
        self.pace = Threads(llama, threads, threads_batch)
        self._llama = llama
        self._model = model
        self.memory = model.memory
        self._watch = model.watch
        self._active: list[tuple[Adapter, float]] = []
        self._kept_rows: npt.NDArray[np.float32] | None = None
        self._n_streams = 1 if kv_unified else n_seq_max
        self.sequences = range(n_seq_max)
        self._logits_address = _ADDRESS_OF_ROW(ctypes.cast(llama.llama_get_logits_ith, ctypes.c_void_p).value or 0)
        self._views: dict[int, npt.NDArray[np.float32]] = {}
        self.threads, self.threads_batch = self.pace.one, self.pace.many
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx_tokens
        params.n_batch = params.n_ubatch = n_batch_tokens
        params.n_seq_max = n_seq_max
        params.n_outputs_max = n_outputs_max
        params.n_threads = self.threads
        params.n_threads_batch = self.threads_batch
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.kv_unified = kv_unified
        params.no_perf = False
        # Of layers that attend within a window, the window alone (`states.py`).
        params.swa_full = False
        self.handle, _ = created(
            "make a context", model.path, lambda: llama.llama_init_from_model(model.handle, params)
        )
        model.contexts[id(self)] = self
        self._cache = llama.llama_get_memory(self.handle)
        self.n_ctx_tokens: int = llama.llama_n_ctx(self.handle)
        self.n_ctx_seq_tokens: int = llama.llama_n_ctx_seq(self.handle)
        self.n_batch_tokens: int = llama.llama_n_batch(self.handle)
        self.n_outputs_max = n_outputs_max
        self.n_vocab = model.vocab.n_tokens
        self._batch = TokenBatch(self.n_batch_tokens)
        self._one = TokenBatch(1)
        self._one.outputs[0], self._one.struct.n_tokens = True, 1

    def set_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Replaces the whole set of `(adapter, scale)`; scale multiplies the adapter's own alpha / rank.

        What the KV cache holds was computed under the set before: forget it, or don't mix it. The next decode after a
        change pays for new compute buffers (milliseconds).

        Raises:
            InputError: an adapter stands twice, is closed, or belongs to another model.
        """
        if len({id(adapter) for adapter, _ in adapters}) != len(adapters):
            raise InputError("an adapter is in the set twice; add up its scales instead")
        for adapter, _ in adapters:
            if not adapter.handle or adapter.model not in (self._model, self._model.lender):
                raise InputError("the adapter is closed or was loaded for another model", where=adapter.path)
        self._alive()
        n = len(adapters)
        pointer = self._llama.llama_adapter_lora_p_ctypes
        handles = (pointer * n)(*[adapter.handle for adapter, _ in adapters]) if n else None
        scales = (ctypes.c_float * n)(*[scale for _, scale in adapters]) if n else None
        if self._llama.llama_set_adapters_lora(self.handle, handles, n, scales) != 0:
            raise EngineError("llama.cpp cannot set the adapters", where=self._model.path)
        self._active = list(adapters)

    @property
    def adapters(self) -> list[Adapter]:
        """Those in the set."""
        return [adapter for adapter, _ in self._active]

    def drop_adapter(self, adapter: Adapter) -> None:
        """Takes the adapter out of the set, if it is in it."""
        left = [(other, scale) for other, scale in self._active if other is not adapter]
        if len(left) != len(self._active):
            self.set_adapters(left)

    def decode(
        self,
        token_ids: Sequence[int],
        position: int,
        *,
        sequence: int = 0,
        outputs: Outputs = "last",
        steady: bool = False,
    ) -> None:
        """Computes tokens at `position`, `position + 1`, … of one sequence, in batches of `n_batch_tokens`.

        Args:
            token_ids: at least one.
            outputs: which tokens give logits. "all" needs a context made with `n_outputs_max=n_batch_tokens`.
            steady: the bits must not depend on how busy the machine is, see `system.load.Threads`.

        Raises:
            InputError: no tokens, or "all" in a context that has no room for so many rows.
            DoesNotFitError: the KV cache is full; the batches before stay in it.
            EngineError: llama.cpp fails.
        """
        n_tokens, size = len(token_ids), self.n_batch_tokens
        if n_tokens == 0:
            raise InputError("there are no tokens to decode")
        if outputs == "all" and min(n_tokens, size) > self.n_outputs_max:
            raise InputError(
                f"logits of all {n_tokens} tokens are asked of a context for {self.n_outputs_max}",
                hint=f"make it with n_outputs_max={size}",
            )
        rows: list[npt.NDArray[np.float32]] = []
        self._kept_rows = None
        batch = self._batch
        for start in range(0, n_tokens, size):
            ids = token_ids[start : start + size]
            n = len(ids)
            batch.tokens[:n] = ids
            batch.positions[:n] = range(position + start, position + start + n)
            batch.sequences[:n] = sequence
            batch.outputs[:n] = outputs == "all"
            if outputs == "last" and start + n == n_tokens:
                batch.outputs[n - 1] = True
            self._run(n, steady)
            if outputs == "all" and n_tokens > size:
                rows.append(np.stack([self.logits_view(i) for i in range(n)]))
        if rows:
            self._kept_rows = np.concatenate(rows)

    def decode_one(self, token_id: int, position: int, sequence: int = 0) -> None:
        """As `decode((token_id,), position, sequence=sequence)`, with the least of Python around it.

        Between two tokens the weights have gone through the caches, so each line here is fetched from memory: by way of
        `decode` a token of SmolLM2-135M takes 1 % longer.
        """
        one = self._one
        one.tokens[0] = token_id
        one.positions[0] = position
        one.sequences[0] = sequence
        self._kept_rows = None
        if not self.handle:
            self._alive()
        if self._watch is not None:
            self._watch.check()
        code = self.pace.decode(self.handle, one.struct)
        problems = unheard()
        if code:
            self._fail(code, 1, problems)

    def decode_step(self, token_ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Computes one token for each of several sequences in one batch; `logits(i)` is that of the i-th.

        Args:
            token_ids, positions, sequences: equally long, at most `n_outputs_max`; sequences in rising order.

        Raises:
            DoesNotFitError: the KV cache is full; nothing was changed.
            EngineError: llama.cpp fails.
        """
        n = len(token_ids)
        if not 0 < n <= min(self.n_outputs_max, self.n_batch_tokens):
            raise InputError(f"{n} sequences in one step; 1 to {min(self.n_outputs_max, self.n_batch_tokens)} fit")
        batch = self._batch
        batch.tokens[:n] = token_ids
        batch.positions[:n] = positions
        batch.sequences[:n] = sequences
        batch.outputs[:n] = True
        self._kept_rows = None
        self._run(n)

    def _run(self, n_tokens: int, steady: bool = False) -> None:
        self._alive()
        if self._watch is not None:
            self._watch.check()
        batch = self._batch.struct
        batch.n_tokens = n_tokens
        code = self.pace.decode(self.handle, batch, steady)
        problems = unheard()
        if code:
            self._fail(code, n_tokens, problems)

    def _fail(self, code: int, n_tokens: int, problems: list[str]) -> None:
        if code == NO_KV_SLOT:
            raise DoesNotFitError(f"the context of {self.n_ctx_tokens} tokens has no room for {n_tokens} more")
        raise EngineError(f"llama.cpp cannot decode (code {code})", where=self._model.path, problems=problems)

    @property
    def output_handle(self) -> Any:
        """The `llama_context` that holds the last output, for llama.cpp's samplers."""
        return self.handle

    def logits_view(self, i: int = -1) -> npt.NDArray[np.float32]:
        """The logits of the i-th output as llama.cpp holds them, shape (n_vocab,): valid until the next decode.

        Args:
            i: index among the tokens of the last batch; -1 is the last output.
        """
        if not self.handle:
            self._alive()
        address = self._logits_address(self.handle, i)
        view = self._views.get(address)
        if view is not None:
            return view
        if not address:
            raise EngineError(f"there are no logits for token {i} of the last batch", where=self._model.path)
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        self._views[address] = view = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        return view

    def logits(self, i: int = -1) -> npt.NDArray[np.float32]:
        """A copy of the logits of one token of the last `decode`, shape (n_vocab,).

        Args:
            i: index among the tokens given to the last decode; -1 is the last one.
        """
        if self._kept_rows is not None:
            return np.array(self._kept_rows[i])
        return self.logits_view(i).copy()

    @property
    def handles(self) -> list[Any]:
        """Every `llama_context` that may compute for this one."""
        return [self.handle]

    def beside(self, **options: Any) -> "Context":
        """Another context over the same base, computing as this one does; options as of the class."""
        return Context(self._model, **options)

    def close(self) -> None:
        """Frees it. Calling it twice does nothing."""
        if not self.handle:
            return
        handle, self.handle = self.handle, None
        self._active = []
        self._views.clear()
        del self._model.contexts[id(self)]
        self._llama.llama_free(handle)

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_sizes(n_ctx: int, n_batch: int, n_seq: int, n_outputs: int, kv_type: str, flash_attention: str) -> None:
    problems = []
    if n_ctx < 1 or n_batch < 1:
        problems.append(f"context of {n_ctx} and batch of {n_batch} tokens: both are at least 1")
    if not 1 <= n_seq <= MAX_SEQUENCES:
        problems.append(f"{n_seq} sequences are asked for; 1 to {MAX_SEQUENCES} are allowed")
    # llama.cpp ends the process when this does not hold.
    if n_outputs < n_seq:
        problems.append(f"{n_outputs} outputs for {n_seq} sequences: at least one each")
    if n_batch < n_seq:
        problems.append(f"batches of {n_batch} tokens for {n_seq} sequences: at least one each")
    if kv_type not in KV_TYPES:
        problems.append(f"KV type {kv_type!r}; known: {', '.join(KV_TYPES)}")
    if flash_attention not in FLASH_ATTENTION:
        problems.append(f"flash attention {flash_attention!r}; known: {', '.join(FLASH_ATTENTION)}")
    if kv_type == "q8_0" and flash_attention == "off":
        problems.append("a q8_0 KV cache needs flash attention")
    if problems:
        raise InputError("the context cannot be made like this", problems=problems)
