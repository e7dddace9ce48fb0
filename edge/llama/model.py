"""A base model's weights, mapped once, and the adapters loaded over them. See `context.py` for an example.

llama.cpp needs an adapter taken out of every context before it is freed, and frees those that are left together with
the model; `close` of each owner keeps that order, however often and in whichever order it is called.

    copied_spans(base), repacked_tensors(base.file, cpu_features())

What llama.cpp's CPU backend does with stored weights on this CPU, which it copies into a faster layout, stands here
too, as of its sources of 2026-10.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import EngineError, InputError
from ..files.read import FileWatch, expect_mapped
from ..gguf.base import BaseInfo
from ..gguf.file import GgufFile, TensorInfo
from ..gguf.types import GgmlType
from ..system.load import room
from .binding import NotCopied, lib, quiet_logs
from .states import Memory
from .vocab import Vocab

if TYPE_CHECKING:
    from .mapped_pages import LettingGo as OnWay

# enum llama_load_mode of llama.h
LOAD_MODE_NONE: Final = 0
LOAD_MODE_MMAP: Final = 1


class Dependent(Protocol):
    """What must go before its model does: a context."""

    def drop_adapter(self, adapter: "Adapter") -> None:
        """Takes the adapter out of use."""

    def close(self) -> None:
        """Frees it."""


def created(what: str, where: str | os.PathLike[str] | None, create: Callable[[], Any]) -> tuple[Any, list[str]]:
    """A new C object and what was logged meanwhile. The binding's NULL is a falsy pointer, never None.

    Raises:
        EngineError: it is NULL; llama.cpp's warnings and errors are in `problems`.
    """
    with quiet_logs() as log:
        handle = create()
    if not handle:
        raise EngineError(f"llama.cpp cannot {what}", where=where, problems=log.errors())
    return handle, [text for _, text in log.lines]


class Model(NotCopied):
    """The weights of a base, mapped once and shared by all contexts.

    Attributes:
        path: the GGUF file.
        vocab: its tokenizer.
        memory: what is kept of a sequence.
        n_ctx_train_tokens: context length that it was trained for.
        size_bytes: of the tensors, as stored.
        handle: the `llama_model` pointer, for calls that have no method here.
        contexts, adapters: those that are alive; they register and remove themselves.
        watch: of a mapped file, which must not change; None where it was read.
        lender: a model of the same base whose adapters its contexts take too; llama.cpp ties them by tensor names.
    """

    def __init__(self, path: Path, handle: Any, watch: FileWatch | None = None) -> None:
        llama = lib()
        self.path = path
        self.handle = handle
        self.watch = watch
        self.vocab = Vocab.of(handle)
        self.memory = Memory.of(handle)
        self.n_ctx_train_tokens: int = llama.llama_model_n_ctx_train(handle)
        self.size_bytes: int = llama.llama_model_size(handle)
        self.contexts: dict[int, Dependent] = {}
        self.adapters: dict[int, Adapter] = {}
        self.lender: Model | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        mmap: bool = True,
        repack: bool = True,
        copied: Sequence[tuple[int, int]] = (),
    ) -> "Model":
        """Loads a base for the CPU.

        Args:
            mmap: map the file; its pages are shared between processes and can be dropped by the kernel.
            repack: copy weights into another layout where there is a faster one for single tokens (`two_layouts.py`).
            copied: bytes of the file, from and to, that repacking copies from: mapped pages that are released.

        Raises:
            InputError: no such file.
            EngineError: llama.cpp refuses it; its own words are in `problems`.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError("no such file", where=path)
        # From here on it is known whether the machine is busy.
        room()
        llama = lib()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = LOAD_MODE_MMAP if mmap else LOAD_MODE_NONE
        params.use_extra_bufts = repack
        on_way: OnWay | None = None
        if mmap and repack and copied:
            from .mapped_pages import LettingGo

            on_way = LettingGo(path, copied, llama.llama_progress_callback)
            params.progress_callback = on_way.callback
        watch = None
        if mmap:
            expect_mapped(path)
            watch = FileWatch(path)
        try:
            handle, _ = created(
                "load the model", path, lambda: llama.llama_model_load_from_file(os.fsencode(path), params)
            )
            return cls(path, handle, watch)
        except BaseException as error:
            if watch is not None:
                watch.close()
            if isinstance(error, EngineError) and on_way is not None and on_way.error is not None:
                raise on_way.error from None
            raise

    def load_adapter(self, path: str | os.PathLike[str]) -> "Adapter":
        """Loads a LoRA file that `check_adapter` has passed.

        Raises:
            InputError: no such file.
            EngineError: llama.cpp refuses it; its own words are in `problems`. Or the model is closed.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError("no such file", where=path)
        if not self.handle:
            raise EngineError("the model is closed", where=self.path)
        handle, lines = created(
            "load the adapter", path, lambda: lib().llama_adapter_lora_init(self.handle, os.fsencode(path))
        )
        adapter = Adapter(self, path, handle, _n_tensors(lines))
        self.adapters[id(adapter)] = adapter
        return adapter

    def close(self) -> None:
        """Frees contexts, adapters and model, in this order. Calling it twice does nothing."""
        for context in list(self.contexts.values()):
            context.close()
        for adapter in list(self.adapters.values()):
            adapter.close()
        self.vocab.close()
        if self.handle:
            handle, self.handle = self.handle, None
            lib().llama_model_free(handle)
        if self.watch is not None:
            self.watch.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _n_tensors(lines: Sequence[str]) -> int | None:
    for line in reversed(lines):
        found = re.search(r"loaded (\d+) tensors from lora", line)
        if found:
            return int(found[1])
    return None


class Adapter(NotCopied):
    """A LoRA in memory, registered with its model.

    Attributes:
        model, path: what it was loaded for and from.
        n_tensors: tensors that llama.cpp tied to the base (two for each pair); None if it did not say.
        handle: the `llama_adapter_lora` pointer.
    """

    def __init__(self, model: Model, path: Path, handle: Any, n_tensors: int | None) -> None:
        self.path = path
        self.n_tensors = n_tensors
        self.handle = handle
        self.model = model

    def close(self) -> None:
        """Takes it out of every context of its model and frees it. Calling it twice does nothing."""
        if not self.handle:
            return
        for context in self.model.contexts.values():
            context.drop_adapter(self)
        handle, self.handle = self.handle, None
        del self.model.adapters[id(self)]
        lib().llama_adapter_lora_free(handle)


# Weights that ggml-cpu/repack.cpp copies into another layout: type -> (CPU features, divisor of the rows), any of them.
REPACKED: Final[dict[GgmlType, tuple[tuple[frozenset[str], int], ...]]] = {
    GgmlType.Q4_0: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    GgmlType.Q4_K: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 8)),
    GgmlType.IQ4_NL: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    GgmlType.MXFP4: ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    GgmlType.Q2_K: ((frozenset({"AVX512"}), 8),),
    GgmlType.Q5_K: ((frozenset({"NEON", "DOTPROD"}), 8),),
    GgmlType.Q6_K: ((frozenset({"NEON", "DOTPROD"}), 8),),
    GgmlType.Q8_0: ((frozenset({"NEON", "DOTPROD"}), 4),),
}
# Of these, the types of which a prompt is computed faster from the stored layout, by ggml-cpu/tiled, on a CPU with this
# feature, and single tokens from the copies: 1.5 and 1.2 times. With AVX2 alone a prompt takes as long from either.
FASTER_AS_STORED: Final[dict[GgmlType, str]] = {GgmlType.Q4_K: "AVX512_VNNI"}


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the llama.cpp that is installed here uses of this CPU, such as {"AVX2", "FMA", "REPACK"}."""
    text: str = lib().llama_print_system_info().decode()
    return frozenset(name for name, value in re.findall(r"(\w+) = (\d+)", text) if value != "0")


