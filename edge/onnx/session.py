"""A session on onnxruntime: the same pack, the same calls, the same answers' shape as `session.Session`.

    with OnnxSession.open("my-pack") as session:
        session.use("math")
        for text in session.stream("How many legs have 3 cats?"):
            print(text, end="", flush=True)

Token ids, stop tokens, chat template and sampling are llama.cpp's and the base's own on both engines: the folder
carries the GGUF's keys without its tensors (tokenizer.gguf), so no weights are loaded twice and texts cannot differ.
A session belongs to one thread and makes one answer at a time.
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, Unpack

import numpy as np
import numpy.typing as npt

from ..answer.batcher import Batcher, Pending
from ..answer.choice import Choice, choice_of
from ..answer.settings import Settings, request_of
from ..answer.stream import Answer, Request, Stream
from ..errors import DamagedError, EngineError, UnsupportedError
from ..gguf.chat_template import ChatTemplate, Message, messages_of
from ..llama.canary import CANARY
from ..llama.vocab import Vocab
from ..options import DEFAULT_PARALLEL, EngineOptions, Swap
from ..pack.card import TaskCard
from ..pack.pack import Pack, PackedAdapter, find_adapter
from ..prefix.chunks import AdapterState, Section
from ..router.routing import Routing
from .adapter import Array, OnnxAdapter
from .engine import OnnxEngine
from .folder import OnnxBase
from .in_pack import onnx_adapters, onnx_folder
from .lane import OnnxLane
from .rows import OnnxRows

if TYPE_CHECKING:
    from ..router.router import Decision, Router


DEFAULT_CTX_TOKENS: Final = 2048
# What EngineOptions mean to llama.cpp alone; given here they would do nothing.
OPTIONS: Final = frozenset({"n_ctx_tokens", "n_parallel", "threads"})


class OnnxSession:
    """An open ONNX base with its adapters. Made by `open` or `of_files`.

    Args:
        base: the folder that `slm-edge export onnx` made, opened.
        adapters: by name, their files in onnxruntime's format; each is checked and tried when it is first used.
        default_adapter: in use until `use` is called; None for the base alone.
        options: `n_ctx_tokens`, `n_parallel` and `threads` of `options.EngineOptions`.

    Attributes:
        base: what the base is.
        engine: onnxruntime's sessions and the KV cache, for measuring.
        lane: its one sequence, with the book of what the cache holds.
        vocab: the tokenizer.
        template: the base's chat template.
        n_ctx_tokens: longest prompt and answer together.
        longest_tokens: as `Session` has it; here the same.

    Raises:
        UnsupportedError: an option that only llama.cpp has.
        DoesNotFitError: the graph has no positions for so long a context.
        EngineError: onnxruntime is missing.
    """

    def __init__(
        self,
        base: OnnxBase,
        adapters: Mapping[str, PackedAdapter],
        *,
        default_adapter: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        foreign = [name for name, value in options.items() if name not in OPTIONS and value is not None]
        if foreign:
            raise UnsupportedError(f"the ONNX engine has no option {', '.join(foreign)}", hint="leave it out")
        self.base = base
        self.template = ChatTemplate.of(base.tokenizer)
        self.n_ctx_tokens = options.get("n_ctx_tokens") or min(DEFAULT_CTX_TOKENS, base.max_length_tokens)
        self.longest_tokens = self.n_ctx_tokens
        self.adapters: dict[str, PackedAdapter] = dict(adapters)
        self._loaded: dict[str, OnnxAdapter] = {}
        self._base_row: npt.NDArray[np.float32] | None = None
        self._routing = Routing(self.adapters)
        with contextlib.ExitStack() as stack:
            self.engine = OnnxEngine(base, n_ctx_tokens=self.n_ctx_tokens, threads=options.get("threads"))
            stack.callback(self.engine.close)
            self.vocab = stack.enter_context(Vocab.open(base.tokenizer.path))
            self._owned = stack.pop_all()
        if self.vocab.n_tokens > base.n_vocab:
            raise DamagedError("the tokenizer has more tokens than the graph", where=base.folder)
        self.lane = OnnxLane(self.engine)
        self._batcher: Batcher[OnnxRows] | None = None
        self._batchers: weakref.WeakSet[Batcher[OnnxRows]] = weakref.WeakSet()
        self._n_parallel = options.get("n_parallel", DEFAULT_PARALLEL)
        self._choice = Choice()
        if default_adapter is not None:
            card = find_adapter(self.adapters, default_adapter).card
            self._choice = Choice(((default_adapter, card.scale),), card)

    @classmethod
    def open(cls, pack: Pack | str | os.PathLike[str] | None, **options: Unpack[EngineOptions]) -> Self:
        """Opens a pack's ONNX form; the GGUF base need not be there.

        Raises:
            InputError: the pack has no ONNX form.
            DamagedError: it was made from another base than the pack's, or is not as it was exported.
            SlmEdgeError: as `Pack.open`, `OnnxBase.open` and the class itself do.
        """
        pack = pack if isinstance(pack, Pack) else Pack.open(pack)
        base = OnnxBase.open(onnx_folder(pack))
        if base.fingerprint != pack.base.fingerprint:
            raise DamagedError("its ONNX form was made from another base than its GGUF adapters", where=pack.folder)
        adapters = onnx_adapters(pack)
        default = pack.default_adapter if pack.default_adapter in adapters else None
        session = cls(base, adapters, default_adapter=default, **options)
        session._routing.pack = pack
        return session

    @classmethod
    def of_files(
        cls,
        base_path: str | os.PathLike[str],
        adapters: Mapping[str, tuple[str | os.PathLike[str], TaskCard | None]],
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A session over loose files: a folder, and name -> (ONNX adapter, its task card or None)."""
        base = OnnxBase.open(base_path)
        packed = {}
        for name, (file, card) in adapters.items():
            path = Path(file)
            found = OnnxAdapter.open(path, base)
            packed[name] = PackedAdapter(name, path, found.sha256, found.size_bytes, card or TaskCard(task=name))
        return cls(base, packed, **options)

    @property
    def adapter(self) -> str | None:
        """The name of the adapter in use, of several as "math:0.7+code:0.3"; None for the base alone."""
        return self._choice.name

    def use(
        self, name: str | Mapping[str, float | None] | None, *, scale: float | None = None, swap: Swap | None = None
    ) -> Self:
        """Chooses the adapter for the prompts to come; an answer that is being read goes on as it began.

        Args:
            name: None for the base alone; several with their scales are added up, the first one's card counts.
            scale: its strength; None for the card's.
            swap: "recompute" or None; there are no activated LoRAs here.

        Raises:
            InputError: there is no such adapter, its file is not valid for the base, or a scale is out of range.
            DamagedError: the file's bytes changed since it was packed.
            EngineError: it does nothing to the base's output, or makes it no number.
        """
        self._choice = self.choice_of(name, scale=scale, swap=swap)
        return self

    def choice_of(
        self, name: str | Mapping[str, float | None] | None, *, scale: float | None = None, swap: Swap | None = None
    ) -> Choice:
        """What `use` would choose, loaded and tried; arguments and errors as there."""
        if swap == "activated":
            raise UnsupportedError("ONNX graphs apply an adapter to all tokens; there are no activated LoRAs")
        choice = choice_of(name, scale, lambda one: find_adapter(self.adapters, one).card)
        for one, _ in choice.scales:
            self._load(one)
        return choice

    def choose(self, prompt: str | Sequence[Message]) -> "Decision":
        """Which adapter the pack's router would give a prompt to, of those that have an ONNX form; `use` takes it up.

        Raises:
            InputError: the session is not of a pack, the pack has no router, or it knows none of the adapters.
            SlmEdgeError: as `router.in_pack.open_router`.
        """
        return self._routing.choose(prompt, self.adapter)

    @property
    def router(self) -> "Router":
        """The pack's router, opened when it is first asked for; errors as `choose`."""
        return self._routing.router

    def _load(self, name: str) -> OnnxAdapter:
        """The adapter, checked and tried on first use."""
        if name not in self._loaded:
            packed = find_adapter(self.adapters, name)
            adapter = OnnxAdapter.open(packed.path, self.base, sha256=packed.sha256)
            self._try(adapter, adapter.scaled(packed.card.scale, self.base))
            self._loaded[name] = adapter
        return self._loaded[name]

    def _try(self, adapter: OnnxAdapter, pairs: Mapping[str, Array]) -> None:
        """The proof that an adapter acts: a few tokens' logits with it differ from those without, and are numbers."""
        ids = self.vocab.encode(CANARY)
        if self._base_row is None:
            # The same graph with empty pairs: two graphs may round differently, and then nothing would be proved.
            self._base_row = self.engine.probe(ids, {})
        row = self.engine.probe(ids, pairs)
        if not np.isfinite(row).all():
            raise EngineError("with this adapter the model's output is not a number", where=adapter.path)
        if np.array_equal(row, self._base_row):
            raise EngineError(
                "the adapter changes nothing: all logits are the same with and without", where=adapter.path
            )

    def sections(self, choice: Choice, ids: Sequence[int], n_shared_tokens: int = 0) -> list[Section]:
        """A whole prompt under a choice, whose numbers are bound from here on; what others share is not told apart."""
        loaded = [(self._load(name), scale) for name, scale in choice.scales]
        state = AdapterState(tuple((adapter.sha256, scale) for adapter, scale in loaded))
        if loaded and state not in self.lane.pairs:
            self.lane.pairs[state] = _added(loaded, self.base)
        return [Section(len(ids), state)]

    def prompt_tokens(self, prompt: str | Sequence[Message], *, system: str | None = None) -> list[int]:
        """Token ids of a prompt as the model sees it, through the chat template; as `Session.prompt_tokens`."""
        return self.rendered(prompt, system, self._choice)[0]

    def rendered(self, prompt: str | Sequence[Message], system: str | None, choice: Choice) -> tuple[list[int], int]:
        """As `Session.rendered`; how many tokens others share is not told: 0."""
        return self.vocab.encode(self.template.render(messages_of(prompt, system, choice.card.system))), 0

    def stream(
        self, prompt: str | Sequence[Message], *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Stream:
        """Begins an answer under the adapter in use; arguments and errors as `Session.stream`."""
        started_s = time.perf_counter()
        return Stream(self.lane, self.vocab, self._request(prompt, self._choice, system, settings), started_s)

    def _request(
        self, prompt: str | Sequence[Message], choice: Choice, system: str | None, settings: Settings
    ) -> Request:
        ids, _ = self.rendered(prompt, system, choice)
        return request_of(
            ids,
            choice,
            settings,
            lambda: self.sections(choice, ids),
            room_tokens=self.n_ctx_tokens,
            longest=f"this graph can do {self.base.max_length_tokens}",
        )

    def submit(
        self,
        prompt: str | Sequence[Message],
        *,
        choice: Choice | None = None,
        system: str | None = None,
        on_text: Callable[[str], object] | None = None,
        **settings: Unpack[Settings],
    ) -> Pending:
        """Submits a request, to be answered together with others by `Pending.result`; as `Session.submit`."""
        if self._batcher is None:
            self._batcher = self.new_batcher(self._n_parallel)
        choice = choice or self._choice
        return self._batcher.submit(self._request(prompt, choice, system, settings), choice, on_text)

    def new_batcher(self, n_parallel: int) -> Batcher[OnnxRows]:
        """A batcher with KV caches of its own beside the session's; close it when it is done with."""

        def new_rows(n_sequences: int, n_tokens: int) -> OnnxRows:
            n_tokens = min(n_tokens, self.base.max_length_tokens)
            engine = OnnxEngine(self.base, n_ctx_tokens=n_tokens, n_rows=n_sequences, beside=self.engine)
            return OnnxRows(engine, self.lane.pairs)

        batcher = Batcher(new_rows, self.vocab, n_parallel=n_parallel)
        self._batchers.add(batcher)
        return batcher

    def ask(
        self, prompt: str | Sequence[Message], *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Answer:
        """The whole answer; arguments and errors as `stream`."""
        stream = self.stream(prompt, system=system, **settings)
        for _ in stream:
            pass
        return stream.answer

    def close(self) -> None:
        """Frees sessions and adapters. Calling it twice does nothing."""
        for batcher in list(self._batchers):
            batcher.close()
        self.lane.pairs.clear()
        self._loaded.clear()
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
