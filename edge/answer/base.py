"""What every session is, whatever its engine: adapters are chosen, prompts answered, one by one or together.

    with open_session("my-pack") as session:
        session.ask("How many legs have 3 cats?", adapter="math").text
        for text in session.use("code").stream("Write a loop."):
            print(text, end="", flush=True)

Sampling settings come from the call, else from the adapter's task card, else they are greedy; what a base file
recommends (general.sampling.*) is not read, so that an answer follows from the pack and the call alone.

A session belongs to the thread that opened it (`stream.Owner`) and makes one answer at a time; `submit` hands requests
in that are answered together. An engine adds what only it can say: how a choice is loaded (`_load`), the parts of a
prompt (`_sections`), what computes one answer (`_worker`) and several (`_rows`).
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from ..errors import DamagedError, InputError
from ..gguf.chat_template import Message, Turn, messages_of
from ..llama.binding import NotCopied
from ..options import DEFAULT_PARALLEL, LEFT_OUT, EngineOptions, Left, LeftOut, check_given
from ..pack.card import TaskCard
from ..pack.pack import Pack, PackedAdapter
from ..prefix.chunks import Section
from .engine import Choosing, RowsT, router_of
from .settings import AdapterName, Choice, Settings, arguments_of, choice_of, request_of, turn_of
from .stream import Answer, Owner, Request, Stream

if TYPE_CHECKING:
    from ..router.router import Router
    from .batcher import Batcher, Pending
    from .thinking import Thinking


class SessionBase(NotCopied, Choosing[RowsT]):
    """An open base with its adapters. Made by `open`, `of_files` or `engines.open_session`.

    Args:
        base: a path, or what the engine makes of one.
        adapters: by name; each is checked, loaded and tried when it is first used.
        default_adapter: in use until `use` is called; None for the base alone.
        options: see `options.EngineOptions`.

    Attributes:
        base, template, vocab, n_ctx_tokens, longest_tokens, plan: see `engine.Engine`.
        adapters: by name.
        load_s: seconds that the base took to be opened; 0 for a session over loose files.

    Raises:
        InputError: an option that there is not, or that this engine has not; there is no such adapter.
    """

    def __init__(
        self,
        base: Any,
        adapters: Mapping[str, PackedAdapter],
        *,
        default_adapter: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        self._check_options(options)
        self.base = self._opened(base) if isinstance(base, (str, os.PathLike)) else base
        self.adapters = dict(adapters)
        self.load_s = 0.0
        self._choice = choice_of(default_adapter, None, self.adapters)
        self._n_parallel = options.get("n_parallel", DEFAULT_PARALLEL)
        self._pack: Pack | None = None
        self._router: Router | None = None
        self._routed = False
        self._batcher: Batcher[RowsT] | None = None
        self._batchers: weakref.WeakSet[Batcher[RowsT]] = weakref.WeakSet()
        self._owned = contextlib.ExitStack()
        self._owner = Owner()

    # How it is opened

    @classmethod
    def open(
        cls,
        pack: Pack | str | os.PathLike[str] | None = None,
        *,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        allow_pull: bool = False,
        one_answer: bool = False,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Opens a pack; its base must be in it or in the cache (`slm-edge pull`).

        Args:
            pack: None for the starter pack.
            adapter: in use from the beginning; "auto" for the base until one is chosen, with a router to choose by;
                left out: the pack's default, loaded when it is first used; a default of "auto" chooses for each prompt.
            allow_pull: fetch the base into the cache when it is in neither.
            one_answer: the session will answer once: nothing is kept for a second one.

        Raises:
            DamagedError: the base is not the pack's.
            InputError: an option or adapter that there is not, or no router for "auto".
            SlmEdgeError: as `Pack.open`, `Pack.base_path` and the class itself do.
        """
        cls._check_options(options)
        pack = pack if isinstance(pack, Pack) else Pack.open(pack)
        adapters = cls.adapters_in(pack)
        default = pack.default_adapter if pack.default_adapter in adapters else None
        router = None
        # Told before anything is fetched or loaded
        routed = adapter is Left.OUT and pack.default_adapter == "auto"
        if adapter == "auto" or routed:
            router, default = router_of(pack, adapters), None
            largest_bytes = max((packed.size_bytes for packed in adapters.values()), default=0)
        else:
            choice = choice_of(default if adapter is Left.OUT else adapter, None, adapters)
            largest_bytes = sum(adapters[name].size_bytes for name, _ in choice.scales)
        path = cls._base_in(pack, allow_pull)
        start_s = time.perf_counter()
        base = cls._opened(path)
        if base.fingerprint != pack.base.fingerprint:
            raise DamagedError(
                "is not the base that the pack was made for (its fingerprint differs)",
                where=path,
                hint="slm-edge pack verify says what changed",
            )
        if one_answer:
            cls._for_one_answer(options, largest_bytes)
        session = cls(base, adapters, default_adapter=default, **options)
        session.load_s = time.perf_counter() - start_s
        session._pack, session._router, session._routed = pack, router, routed
        if adapter is not Left.OUT and adapter != "auto":
            try:
                session.use(adapter)
            except BaseException:
                session.close()
                raise
        return session

    @classmethod
    def of_files(
        cls,
        base_path: str | os.PathLike[str],
        adapters: Mapping[str, tuple[str | os.PathLike[str], TaskCard | None]],
        one_answer: bool = False,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """A session over loose files: name -> (adapter file, its card or None); raises as the class itself."""
        base = cls._opened(base_path)
        packed = {name: cls.loose(base, name, Path(file), card) for name, (file, card) in adapters.items()}
        if one_answer:
            cls._for_one_answer(options, sum(one.size_bytes for one in packed.values()))
        return cls(base, packed, **options)

    @classmethod
    def _check_options(cls, options: EngineOptions) -> None:
        check_given(options, EngineOptions, "option")
        foreign = [name for name, value in options.items() if name not in cls.engine_options and value is not None]
        if foreign:
            raise InputError(
                f"the engine {cls.engine_name!r} has no option {', '.join(foreign)}",
                hint="leave it out, or take the engine 'llama' (--engine llama)",
            )

    # Prompts and answers

    def prompt_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a prompt as the model sees it, through the chat template.

        Args:
            prompt: a user message's text, or a conversation.
            adapter: whose task card has the system message; left out: the one in use.
            system: a system message; None: the conversation's own, else the task card's; "" for none.
            template_args: as in `settings.Settings`.

        Raises:
            InputError: the prompt is empty or of another shape, or the template fails on it or knows no such argument.
            UnsupportedError: the template refuses it.
        """
        return self.rendered(prompt, system, self._chosen(prompt, adapter), template_args)[0]

    def rendered(
        self,
        prompt: str | Sequence[Message],
        system: str | None,
        choice: Choice,
        template_args: Mapping[str, Any] | None = None,
        turn: Turn = "new",
    ) -> tuple[list[int], int]:
        """Token ids as of `prompt_tokens`, and how many of them every prompt with that system message begins with."""
        self._owner.check()
        messages = messages_of(prompt, system, choice.card.system)
        arguments = arguments_of(choice.card, template_args)
        ids = self.prompts.encode(messages, turn=turn, most_tokens=self.longest_tokens, arguments=arguments)
        return ids, self.shared_tokens(messages, ids, arguments)

    def sections(self, choice: Choice, ids: Sequence[int], n_shared_tokens: int = 0) -> list[Section]:
        """The parts of a prompt with the adapters of each, loaded where they are not; raises as `use`."""
        self._owner.check()
        return self._sections(choice, ids, n_shared_tokens)

    def request(
        self,
        prompt: str | Sequence[Message],
        choice: Choice,
        system: str | None,
        settings: Settings,
        room_tokens: int | None = None,
    ) -> Request:
        """Everything that decides an answer, checked, for `Batcher.submit`; arguments and errors as `stream`.

        Args:
            room_tokens: longest prompt and answer together; None: the session's context.
        """
        turn = turn_of(settings)
        ids, n_shared_tokens = self.rendered(prompt, system, choice, settings.get("template_args"), turn)
        request = request_of(
            ids,
            choice,
            settings,
            lambda: self.sections(choice, ids, n_shared_tokens),
            room_tokens=room_tokens or self.n_ctx_tokens,
            longest=self.longest,
            thinking=self._thinking(choice.card, ids),
        )
        # A missing invocation of an activated LoRA is told now, not when the answer is read.
        self.sections(choice, ids)
        return request

    def _thinking(self, card: TaskCard, ids: Sequence[int]) -> "Thinking | None":
        """How the thoughts in the answer to a rendered prompt are told; most models have none."""
        if not (self.template.thinking_form if card.thinking is None else card.thinking):
            return None
        from .thinking import thinking_of

        return thinking_of(self.template, card, self.vocab, ids)

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        system: str | None = None,
        on_thinking: Callable[[str], object] | None = None,
        **settings: Unpack[Settings],
    ) -> Stream:
        """Begins an answer, which is computed while it is read.

        Args:
            prompt, system: as in `prompt_tokens`.
            adapter: for this answer alone, as in `use`; "auto": as `choose` says. Left out: the one in use.
            on_thinking: told of each piece of what the model thinks before it answers, which is no part of the text.
            settings: see `settings.Settings`; what is left out is as the task card says.

        Raises:
            InputError, UnsupportedError: as `prompt_tokens` and `use`, or settings that there are not or out of range.
            DoesNotFitError: the prompt leaves no room in the context. One that fits is answered until the context is
                full, with the stop reason "context".
            EngineError: the session is closed, or another thread's.
        """
        started_s = time.perf_counter()
        choice = self._chosen(prompt, adapter)
        request = self.request(prompt, choice, system, settings)
        worker = self._worker(choice, request.room_tokens)
        return Stream(worker, self.vocab, request, started_s, self._owner, on_thinking)

    def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        system: str | None = None,
        **settings: Unpack[Settings],
    ) -> Answer:
        """The whole answer; arguments and errors as `stream`."""
        stream = self.stream(prompt, adapter=adapter, system=system, **settings)
        for _ in stream:
            pass
        return stream.answer

    def submit(
        self,
        prompt: str | Sequence[Message],
        *,
        adapter: AdapterName | LeftOut = LEFT_OUT,
        system: str | None = None,
        on_text: Callable[[str], object] | None = None,
        on_thinking: Callable[[str], object] | None = None,
        **settings: Unpack[Settings],
    ) -> "Pending":
        """Submits a request, to be answered together with others by `Pending.result` (see `batcher.py`).

        Args:
            on_text, on_thinking: told of each piece of text as it is final, and of what the model thinks before it.
            prompt, adapter, system, settings: as in `stream`; errors too.
        """
        choice = self._chosen(prompt, adapter)
        if self._batcher is None:
            self._batcher = self.new_batcher(self._n_parallel)
        request = self.request(prompt, choice, system, settings)
        return self._batcher.submit(request, choice, on_text, on_thinking)

    def new_batcher(self, n_parallel: int) -> "Batcher[RowsT]":
        """A batcher with rows of its own beside the session's; close it when it is done with.

        Args:
            n_parallel: answers computed at once at most; memory grows with it by one KV cache each.
        """
        from .batcher import Batcher

        self._owner.check()
        batcher = Batcher(self.row_maker(), self.vocab, n_parallel=n_parallel, owner=self._owner)
        self._batchers.add(batcher)
        return batcher

    # How it ends

    def close(self) -> None:
        """Frees everything; requests that wait fail. Calling it twice does nothing, nor does it in a forked child.

        Raises:
            EngineError: it is called in another thread than the one that opened the session.
        """
        if self._owner.is_over:
            return
        self._owner.check()
        for batcher in list(self._batchers):
            batcher.close()
        self._owner.closed = True
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
