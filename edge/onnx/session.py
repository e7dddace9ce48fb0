"""The session on onnxruntime: the same pack, the same calls, the same answers' shape as `session.Session`.

    with OnnxSession.open("my-pack") as session:
        session.use("math")
        for text in session.stream("How many legs have 3 cats?"):
            print(text, end="", flush=True)

Token ids, stop tokens, chat template and sampling are llama.cpp's and the base's own on both engines: the folder
carries the GGUF's keys without its tensors (tokenizer.gguf), so no weights are loaded twice and texts cannot differ.
"""

import contextlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Unpack

import numpy as np
import numpy.typing as npt

from ..answer.base import SessionBase
from ..answer.engine import CANARY, Worker
from ..answer.settings import Choice
from ..errors import DamagedError, EngineError, UnsupportedError
from ..gguf.chat_template import ChatTemplate
from ..llama.prompt import PromptEncoder
from ..llama.vocab import Vocab
from ..options import EngineOptions, Swap
from ..pack.card import TaskCard
from ..pack.pack import Pack, PackedAdapter, find_adapter
from ..prefix.chunks import AdapterState, Section
from .adapter import Array, OnnxAdapter
from .engine import OnnxEngine
from .folder import OnnxBase
from .in_pack import onnx_adapters, onnx_folder
from .lane import OnnxLane
from .rows import OnnxRows

DEFAULT_CTX_TOKENS: Final = 2048


