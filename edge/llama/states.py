"""What llama.cpp keeps of a sequence, how it is read, put back and cut.

    context.remove(0, 256)                      # keys and values of every token: cut anywhere
    context.settle(0)                           # after a chunk: what is kept lies as if it had just been put back
    blob = context.read_sequence(0)

Three kinds of memory (llama.cpp's source of 2026-10, each tried here):

- Keys and values of every token: a cut leaves what stood before it.
- Windows: some layers keep their last tokens alone. llama.cpp cuts, answers "yes", and the next token is wrong if the
  window before the cut is gone; what it gives out holds the last window, so it counts at its own end only.
- States that each token changes: nothing can be cut.

So of a memory that is not `cuttable` only whole sequences are kept and put back. The cells of a window that has wrapped
lie in another order than those that were put back, and sums differ in their last bits: `settle` puts them back after
each chunk, so that what is computed from there on is the same either way.

What a base will keep is told from its file's header too, before anything is loaded (`kept_of`). Sizes are read layer by
layer from the tensors, since layers of one model need not be alike: a layer with `attn_output` attends, one with
`ssm_*` or `shortconv.*` has a state that each token changes.
"""

import ctypes
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import EngineError
from ..gguf.families import FAMILIES, Family
from ..gguf.file import GgufFile
from .binding import lib, quiet_logs

if TYPE_CHECKING:
    from .kv_bytes import Blob
    from .model import Model

# LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY of llama.h: what can't be cut, windows or states, without the rest
PARTIAL: Final = 1
# Of one rope type there are three numbers more for each cell (llama_kv_cell_ext).
MULTI_SECTION_ROPES: Final = (8, 40)


@dataclass(frozen=True)
class Memory:
    """What a model makes llama.cpp keep.

    Attributes:
        window_tokens: of the layers that keep a window; 0: there are none.
        has_state: there are layers with a state that each token changes.
        long_cells: cells have three numbers more.
        short_tokens: in contexts of more tokens for each sequence positions turn at other speeds, from the first token
            on (longrope); 0: it is all one.
    """

    window_tokens: int = 0
    has_state: bool = False
    long_cells: bool = False
    short_tokens: int = 0

    @classmethod
    def of(cls, model: Any) -> "Memory":
        """That of a loaded `llama_model`."""
        llama = lib()
        return cls(
            window_tokens=max(int(llama.llama_model_n_swa(model)), 0),
            has_state=bool(llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)),
            long_cells=int(llama.llama_model_rope_type(model)) in MULTI_SECTION_ROPES,
            short_tokens=_short_tokens(model),
        )

    @property
    def cuttable(self) -> bool:
        """Whether a sequence can be cut at any token."""
        return not self.window_tokens and not self.has_state


def _short_tokens(model: Any) -> int:
    scaling = f"{_key(model, 'general.architecture')}.rope.scaling"
    # Files of Phi-3 say no kind: llama.cpp goes by the tensors of factors alone.
    if _key(model, f"{scaling}.type") in ("linear", "yarn"):
        return 0
    return int(_key(model, f"{scaling}.original_context_length") or 0)


