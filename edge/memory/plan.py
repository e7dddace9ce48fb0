"""How much memory a session will need, from the header of its base alone, before anything is loaded.

    plan = plan_memory(BaseInfo.open("base.gguf"), n_ctx_tokens=2048)
    plan.total_bytes, plan.kv_bytes, plan.choices.mmap

What is planned is the peak of the resident set (VmHWM on Linux): private memory and the mapped pages of the base. It
needs no sampling, and the page cache counts only if it is mapped. Pages that `two_layouts.py` maps twice count once.
With `mmap` the base's pages can be dropped by the kernel and are shared with other processes: `evictable_bytes` says
how much that is. Pages that weights were copied from are released if the system can do that (`mapped_pages.py`);
elsewhere they stay, and count.

The rules are those of llama.cpp's CPU backend as of 2026-10, its source read and its own figures compared: which
weights are copied into a faster layout, what the loader stages, how large the graph's buffers are. The process's own
part was measured (benchmarks/proofs/memory_plan.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..gguf.base import BaseInfo
from ..gguf.file import GgufFile
from ..llama.model import cpu_features, repacked_tensors
from ..llama.states import Kept, kept_of
from ..options import BATCH_TOKENS, KvType
from ..system.machine import CAN_LET_GO
from ..written import human_bytes

MIB: Final = 1 << 20
# llama.cpp's `lazy_read` (llama-model-loader.cpp): a table of gemma4.cpp above this stays mapped and is not brought in.
ROW_READ_BYTES: Final = 4 << 30
_PAGE_BYTES: Final = 4096
# llama.cpp rounds the cells of a KV cache up to this.
KV_PAD_TOKENS: Final = 256
KV_VALUE_BYTES: Final[dict[str, float]] = {"f32": 4, "f16": 2, "q8_0": 34 / 32}
# ggml-cpu's tiled matrix products keep one such slot for each thread (ggml_tiled_ws_size).
THREAD_WORK_BYTES: Final = 512 << 10
# Measured on Linux x86-64 with CPython 3.11, two real vocabularies (49,152 and 151,936 tokens): Python with numpy,
# jinja2, llama.cpp and our modules; then for each token and each merge of the vocabulary, here and in llama.cpp.
PROCESS_BYTES: Final = 47 * MIB
VOCABULARY_ENTRY_BYTES: Final = 245
# The same of a second `llama_model`, which has no part of Python's.
SECOND_ENTRY_BYTES: Final = 166
# Metadata of graphs that llama.cpp makes for each adapter that is loaded, for each of the base's matrices.
ADAPTER_MATRIX_BYTES: Final = 16 << 10


@dataclass(frozen=True)
class Choices:
    """How a session would be set up; as in `options.EngineOptions`."""

    mmap: bool
    repack: bool
    both_layouts: bool
    n_ctx_tokens: int
    kv_type: KvType
    n_batch_tokens: int

    def describe(self) -> str:
        """ "mapped, repacked, context 2048, KV f16, batch 256" """
        load = "mapped" if self.mmap else "read into memory"
        layout = "repacked" if self.repack else "as stored"
        layout = "repacked and for prompts as stored" if self.both_layouts else layout
        return f"{load}, {layout}, context {self.n_ctx_tokens}, KV {self.kv_type}, batch {self.n_batch_tokens}"


@dataclass(frozen=True)
class MemoryPlan:
    """What would be resident, in bytes.

    Attributes:
        weights_bytes: the base's tensors that stay as stored, mapped or read.
        repacked_bytes: copies of them in this CPU's faster layout.
        kv_bytes: keys and values, and states that each token changes.
        compute_bytes: buffers of the graph and of its operations.
        outputs_bytes: logits that are kept.
        adapters_bytes: adapters with their graph metadata, and the small context that each is tried in.
        snapshots_bytes: kept prefixes, as given.
        parallel_bytes: the second context, where several answers are computed at once.
        process_bytes: Python, libraries, the vocabulary.
        loading_bytes: what is needed above weights and process while the base is loaded, and freed again.
        passing_bytes: mapped pages that are copied from and released. Not in the total; a page cache that cannot hold
            them reads the file twice.
        choices: the setup that this holds for.
    """

    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int
    outputs_bytes: int
    adapters_bytes: int
    snapshots_bytes: int
    parallel_bytes: int
    process_bytes: int
    loading_bytes: int
    passing_bytes: int
    choices: Choices

    @property
    def total_bytes(self) -> int:
        """The peak: while loading or while running, whichever is more."""
        running = self.kv_bytes + self.compute_bytes + self.outputs_bytes + self.adapters_bytes
        running += self.snapshots_bytes + self.parallel_bytes
        return self.weights_bytes + self.repacked_bytes + self.process_bytes + max(running, self.loading_bytes)

    @property
    def evictable_bytes(self) -> int:
        """The part of the total that the kernel can drop and read again: the mapped base."""
        return self.weights_bytes if self.choices.mmap else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = {name: getattr(self, f"{name}_bytes") for name in (*_ROWS, "loading", "passing", "total", "evictable")}
        return {f"{name}_bytes": value for name, value in rows.items()} | {"choices": vars(self.choices).copy()}

    def describe(self) -> str:
        """ "weights 93.8 MiB + KV 45.0 MiB + … = 215.3 MiB (mapped, …)" """
        rows = [(name.replace("kv", "KV"), getattr(self, f"{name}_bytes")) for name in _ROWS]
        parts = " + ".join(f"{name} {human_bytes(value)}" for name, value in rows if value)
        return f"{parts} = {human_bytes(self.total_bytes)} ({self.choices.describe()})"


_ROWS: Final = ("weights", "repacked", "kv", "compute", "outputs", "adapters", "snapshots", "parallel", "process")


def plan_memory(
    base: BaseInfo | GgufFile,
    *,
    n_ctx_tokens: int = 2048,
    kv_type: KvType = "f16",
    n_batch_tokens: int = BATCH_TOKENS,
    mmap: bool = True,
    repack: bool = True,
    both_layouts: bool = False,
    adapters_bytes: int = 0,
    n_adapters: int = 0,
    snapshots_bytes: int = 0,
    n_parallel: int = 0,
    n_rows: int = 1,
    n_outputs: int = 1,
    n_threads: int = 1,
    flash_attention: bool = True,
    features: Iterable[str] | None = None,
    lets_go: bool = CAN_LET_GO,
) -> MemoryPlan:
    """The memory of a session with one context over `base`.

    Args:
        n_ctx_tokens, kv_type, n_batch_tokens, mmap, repack, both_layouts: as in `options.EngineOptions`; the last one
            with both others before it.
        adapters_bytes, n_adapters: files of the adapters that are loaded at once, and how many they are.
        snapshots_bytes: budget of the prefixes kept in memory.
        n_parallel: answers computed at once in a context beside, each as long as the context; 0: there is none.
        n_rows: answers computed side by side in the session's own context, each as long as the context.
        n_outputs: logit rows that one batch may give.
        n_threads: threads of the computation.
        features: of the CPU that it is to run on, as `cpu_features` names them; None: this one.
        lets_go: whether the system that it will run on can release mapped pages; by default this one.
    """
    file = base.file if isinstance(base, BaseInfo) else base
    tensors = file.tensors
    context = ContextSize.of(file)
    options: Any = {"kv_type": kv_type, "n_threads": n_threads, "flash_attention": flash_attention}
    options["both_layouts"] = both_layouts
    n_batch, n_outputs = max(n_batch_tokens, n_rows), max(n_outputs, n_rows)
    kv, compute, outputs = context.bytes(
        n_ctx_tokens, n_batch_tokens=n_batch, n_outputs=n_outputs, n_seq=n_rows, **options
    )
    beside = (0, 0, 0)
    if n_parallel:
        n_batch = max(n_batch_tokens, n_parallel)
        beside = context.bytes(n_ctx_tokens, n_batch_tokens=n_batch, n_outputs=n_parallel, n_seq=n_parallel, **options)
    metadata_bytes = ADAPTER_MATRIX_BYTES * context.n_matrices
    adapters_bytes += n_adapters * metadata_bytes
    if n_adapters:
        # As the canary tries it, with graphs of its own.
        adapters_bytes += sum(context.bytes(1, n_batch_tokens=8, n_threads=n_threads)) + metadata_bytes

    copies = repacked_tensors(file, cpu_features() if features is None else features) if repack else []
    stored = sum(info.size_bytes for info in tensors.values()) - _not_brought_in(file, n_ctx_tokens)
    repacked = sum(info.size_bytes for info in copies)
    copied_alone = sum(info.size_bytes for info in copies if info.name != "token_embd.weight")
    metadata = file.metadata
    n_entries = sum(
        metadata[key].n_values for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges") if key in metadata
    )
    if mmap:
        passing = copied_alone if lets_go else 0
        weights = stored - passing
        # The header is mapped with the rest until the tensors stand, and the vocabulary is parsed twice.
        loading = min(info.offset_bytes for info in tensors.values()) + 40 * n_entries
        if passing:
            # All of the file before the first copy is made, then tensor by tensor.
            largest = max(info.size_bytes for info in copies)
            loading = max(stored + loading - weights - repacked, largest - weights, 0)
        if both_layouts:
            # They come back when the first prompt is computed, in a second mapping of the same pages.
            weights, loading, passing = stored, max(loading - passing, 0), 0
    else:
        passing, weights = 0, stored - copied_alone
        # A copy is made from a buffer as large as its tensor, the largest first, before the others are read.
        at, loading = stored - copied_alone + repacked, 0
        done = 0
        for info in sorted(copies, key=lambda info: -info.size_bytes):
            done += info.size_bytes
            loading = max(loading, done + info.size_bytes - at)
    return MemoryPlan(
        weights_bytes=weights,
        repacked_bytes=repacked,
        kv_bytes=kv,
        compute_bytes=compute,
        outputs_bytes=outputs,
        adapters_bytes=adapters_bytes,
        snapshots_bytes=snapshots_bytes,
        parallel_bytes=sum(beside),
        process_bytes=PROCESS_BYTES + (VOCABULARY_ENTRY_BYTES + both_layouts * SECOND_ENTRY_BYTES) * n_entries,
        loading_bytes=loading,
        passing_bytes=passing,
        choices=Choices(mmap, repack, both_layouts, n_ctx_tokens, kv_type, n_batch_tokens),
    )


def _not_brought_in(file: GgufFile, n_ctx_tokens: int) -> int:
    """Bytes of a table that is read row by row, beyond the pages of a full context's rows."""
    table = file.tensors.get("per_layer_token_embd.weight")
    if table is None or file.get("general.architecture") != "gemma4" or table.size_bytes <= ROW_READ_BYTES:
        return 0
    row_bytes = table.size_bytes // table.shape[1]
    return max(0, table.size_bytes - n_ctx_tokens * (row_bytes + _PAGE_BYTES))


