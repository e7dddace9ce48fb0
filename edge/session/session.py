"""A session: one base mapped once, many adapters over it, one of them in use for each prompt.

    with Session.open("my-pack") as session:
        session.use("math")
        for text in session.stream("How many legs have 3 cats?"):
            print(text, end="", flush=True)
        session.use(None).ask("Hello").text

Sampling settings come from the call, else from the adapter's task card, else they are greedy; what a base file
recommends (general.sampling.*) is not read, so that an answer follows from the pack and the call alone.
A session belongs to one thread and makes one answer at a time.
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from ..answer.batcher import Batcher, Pending
from ..answer.choice import Choice, choice_of
from ..answer.settings import Settings, request_of
from ..answer.stream import Answer, Request, Stream
from ..errors import DamagedError, InputError
from ..files.atomic import sha256_file
from ..files.watch import FileWatch
from ..gguf.base import BaseInfo
from ..gguf.chat_template import ChatTemplate, Message, messages_of
from ..llama.canary import Canary
from ..llama.kernels import copied_spans
from ..llama.model import Adapter, Model
from ..llama.two_layouts import StoredModel, new_context
from ..memory.fit import limit_of, plan_session
from ..options import DEFAULT_PARALLEL, EngineOptions, Swap
from ..pack.card import TaskCard
from ..pack.pack import Pack, PackedAdapter
from ..prefix.cache import open_prefix_cache
from ..prefix.chunks import Section
from ..prefix.system_prompt import SystemPrefix
from ..router.routing import Routing
from .exactness import Exactness
from .lane import Lane
from .parallel import parallel_rows
from .rows import LlamaRows
from .sections import sections_of, swap_of
from .shelf import Shelf, pinned_of
from .speculation import Drafting, outputs_of

if TYPE_CHECKING:
    from ..router.router import Decision, Router


class Session:
    """An open base with its adapters. Made by `open` or `of_files`.

    Args:
        base_path: the base GGUF.
        adapters: by name; each is checked, loaded and tried when it is first used.
        default_adapter: in use until `use` is called; None for the base alone.
        options: see `options.EngineOptions`.

    Attributes:
        base: what the base is.
        adapters: by name.
        model, context: the engine's objects, for measuring.
        template: the base's chat template.
        n_ctx_tokens: longest prompt and answer together.
        longest_tokens: the same of a request that is handed to a batcher itself.
        vocab: the tokenizer.
        options: as given, with what was chosen where they left it open.
        plan: the memory that was planned.
        prefixes: computed beginnings of prompts, in memory and on disk.

    Raises:
        InputError, UnsupportedError, DamagedError: the base does not pass the checks of `base_info`.
        DoesNotFitError: the base was not trained for so long a context, or `ram_bytes` do not suffice.
        EngineError: llama.cpp cannot load it.
    """

    def __init__(
        self,
        base_path: str | os.PathLike[str],
        adapters: Mapping[str, PackedAdapter],
        *,
        default_adapter: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        self.base = BaseInfo.open(base_path)
        self.template = ChatTemplate.of(self.base.file)
        speculate = options.get("speculate")
        n_outputs = outputs_of(speculate, [packed.card for packed in adapters.values()])
        options["pinned"] = pinned_of(adapters, options.get("pinned", ()))
        sizes_bytes = [packed.size_bytes for packed in adapters.values()]
        self.plan = plan_session(self.base, options, sizes_bytes, n_outputs)
        self._limit_bytes = limit_of(options)
        flash_attention = options.get("flash_attention", "auto")
        chosen = self.plan.choices
        self.n_ctx_tokens = chosen.n_ctx_tokens
        self.longest_tokens = self.base.n_ctx_train_tokens
        options |= vars(chosen)  # type: ignore[typeddict-item]
        self.options = options
        self._choice = Choice()
        self._routing = Routing(adapters)
        self._batcher: Batcher[LlamaRows] | None = None
        self._batchers: weakref.WeakSet[Batcher[LlamaRows]] = weakref.WeakSet()
        # llama.cpp maps the file itself.
        self.base.file.release()
        with contextlib.ExitStack() as stack:
            self.model = stack.enter_context(
                Model.load(base_path, mmap=chosen.mmap, repack=chosen.repack, copied=copied_spans(self.base))
            )
            self.vocab = self.model.vocab
            stored = stack.enter_context(StoredModel(self.model)) if chosen.both_layouts else None
            self.context = new_context(
                self.model,
                stored,
                n_ctx_tokens=self.n_ctx_tokens,
                n_batch_tokens=chosen.n_batch_tokens,
                n_outputs_max=min(n_outputs, chosen.n_batch_tokens),
                threads=options.get("threads"),
                threads_batch=options.get("threads_batch"),
                kv_type=chosen.kv_type,
                flash_attention=flash_attention,
            )
            self._watch = stack.enter_context(FileWatch(base_path))
            most_bytes = None if self._limit_bytes is None else self.plan.snapshots_bytes
            self.prefixes = open_prefix_cache(self.base, self.context, options, most_bytes)
            self._lane = Lane(self.context, self.prefixes)
            exactness = Exactness(self.base, adapters, repack=chosen.repack, flash_attention=flash_attention)
            self._drafting = Drafting(self.context, exactness, speculate)
            self._shelf = Shelf(
                self.model,
                self.base,
                Canary(self.model, self.context.threads),
                adapters,
                budget_bytes=options.get("adapter_budget_bytes"),
                pinned=options["pinned"],
                in_use=self._adapters_in_use,
            )
            if default_adapter is not None:
                card = self._shelf.packed(default_adapter).card
                self._choice = Choice(((default_adapter, card.scale),), card)
            self._system = SystemPrefix(self.template, self.vocab)
            stack.callback(self.prefixes.flush)
            self._owned = stack.pop_all()

    @classmethod
    def open(cls, pack: Pack | str | os.PathLike[str] | None, **options: Unpack[EngineOptions]) -> Self:
        """Opens a pack (None: the starter pack); its base must be in it or in the cache (`slm-edge pull`).

        Raises:
            DamagedError: the base is not the pack's.
            SlmEdgeError: as `Pack.open`, `Pack.base_path` and the class itself do.
        """
        pack = pack if isinstance(pack, Pack) else Pack.open(pack)
        session = cls(pack.base_path(), pack.adapters, default_adapter=pack.default_adapter, **options)
        session._routing.pack = pack
        if session.base.fingerprint != pack.base.fingerprint:
            session.close()
            raise DamagedError(
                "is not the base that the pack was made for (its fingerprint differs)",
                where=session.base.file.path,
                hint="slm-edge pack verify says what changed",
            )
        return session

    @classmethod
    def of_files(
        cls,
        base_path: str | os.PathLike[str],
        adapters: Mapping[str, tuple[str | os.PathLike[str], TaskCard | None]],
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A session over loose files: name -> (adapter GGUF, its task card or None)."""
        packed = {}
        for name, (file, card) in adapters.items():
            path = Path(file)
            if not path.is_file():
                raise InputError("no such file", where=path)
            card = card or TaskCard(task=name)
            packed[name] = PackedAdapter(name, path, sha256_file(path), path.stat().st_size, card)
        return cls(base_path, packed, **options)

    @property
    def adapters(self) -> dict[str, PackedAdapter]:
        """The adapters by name."""
        return self._shelf.adapters

    @property
    def loaded_adapters(self) -> dict[str, int]:
        """Bytes of those in memory by name, the one used last at the end."""
        return self._shelf.loaded

    @property
    def adapter(self) -> str | None:
        """The name of the adapter in use, of several as "code:0.3+math:0.7"; None for the base alone."""
        return self._choice.name

    def use(
        self, name: str | Mapping[str, float | None] | None, *, scale: float | None = None, swap: Swap | None = None
    ) -> Self:
        """Chooses the adapter for the prompts to come; an answer that is being read goes on as it began.

        Args:
            name: None for the base alone. Several with their scales, such as {"math": 0.7, "code": 0.3}, are added up
                (PEFT's weighted sum); the first one's task card says how answers are made.
            scale: its strength; None for the card's.
            swap: insists on a way of being taken up in the middle of a conversation; see `sections.swap_of`.

        Raises:
            UnsupportedError: as `sections.swap_of`.
            SlmEdgeError: as `shelf.Shelf.load`; a name that is not there is answered with those that are.
        """
        self._choice = self.choice_of(name, scale=scale, swap=swap)
        return self

    def choose(self, prompt: str | Sequence[Message]) -> "Decision":
        """Which adapter the pack's router would give a prompt to; `use` takes it up.

        In a conversation with answers the adapter in use is kept unless another one is clearly likelier.

        Raises:
            SlmEdgeError: as `Routing.router`: no pack, or no router.
        """
        return self._routing.choose(prompt, self.adapter)

    @property
    def router(self) -> "Router":
        """The pack's router, opened when it is first asked for; errors as `choose`."""
        return self._routing.router

    def choice_of(
        self, name: str | Mapping[str, float | None] | None, *, scale: float | None = None, swap: Swap | None = None
    ) -> Choice:
        """What `use` would choose, loaded and tried; arguments and errors as there."""
        choice = choice_of(name, scale, lambda one: self._shelf.packed(one).card)
        loaded = self._shelf.load([] if name is None else [name] if isinstance(name, str) else list(name))
        if loaded:
            swap_of(loaded, swap)
        return choice

    @property
    def swap(self) -> Swap:
        """How the adapter in use is taken up in the middle of a conversation, see `sections.swap_of`."""
        return swap_of(self._shelf.load([name for name, _ in self._choice.scales]))

    @property
    def choice(self) -> Choice:
        """What is in use: names, scales and the card."""
        return self._choice

    def sections(self, choice: Choice, ids: Sequence[int], n_shared_tokens: int = 0) -> list[Section]:
        """The parts of a prompt with the adapters of each, loaded where they are not; raises as `use`."""
        self._watch.check()
        loaded = self._shelf.load([name for name, _ in choice.scales])
        swap_of(loaded)
        scaled = [(one, scale) for one, (_, scale) in zip(loaded, choice.scales, strict=True)]
        return sections_of(scaled, ids, n_shared_tokens, self.vocab)

    def _adapters_in_use(self) -> list[Adapter]:
        busy = [batcher.rows for batcher in self._batchers if batcher.busy and batcher.rows is not None]
        batched = [adapter for rows in busy for adapter in rows.adapters]
        return [*batched, *(self.context.adapters if self._lane.busy else ())]

    def prompt_tokens(self, prompt: str | Sequence[Message], *, system: str | None = None) -> list[int]:
        """Token ids of a prompt as the model sees it, through the chat template.

        Args:
            prompt: a user message's text, or a conversation.
            system: a system message; None: the conversation's own, else the task card's; "" for none.

        Raises:
            InputError: the prompt is empty, or the template fails on it.
            UnsupportedError: the template refuses it.
        """
        return self.rendered(prompt, system, self._choice)[0]

    def rendered(self, prompt: str | Sequence[Message], system: str | None, choice: Choice) -> tuple[list[int], int]:
        """Token ids as of `prompt_tokens`, and how many of them every prompt with that system message begins with."""
        messages = messages_of(prompt, system, choice.card.system)
        ids = self.vocab.encode(self.template.render(messages))
        return ids, self._system.length(messages, ids)

    def stream(
        self, prompt: str | Sequence[Message], *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Stream:
        """Begins an answer under the adapter in use.

        Args:
            prompt, system: as in `prompt_tokens`.
            settings: see `settings.Settings`; what is left out is as the task card says.

        Raises:
            InputError, UnsupportedError: as `prompt_tokens`, or settings out of range.
            DoesNotFitError: the prompt leaves no room in the context. One that fits is answered until the context is
                full, with the stop reason "context".
        """
        started_s = time.perf_counter()
        request = self.request(prompt, self._choice, system, settings)
        worker = self._drafting.worker(self._lane, self._choice, request.room_tokens)
        return Stream(worker, self.vocab, request, started_s)

    def request(
        self,
        prompt: str | Sequence[Message],
        choice: Choice,
        system: str | None,
        settings: Settings,
        room_tokens: int | None = None,
    ) -> Request:
        """Everything that decides an answer, checked; arguments and errors as `stream`.

        Args:
            room_tokens: longest prompt and answer together; None: the session's context.
        """
        room_tokens = room_tokens or self.n_ctx_tokens
        ids, n_shared_tokens = self.rendered(prompt, system, choice)
        request = request_of(
            ids,
            choice,
            settings,
            lambda: self.sections(choice, ids, n_shared_tokens),
            room_tokens=room_tokens,
            longest=f"this base can do {self.base.n_ctx_train_tokens}",
        )
        # A missing invocation is an error now, not when the answer is read.
        self.sections(choice, ids)
        return request

    def ask(
        self, prompt: str | Sequence[Message], *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Answer:
        """The whole answer; arguments and errors as `stream`."""
        stream = self.stream(prompt, system=system, **settings)
        for _ in stream:
            pass
        return stream.answer

    def submit(
        self,
        prompt: str | Sequence[Message],
        *,
        choice: Choice | None = None,
        system: str | None = None,
        on_text: Callable[[str], object] | None = None,
        **settings: Unpack[Settings],
    ) -> Pending:
        """Submits a request, to be answered together with others by `Pending.result` (see `batcher.py`).

        Args:
            choice: from `choice_of`; None: what is in use now.
            on_text: told of each piece of text as it is final.
            prompt, system, settings: as in `stream`; errors too.
        """
        if self._batcher is None:
            self._batcher = self.new_batcher(self.options.get("n_parallel", DEFAULT_PARALLEL))
        choice = choice or self._choice
        return self._batcher.submit(self.request(prompt, choice, system, settings), choice, on_text)

    def new_batcher(self, n_parallel: int) -> Batcher[LlamaRows]:
        """A batcher with a context of its own beside the session's; close it when it is done with."""
        new_rows = parallel_rows(
            self.context,
            self.base,
            self.plan,
            self.prefixes,
            limit_bytes=self._limit_bytes,
            flash_attention=self.options.get("flash_attention", "auto"),
        )
        batcher = Batcher(new_rows, self.vocab, n_parallel=n_parallel)
        self._batchers.add(batcher)
        return batcher

    def close(self) -> None:
        """Frees contexts, adapters and the base. Calling it twice does nothing."""
        for batcher in list(self._batchers):
            batcher.close()
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