def repacked_tensors(file: GgufFile, features: Iterable[str]) -> list[TensorInfo]:
    """The tensors that llama.cpp copies into a faster layout on a CPU with these features, the head among them."""
    has = frozenset(features)

    def repacked(info: TensorInfo) -> bool:
        return any(needs <= has and info.shape[1] % divisor == 0 for needs, divisor in REPACKED.get(info.type, ()))

    # Tables are looked up by rows and stay as they are; a tied head is a second tensor over the embedding.
    tables = {"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"}
    if "output.weight" in file.tensors:
        tables.add("token_embd.weight")
    return [
        info
        for name, info in file.tensors.items()
        if (len(info.shape) == 2 or "_exps." in name) and name not in tables and repacked(info)
    ]


def faster_as_stored(file: GgufFile, features: Iterable[str]) -> list[TensorInfo]:
    """Those of `repacked_tensors` that slow prompts down; not the head, which a prompt needs for one token."""
    has = frozenset(features)
    return [
        info
        for info in repacked_tensors(file, has)
        if FASTER_AS_STORED.get(info.type) in has and info.name not in ("output.weight", "token_embd.weight")
    ]


def copied_spans(base: BaseInfo) -> list[tuple[int, int]]:
    """First byte and the one behind the last of what repacking copies from and nothing else reads; for `Model.load`."""
    spans: list[tuple[int, int]] = []
    for info in repacked_tensors(base.file, cpu_features()):
        if info.name == "token_embd.weight":
            continue
        end = info.offset_bytes + info.size_bytes
        # Neighbours but for their alignment
        if spans and 0 <= info.offset_bytes - spans[-1][1] < base.file.alignment_bytes:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((info.offset_bytes, end))
    return spans