def _shape(file: GgufFile, name: str, n_dims: int = 2) -> tuple[int, ...]:
    """A tensor's, of zeros where there is none."""
    info = file.tensors.get(name)
    return (0,) * n_dims if info is None else info.shape


def _padded(n_tokens: int) -> int:
    return -(-n_tokens // KV_PAD_TOKENS) * KV_PAD_TOKENS


@dataclass(frozen=True)
class ContextSize:
    """What a context over a base takes; lengths of rows, and counts of all blocks together or of the heads of one.

    Attributes:
        n_layer_inputs: values of a token's own inputs to all layers together (Gemma 3n and 4).
        n_altup: states that go through the layers side by side (Gemma 3n).
    """

    kept: Kept
    n_matrices: int
    n_heads: int
    n_embd: int
    n_vocab: int
    n_layer_inputs: int = 0
    n_altup: int = 1

    @property
    def cuttable(self) -> bool:
        """As `llama.states.Memory.cuttable` of the base when it is loaded."""
        return self.kept.cuttable

    @classmethod
    def of(cls, file: GgufFile) -> "ContextSize":
        """From a base's header."""
        n_embd, n_vocab = file.tensors["token_embd.weight"].shape
        n_heads = file.get(f"{file.get('general.architecture')}.attention.head_count", 1)
        return cls(
            kept=kept_of(file),
            n_matrices=sum(name.startswith("blk.") and len(info.shape) == 2 for name, info in file.tensors.items()),
            n_heads=max(n_heads) if isinstance(n_heads, list | tuple) else int(n_heads),
            n_embd=n_embd,
            n_vocab=n_vocab,
            n_layer_inputs=_shape(file, "per_layer_model_proj.weight")[1],
            n_altup=_shape(file, "altup_proj.weight", 3)[2] + 1,
        )

    def _layer_inputs(self, mask: int) -> list[int]:
        """Bytes that a token takes in a graph whose layers have inputs of their own, at its widest moments."""
        inputs = 4 * self.n_layer_inputs
        if not inputs:
            return []
        inner, row = 12 * self.kept.n_ff, 4 * self.n_embd
        # Where the inputs are made: looked up, projected, added and turned around.
        moments = [4 * inputs + 2 * row, inputs + inner + 7 * row]
        if self.n_altup > 1:
            moments += [inputs + inner + 3 * self.n_altup * row, 2 * inputs + inner + 2 * row]
            moments.append(2 * inputs + 4 * self.n_altup * row + (8 << 10))
        return [mask + moment for moment in moments]

    def bytes(
        self,
        n_ctx_tokens: int,
        *,
        n_batch_tokens: int,
        n_outputs: int = 1,
        n_seq: int = 1,
        kv_type: KvType = "f16",
        n_threads: int = 1,
        flash_attention: bool = True,
        both_layouts: bool = False,
    ) -> tuple[int, int, int]:
        """Bytes of keys and values, of buffers of the graph and its operations, and of the logits that are kept.

        The graph's values are F32 but for the mask. Its widest moments, as its allocator lays them out: the feed-
        forward part with 3 rows of its inner width and 4 of the model's; attention with its scores where they are not
        computed in tiles; the logits at the end.

        Args:
            n_ctx_tokens: of each of the `n_seq` sequences.
            both_layouts: with the second context that `two_layouts.py` has beside, for one sequence.
        """
        cells = _padded(n_ctx_tokens)
        n_batch = min(n_batch_tokens, cells * n_seq)
        kept = self.kept
        window_cells = min(cells, _padded(kept.window_tokens + n_batch)) if kept.window_tokens else 0
        mask = 2 * (cells + window_cells)
        feed_forward = mask + 4 * (3 * kept.n_ff + 4 * self.n_embd)
        feed_forward = max([feed_forward, *self._layer_inputs(mask)])
        scores = 4 * (self.n_heads * cells + cells) + 23 * max(self.n_embd, kept.n_q)
        head = n_outputs * 4 * self.n_vocab + n_batch * (mask + 6 * self.n_embd)
        graph = max(
            n_batch * max(feed_forward, 0 if flash_attention else scores),
            head if n_outputs > 1 else 4 * self.n_vocab,
        )
        # Activations are quantised for a product: at most 292 bytes for 256 values (Q8_K), here those of ffn_down.
        work = n_batch * kept.n_ff * 292 // 256 + n_threads * THREAD_WORK_BYTES
        n_values = kept.kv_values * cells + kept.windowed_kv_values * window_cells
        kv_bytes = n_seq * (round(n_values * KV_VALUE_BYTES[kv_type]) + kept.state_bytes)
        outputs_bytes = 4 * self.n_vocab * n_outputs
        if not both_layouts:
            return kv_bytes, graph + work, outputs_bytes
        options: Any = {"kv_type": kv_type, "n_threads": n_threads, "flash_attention": flash_attention}
        second = self.bytes(n_ctx_tokens, n_batch_tokens=n_batch_tokens, **options)
        return kv_bytes + second[0], graph + work + second[1], outputs_bytes + second[2]