class OnnxSession(SessionBase[OnnxRows]):
    """An open ONNX base with its adapters. Made by `open` or `of_files`.

    Attributes:
        engine: onnxruntime's sessions and the KV cache, for measuring.
        lane: its one sequence, with the book of what the cache holds.

    Raises:
        DoesNotFitError: the graph has no positions for so long a context.
        EngineError: onnxruntime is missing.
    """

    engine_name = "onnx"
    # The other ones mean something to llama.cpp alone; given here they would do nothing.
    engine_options: ClassVar[frozenset[str]] = frozenset(
        {"n_ctx_tokens", "n_parallel", "n_rows", "reuse", "threads", "allow_special"}
    )
    base: OnnxBase
    plan = None

    def __init__(
        self,
        base: OnnxBase | str | os.PathLike[str],
        adapters: Mapping[str, PackedAdapter],
        *,
        default_adapter: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base, adapters, default_adapter=default_adapter, **options)
        self.template = ChatTemplate.of(self.base.tokenizer)
        self.n_ctx_tokens = options.get("n_ctx_tokens") or min(DEFAULT_CTX_TOKENS, self.base.max_length_tokens)
        self.longest_tokens = self.n_ctx_tokens
        self._loaded: dict[str, OnnxAdapter] = {}
        self._engines: weakref.WeakSet[OnnxEngine] = weakref.WeakSet()
        # By sha256, and the scales at which they were tried
        self._tried: set[tuple[str, float]] = set()
        self._base_row: npt.NDArray[np.float32] | None = None
        with contextlib.ExitStack() as stack:
            self.engine = OnnxEngine(self.base, n_ctx_tokens=self.n_ctx_tokens, threads=options.get("threads"))
            stack.callback(self.engine.close)
            self.vocab = stack.enter_context(Vocab.open(self.base.tokenizer.path))
            if self.vocab.n_tokens > self.base.n_vocab:
                raise DamagedError("the tokenizer has more tokens than the graph", where=self.base.folder)
            allow_special = options.get("allow_special", False)
            self.prompts = PromptEncoder(self.base.tokenizer, self.template, self.vocab, allow_special=allow_special)
            self.lane = OnnxLane(self.engine, fast=options.get("reuse") == "fast")
            stack.callback(self._loaded.clear)
            stack.callback(self.lane.pairs.clear)
            self._owned = stack.pop_all()

    @classmethod
    def _base_in(cls, pack: Pack, allow_pull: bool) -> Path:
        # The GGUF base need not be there.
        return onnx_folder(pack)

    @classmethod
    def adapters_in(cls, pack: Pack) -> dict[str, PackedAdapter]:
        """A pack's adapters by name."""
        onnx_folder(pack)
        return onnx_adapters(pack)

    @classmethod
    def _opened(cls, base_path: str | os.PathLike[str]) -> OnnxBase:
        return OnnxBase.open(base_path)

    @property
    def base_path(self) -> Path:
        """The base's folder."""
        return self.base.folder

    @classmethod
    def loose(cls, base: Any, name: str, path: Path, card: TaskCard | None) -> PackedAdapter:
        found = OnnxAdapter.open(path, base)
        return PackedAdapter(name, path, found.sha256, found.size_bytes, card or TaskCard(task=name))

    @property
    def threads(self) -> int:
        """CPU threads."""
        return self.engine.threads

    @property
    def loaded_adapters(self) -> dict[str, int]:
        """Bytes of those in memory by name, in the order of their loading."""
        return {name: adapter.size_bytes for name, adapter in self._loaded.items()}

    @property
    def longest(self) -> str:
        return f"this graph can do {self.base.max_length_tokens}"

    def _load(self, choice: Choice, swap: Swap | None) -> None:
        if swap == "activated":
            raise UnsupportedError("ONNX graphs apply an adapter to all tokens; there are no activated LoRAs")
        for name, scale in choice.scales:
            adapter = self._adapter(name)
            if (adapter.sha256, scale) not in self._tried:
                self._try(adapter, scale, must_act=False)

    def _adapter(self, name: str) -> OnnxAdapter:
        """The adapter, checked and tried on first use."""
        if name not in self._loaded:
            packed = find_adapter(self.adapters, name)
            adapter = OnnxAdapter.open(packed.path, self.base, sha256=packed.sha256)
            self._try(adapter, packed.card.scale)
            self._loaded[name] = adapter
        return self._loaded[name]

    def _try(self, adapter: OnnxAdapter, scale: float, *, must_act: bool = True) -> None:
        """The proof that an adapter acts: a few tokens' logits with it differ from those without, and are numbers."""
        ids = self.vocab.encode(CANARY)
        if self._base_row is None:
            # The same graph with empty pairs: two graphs may round differently, and then nothing would be proved.
            self._base_row = self.engine.probe(ids, {})
        row = self.engine.probe(ids, adapter.scaled(scale, self.base))
        if not np.isfinite(row).all():
            raise EngineError(
                f"with this adapter at the scale {scale:g} the model's output is not a number", where=adapter.path
            )
        if must_act and np.array_equal(row, self._base_row):
            raise EngineError(
                "the adapter changes nothing: all logits are the same with and without", where=adapter.path
            )
        self._tried.add((adapter.sha256, scale))

    def _sections(self, choice: Choice, ids: Sequence[int], n_shared_tokens: int) -> list[Section]:
        """A whole prompt under a choice, whose numbers are bound from here on; what others share is not told apart."""
        loaded = [(self._adapter(name), scale) for name, scale in choice.scales]
        state = AdapterState(tuple((adapter.sha256, scale) for adapter, scale in loaded))
        if loaded and state.adapters not in self.lane.pairs:
            self.lane.pairs[state.adapters] = _added(loaded, self.base)
        return [Section(len(ids), state)]

    def forget(self, name: str) -> None:
        """Frees an adapter, if it is in memory, with what is bound of it."""
        adapter = self._loaded.pop(name, None)
        if adapter is None:
            return
        for key in [key for key in self.lane.pairs if adapter.sha256 in dict(key)]:
            del self.lane.pairs[key]
            for engine in (self.engine, *self._engines):
                engine.forget(key)

    def _worker(self, choice: Choice, room_tokens: int) -> Worker:
        return self.lane

    def row_maker(self) -> Callable[[int, int], OnnxRows]:
        def new_rows(n_sequences: int, n_tokens: int) -> OnnxRows:
            n_tokens = min(n_tokens, self.base.max_length_tokens)
            engine = OnnxEngine(self.base, n_ctx_tokens=n_tokens, n_rows=n_sequences, beside=self.engine)
            self._engines.add(engine)
            return OnnxRows(engine, self.lane.pairs)

        return new_rows


def _added(loaded: Sequence[tuple[OnnxAdapter, float]], base: OnnxBase) -> Mapping[str, Array]:
    """The numbers of one adapter, or of several as one of their ranks together: [A1 A2], [B1; B2]."""
    scaled = [adapter.scaled(scale, base) for adapter, scale in loaded]
    if len(scaled) == 1:
        return scaled[0]
    found: dict[str, Array] = {}
    for pair in base.lora:
        for name, axis in ((pair.a, 1), (pair.b, 0)):
            parts = [arrays[name] for arrays in scaled if name in arrays]
            if parts:
                found[name] = np.concatenate(parts, axis=axis)
    return found