def _key(model: Any, name: str) -> str:
    """A key of a loaded model as text, "" where it has none."""
    buffer = ctypes.create_string_buffer(256)
    length = lib().llama_model_meta_val_str(model, name.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if length >= 0 else ""


class Sequences:
    """The part of a `Context` that deals with what is kept of its sequences."""

    handle: Any
    memory: Memory
    sequences: range
    _llama: Any
    _model: "Model"
    _cache: Any
    _n_streams: int
    n_ctx_seq_tokens: int

    @property
    def turns_long(self) -> bool:
        """Whether positions turn at the speeds of long contexts; what is kept counts in contexts of one kind only."""
        return 0 < self.memory.short_tokens < self.n_ctx_seq_tokens

    def _alive(self) -> None:
        """llama.cpp ends the process if it is given what was freed."""
        if not self.handle:
            raise EngineError("the context was closed", where=self._model.path)

    def remove(self, sequence: int, start: int, end: int = -1) -> None:
        """Forgets positions `start` to `end` (excluded; -1: all after) of a sequence.

        With windows, a cut is right only behind what the last `decode` began with.

        Raises:
            EngineError: this kind of model cannot forget a part.
        """
        self._alive()
        if not self._llama.llama_memory_seq_rm(self._cache, sequence, start, end):
            raise EngineError(f"llama.cpp cannot forget positions {start} to {end}", where=self._model.path)

    def length(self, sequence: int) -> int:
        """The position behind the last one that the KV cache holds of a sequence."""
        self._alive()
        return int(self._llama.llama_memory_seq_pos_max(self._cache, sequence)) + 1

    def sequence_bytes(self, sequence: int) -> int:
        """How many bytes `read_sequence` would give; of several sequences a few more."""
        self._alive()
        return int(self._llama.llama_state_seq_get_size(self.handle, sequence))

    def read_sequence(self, sequence: int) -> "Blob":
        """Keys and values of a sequence as bytes, shape (n_bytes,), for a context over the same base and of any size.

        Raises:
            EngineError: llama.cpp fails.
        """
        from .kv_bytes import new_blob, of_one_stream

        blob = new_blob(self.sequence_bytes(sequence))
        with quiet_logs() as log:
            n_bytes = self._llama.llama_state_seq_get_data(self.handle, _bytes_of(blob), blob.size, sequence)
        if n_bytes != blob.size:
            raise EngineError("llama.cpp cannot give out the KV cache", problems=log.errors())
        return of_one_stream(blob, self._n_streams, self.memory)

    def write_sequence(self, sequence: int, blob: "Blob") -> bool:
        """Replaces what the KV cache holds of a sequence; False, with the sequence empty, when llama.cpp refuses it.

        llama.cpp checks that layers, types and row sizes fit, and nothing else: not which model computed them, under
        which adapters, from which tokens. `prefix/chunks.py` and `prefix/disk.py` keep those books.
        """
        # Bytes of an empty sequence would leave it as it is.
        self.remove(sequence, 0)
        return self._put(sequence, blob)

    def _put(self, sequence: int, blob: "Blob") -> bool:
        """`write_sequence` into an empty sequence."""
        from .kv_bytes import of_streams

        blob = of_streams(blob, self._n_streams, self.memory)
        with quiet_logs():
            n_bytes = self._llama.llama_state_seq_set_data(self.handle, _bytes_of(blob), blob.size, sequence)
        if n_bytes != blob.size:
            self.remove(sequence, 0)
        return bool(n_bytes == blob.size)

    def clear(self) -> None:
        """Forgets everything in the KV cache."""
        self._alive()
        self._llama.llama_memory_clear(self._cache, True)

    def zero_rest(self) -> None:
        """Zeroes what the KV cache's memory holds beside its sequences.

        What was forgotten stays in memory behind a mask, and NaN behind a mask is NaN: without flash attention every
        later answer would be computed from it.
        """
        held = [(sequence, self.read_sequence(sequence)) for sequence in self.sequences if self.length(sequence)]
        self.clear()
        for sequence, blob in held:
            self.write_sequence(sequence, blob)

    def settle(self, sequence: int) -> None:
        """Lays the windows of a sequence as they would lie if it had just been put back; see above.

        Raises:
            EngineError: llama.cpp fails; the sequence is empty then.
        """
        if not self.memory.window_tokens or self.length(sequence) <= self.memory.window_tokens:
            return
        blob = np.empty(int(self._llama.llama_state_seq_get_size_ext(self.handle, sequence, PARTIAL)), np.uint8)
        with quiet_logs() as log:
            n_read = self._llama.llama_state_seq_get_data_ext(
                self.handle, _bytes_of(blob), blob.size, sequence, PARTIAL
            )
            n_put = self._llama.llama_state_seq_set_data_ext(self.handle, _bytes_of(blob), blob.size, sequence, PARTIAL)
        if not n_read == n_put == blob.size:
            self.remove(sequence, 0)
            raise EngineError("llama.cpp does not take back a window that it gave out", problems=log.errors())


def _bytes_of(blob: "Blob") -> Any:
    return blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


Shapes = dict[str, tuple[int, ...]]
_STATE: Final = ("ssm_", "shortconv.", "time_mix_")
_STATE_VALUE_BYTES: Final = 4
_DOWN: Final = ("ffn_down.weight", "ffn_down_exps.weight")
# Each so-many-th layer attends to all tokens in llama.cpp where the file does not say which do.
_FULL_EVERY: Final = {"gemma2": 2, "gpt-oss": 2, "cohere2": 4, "gemma3n": 5}


@dataclass(frozen=True)
class Kept:
    """What is kept.

    Attributes:
        kv_values: values of keys and values that each token leaves in layers that keep all tokens.
        windowed_kv_values: those in layers that keep the last `window_tokens` only; 0 where it is not known which
            layers do, and all count as keeping all.
        has_window: some layers may keep a window only.
        n_states, state_bytes: layers with a state, and what they take for each sequence.
        n_q, n_ff: values of the widest row of queries, and of the widest feed-forward part.
        row_values: lengths of the rows of keys and of values of one head, in the layers that attend.
    """

    kv_values: int
    windowed_kv_values: int
    window_tokens: int
    has_window: bool
    n_states: int
    state_bytes: int
    n_q: int
    n_ff: int
    row_values: frozenset[int]

    @property
    def cuttable(self) -> bool:
        """As `Memory.cuttable` of the base when it is loaded."""
        return not self.has_window and not self.n_states


def kept_of(file: GgufFile) -> Kept:
    """That of a base."""
    arch = str(file.get("general.architecture"))
    layers: defaultdict[int, Shapes] = defaultdict(dict)
    for name, info in file.tensors.items():
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            layers[int(number)][rest] = info.shape
    family, window = FAMILIES.get(arch), file.get(f"{arch}.attention.sliding_window", 0)
    # Mistral's and Qwen's files name a window that their architectures in llama.cpp do not have.
    no_window = family is not None and family.proved and not family.window_every
    has_window = bool(window) and not no_window
    # Layers behind these read keys and values of earlier ones.
    n_own = max(layers, default=-1) + 1 - int(file.get(f"{arch}.attention.shared_kv_layers", 0))
    rows = {i: _kv_rows(file, arch, i, shapes) for i, shapes in layers.items() if i < n_own and _attends(shapes)}
    windowed = {i for i in rows if _windowed(file, arch, family, i)} if has_window else set()
    states = [shapes for shapes in layers.values() if any(name.startswith(_STATE) for name in shapes)]
    n_embd = _width(file)
    everything = [shape for shapes in layers.values() for shape in shapes.items()]
    return Kept(
        kv_values=sum(sum(rows[i]) for i in rows if i not in windowed),
        windowed_kv_values=sum(sum(rows[i]) for i in windowed),
        window_tokens=int(window) if windowed else 0,
        has_window=has_window,
        n_states=len(states),
        state_bytes=_STATE_VALUE_BYTES * len(states) * _state_values(file, arch, n_embd),
        n_q=max([shape[1] for name, shape in everything if name in ("attn_q.weight", "attn_qkv.weight")] or [n_embd]),
        n_ff=max([_inner(file, arch, one) for name, one in everything if name in _DOWN] or [2 * n_embd]),
        row_values=frozenset(value // max(_kv_heads(file, arch, i), 1) for i, row in rows.items() for value in row),
    )


def _inner(file: GgufFile, arch: str, shape: tuple[int, ...]) -> int:
    """Values of a feed-forward part within; of experts those that a token is given to, side by side."""
    return shape[0] * int(file.get(f"{arch}.expert_used_count", 1)) if len(shape) == 3 else shape[0]


def _width(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    return int(embedding.shape[0]) if embedding is not None else 0


def _windowed(file: GgufFile, arch: str, family: Family | None, layer: int) -> bool:
    """Whether a layer keeps a window; False where it is not known."""
    if family is not None and family.proved:
        return family.windowed(layer)
    pattern = file.get(f"{arch}.attention.sliding_window_pattern", _FULL_EVERY.get(arch, 0))
    if isinstance(pattern, list | tuple):
        return bool(pattern[layer]) if layer < len(pattern) else False
    return bool(pattern) and (layer + 1) % int(pattern) != 0


def _attends(shapes: Shapes) -> bool:
    return "attn_output.weight" in shapes or "attn_k.weight" in shapes


def _number(file: GgufFile, key: str, layer: int, default: int) -> int:
    value: Any = file.get(key, default)
    if isinstance(value, list | tuple):
        return int(value[layer]) if layer < len(value) else default
    return int(value)


def _kv_heads(file: GgufFile, arch: str, layer: int) -> int:
    n_heads = _number(file, f"{arch}.attention.head_count", layer, 1)
    return _number(file, f"{arch}.attention.head_count_kv", layer, n_heads)


def _kv_rows(file: GgufFile, arch: str, layer: int, shapes: Shapes) -> tuple[int, int]:
    """Values of the keys and of the values of one token in one layer."""
    key, value = shapes.get("attn_k.weight"), shapes.get("attn_v.weight")
    if key is not None and len(key) == 2:
        return key[1], value[1] if value is not None else key[1]
    n_embd = _width(file)
    head = n_embd // max(_number(file, f"{arch}.attention.head_count", layer, 1), 1)
    n_kv = _kv_heads(file, arch, layer)
    lengths = (_number(file, f"{arch}.attention.{name}_length", layer, head) for name in ("key", "value"))
    one, other = (n_kv * length for length in lengths)
    return one, other


def _state_values(file: GgufFile, arch: str, n_embd: int) -> int:
    """Values of the state of one layer and sequence: of its convolution, and of what it remembers."""
    cached = int(file.get(f"{arch}.shortconv.l_cache", 0))
    if cached:
        return n_embd * (cached - 1)
    names = ("conv_kernel", "inner_size", "group_count", "state_size")
    conv, inner, groups, state = (int(file.get(f"{arch}.ssm.{name}", 0)) for name in names)
    return max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner
