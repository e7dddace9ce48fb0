"""A base model's weights, mapped once, and the adapters loaded over them. See `engine.py` for an example.

llama.cpp needs an adapter taken out of every context before it is freed, and frees those that are left together with
the model; `close` of each owner keeps that order, however often and in whichever order it is called.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import EngineError, InputError
from ..files.watch import FileWatch, expect_mapped
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
