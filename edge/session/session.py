"""The session on llama.cpp: one base mapped once, many adapters over it, one of them in use for each prompt.

    with Session.open("my-pack") as session:
        session.use("math")
        for text in session.stream("How many legs have 3 cats?"):
            print(text, end="", flush=True)
        session.ask("Hello", adapter="none").text

What it shares with the session on onnxruntime, all of the above, is in `answer/base.py`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from ..answer.base import SessionBase
from ..answer.engine import Worker
from ..answer.settings import Choice
from ..errors import InputError
from ..files.read import FileWatch, sha256_file
from ..gguf.adapter import check_adapter
from ..gguf.base import BaseInfo
from ..gguf.chat_template import ChatTemplate, Message
from ..llama.context import Context
from ..llama.model import Adapter, Model, copied_spans
from ..llama.prompt import PromptEncoder, SystemPrefix
from ..memory.fit import limit_of, plan_session
from ..memory.plan import MemoryPlan
from ..options import MOST_AT_ONCE, EngineOptions, Swap
from ..pack.card import TaskCard, own_card
from ..pack.pack import Pack, PackedAdapter
from ..prefix.cache import Lane, open_prefix_cache
from ..prefix.chunks import Section
from .shelf import Canary, Shelf, pinned_of, sections_of, swap_of

if TYPE_CHECKING:
    from .rows import LlamaRows
    from .speculation import Drafting


class Session(SessionBase["LlamaRows"]):
    """An open base with its adapters, on llama.cpp. Made by `open` or `of_files`.

    Attributes:
        model, context: the engine's objects, for measuring.
        options: as given, with what was chosen where they left it open.
        prefixes: computed beginnings of prompts, in memory and on disk.

    Raises:
        InputError, UnsupportedError, DamagedError: the base does not pass the checks of `gguf.base`.
        DoesNotFitError: the base was not trained for so long a context, or `ram_bytes` do not suffice.
        EngineError: llama.cpp cannot load it.
    """

    engine_name = "llama"
    engine_options: ClassVar[frozenset[str]] = frozenset(EngineOptions.__annotations__)
    base: BaseInfo
    plan: MemoryPlan

    def __init__(
        self,
        base: BaseInfo | str | os.PathLike[str],
        adapters: Mapping[str, PackedAdapter],
        *,
        default_adapter: str | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base, adapters, default_adapter=default_adapter, **options)
        base_path = self.base.file.path
        self.template = ChatTemplate.of(self.base.file)
        self._speculate = options.get("speculate")
        modes = [self._speculate] if self._speculate else [packed.card.speculate for packed in adapters.values()]
        # Logit rows of one batch
        n_outputs = MOST_AT_ONCE if set(modes) - {"off"} else 1
        options["pinned"] = pinned_of(adapters, options.get("pinned", ()))
        sizes_bytes = [packed.size_bytes for packed in adapters.values()]
        self.plan = plan_session(self.base, options, sizes_bytes, n_outputs)
        self._limit_bytes = limit_of(options)
        chosen = self.plan.choices
        self.n_ctx_tokens = chosen.n_ctx_tokens
        self.longest_tokens = self.base.n_ctx_train_tokens
        options |= vars(chosen)  # type: ignore[typeddict-item]
        self.options = options
        # llama.cpp maps the file itself.
        self.base.file.release()
        if self.base.unproved:
            from ..llama.first_load import ensure_loads

            ensure_loads(self.base)
        with contextlib.ExitStack() as stack:
            self.model = stack.enter_context(
                Model.load(base_path, mmap=chosen.mmap, repack=chosen.repack, copied=copied_spans(self.base))
            )
            self.vocab = self.model.vocab
            n_rows = options.get("n_rows") or 1
            setup: dict[str, Any] = {
                "n_ctx_tokens": self.n_ctx_tokens * n_rows,
                "n_seq_max": n_rows,
                "n_batch_tokens": max(chosen.n_batch_tokens, n_rows),
                "n_outputs_max": max(min(n_outputs, chosen.n_batch_tokens), n_rows),
                "threads": options.get("threads"),
                "threads_batch": options.get("threads_batch"),
                "kv_type": chosen.kv_type,
                "flash_attention": options.get("flash_attention", "auto"),
            }
            if chosen.both_layouts:
                from ..llama.two_layouts import StoredModel, TwoLayouts

                stored = stack.enter_context(StoredModel(self.model))
                self.context: Context = TwoLayouts(self.model, stored, **setup)
            else:
                self.context = Context(self.model, **setup)
            self._watch = stack.enter_context(FileWatch(base_path))
            most_bytes = None if self._limit_bytes is None else self.plan.snapshots_bytes
            self.prefixes = open_prefix_cache(self.base, self.context, options, most_bytes)
            self._lane = Lane(self.context, self.prefixes, fast=options.get("reuse") == "fast")
            self._shelf = Shelf(
                self.model,
                self.base,
                Canary(self.model, options.get("threads"), repack=chosen.repack),
                self.adapters,
                budget_bytes=options.get("adapter_budget_bytes"),
                pinned=options["pinned"],
                in_use=self._adapters_in_use,
                held=lambda: self.held(),
            )
            allow_special = options.get("allow_special", False)
            self.prompts = PromptEncoder(self.base.file, self.template, self.vocab, allow_special=allow_special)
            self._system = SystemPrefix(self.prompts)
            stack.callback(self.prefixes.flush)
            self._owned = stack.pop_all()

    @classmethod
    def _base_in(cls, pack: Pack, allow_pull: bool) -> Path:
        return pack.base_path(allow_pull)

    @classmethod
    def adapters_in(cls, pack: Pack) -> dict[str, PackedAdapter]:
        """A pack's adapters by name."""
        return pack.adapters

    @classmethod
    def _opened(cls, base_path: str | os.PathLike[str]) -> BaseInfo:
        return BaseInfo.open(base_path)

    @property
    def base_path(self) -> Path:
        """The base's file."""
        return self.base.file.path

    @classmethod
    def loose(cls, base: Any, name: str, path: Path, card: TaskCard | None) -> PackedAdapter:
        if not path.is_file():
            raise InputError("no such file", where=path)
        if card is None:
            card = own_card(check_adapter(path, base), name)
        return PackedAdapter(name, path, sha256_file(path), path.stat().st_size, card)

    @classmethod
    def _for_one_answer(cls, options: EngineOptions, adapters_bytes: int) -> None:
        # What was chosen is loaded, whatever else is in the pack.
        budget_bytes = options.get("adapter_budget_bytes")
        options["adapter_budget_bytes"] = adapters_bytes if budget_bytes is None else min(adapters_bytes, budget_bytes)
        if options.get("prefix_cache") is None:
            options["prefix_budget_bytes"] = 0

    @property
    def threads(self) -> int:
        """CPU threads for single tokens, at most."""
        return self.context.threads

    @property
    def threads_now(self) -> int:
        """As `engine.Engine.threads_now`."""
        return self.context.pace.now

    @property
    def loaded_adapters(self) -> dict[str, int]:
        """Bytes of those in memory by name, the one used last at the end."""
        return self._shelf.loaded

    @property
    def swap(self) -> Swap:
        """How the adapter in use is taken up in the middle of a conversation, see `shelf.swap_of`."""
        self._owner.check()
        return swap_of(self._shelf.load([name for name, _ in self._choice.scales]))

    @property
    def longest(self) -> str:
        return f"this base can do {self.longest_tokens}"

    def _load(self, choice: Choice, swap: Swap | None) -> None:
        loaded = self._shelf.load([name for name, _ in choice.scales])
        if loaded:
            swap_of(loaded, swap)
            self._shelf.try_scales(choice.scales)

    def _sections(self, choice: Choice, ids: Sequence[int], n_shared_tokens: int) -> list[Section]:
        self._watch.check()
        loaded = self._shelf.load([name for name, _ in choice.scales])
        swap_of(loaded)
        scaled = [(one, scale) for one, (_, scale) in zip(loaded, choice.scales, strict=True)]
        return sections_of(scaled, ids, n_shared_tokens, self.vocab)

    def shared_tokens(
        self, messages: Sequence[Message], ids: Sequence[int], arguments: Mapping[str, Any] | None = None
    ) -> int:
        return self._system.length(messages, ids, arguments)

    def forget(self, name: str) -> None:
        """Frees an adapter, if it is in memory."""
        self._shelf.forget(name)

    @functools.cached_property
    def _drafting(self) -> "Drafting":
        """What is known about speculation, which most sessions never do."""
        from .exactness import Exactness
        from .speculation import Drafting

        flash_attention = self.options.get("flash_attention", "auto")
        exactness = Exactness(
            self.base, self.adapters, repack=self.plan.choices.repack, flash_attention=flash_attention
        )
        return Drafting(self.context, exactness, self._speculate)

    def _worker(self, choice: Choice, room_tokens: int) -> Worker:
        if (self._speculate or choice.card.speculate) == "off":
            return self._lane
        return self._drafting.worker(self._lane, choice, room_tokens)

    def row_maker(self) -> "Callable[[int, int], LlamaRows]":
        from .parallel import own_rows, parallel_rows

        n_rows = self.options.get("n_rows")
        if n_rows:
            return own_rows(self.context, self.prefixes, n_rows)
        return parallel_rows(
            self.context,
            self.base,
            self.plan,
            self.prefixes,
            limit_bytes=self._limit_bytes,
            flash_attention=self.options.get("flash_attention", "auto"),
        )

    def _adapters_in_use(self) -> list[Adapter]:
        busy = [batcher.rows for batcher in self._batchers if batcher.busy and batcher.rows is not None]
        batched = [adapter for rows in busy for adapter in rows.adapters]
        return [*batched, *(self.context.adapters if self._lane.busy else ())]
