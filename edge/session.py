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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, Unpack

from .base_info import BaseInfo
from .canary import Canary
from .card import TaskCard
from .chat import ChatTemplate, Message
from .engine import Adapter, Context, Model
from .errors import DamagedError, DoesNotFitError, InputError
from .files import sha256_file
from .lane import Lane
from .pack import Pack, PackedAdapter
from .prefix import AdapterState
from .settings import EngineOptions, Settings, max_tokens_of, sampling_of, stop_of
from .shelf import Shelf
from .stream import Answer, Request, Stream

__all__ = ["Answer", "Session", "Stream"]

DEFAULT_CTX_TOKENS = 2048
# How the base answers by itself.
BASE_CARD = TaskCard(task="base")


@dataclass(frozen=True)
class Choice:
    """What prompts are answered with: a name and its card, the engine's adapter set, and its name in the KV books."""

    name: str | None
    card: TaskCard
    adapters: tuple[tuple[Adapter, float], ...]
    state: AdapterState


class Session:
    """An open base with its adapters. Made by `open` or `of_files`.

    Args:
        base_path: the base GGUF.
        adapters: by name; each is checked, loaded and tried when it is first used.
        default_adapter: in use until `use` is called; None for the base alone.
        options: see `settings.EngineOptions`.

    Attributes:
        base: what the base is.
        adapters: by name.
        model, context: the engine's objects, for measuring.
        template: the base's chat template.
        n_ctx_tokens: longest prompt and answer together.
        options: as given.

    Raises:
        InputError, UnsupportedError, DamagedError: the base does not pass the checks of `base_info`.
        DoesNotFitError: the base was not trained for so long a context.
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
        trained = self.base.n_ctx_train_tokens
        self.n_ctx_tokens = options.get("n_ctx_tokens") or min(DEFAULT_CTX_TOKENS, trained)
        if self.n_ctx_tokens > trained:
            raise DoesNotFitError(
                f"a context of {self.n_ctx_tokens} tokens is asked of a base trained for {trained}",
                where=self.base.file.path,
            )
        self.options = options
        self._name = default_adapter
        self._scales: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            self.model = stack.enter_context(
                Model.load(base_path, mmap=options.get("mmap", True), repack=options.get("repack", True))
            )
            self.context = Context(
                self.model,
                n_ctx_tokens=self.n_ctx_tokens,
                threads=options.get("threads"),
                kv_type=options.get("kv_type", "f16"),
                flash_attention=options.get("flash_attention", "auto"),
            )
            self._owned = stack.pop_all()
        self._shelf = Shelf(self.model, self.base, Canary(self.model, self.context.threads), adapters)
        self._lane = Lane(self.context)

    @classmethod
    def open(cls, pack: Pack | str | os.PathLike[str] | None, **options: Unpack[EngineOptions]) -> Self:
        """Opens a pack (None: the starter pack); its base must be in it or in the cache (`slm-edge pull`).

        Raises:
            DamagedError: the base is not the pack's.
            SlmEdgeError: as `Pack.open`, `Pack.base_path` and the class itself do.
        """
        pack = pack if isinstance(pack, Pack) else Pack.open(pack)
        session = cls(pack.base_path(), pack.adapters, default_adapter=pack.default_adapter, **options)
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
    def adapter(self) -> str | None:
        """The name of the adapter in use; None for the base alone."""
        return self._name

    def use(self, name: str | None, *, scale: float | None = None) -> Self:
        """Chooses the adapter for the prompts to come; an answer that is being read goes on as it began.

        Args:
            name: None for the base alone.
            scale: its strength; None for the card's.

        Raises:
            SlmEdgeError: as `shelf.Shelf.load`; a name that is not there is answered with those that are.
        """
        if name is not None:
            if scale is not None and (not -10 <= scale <= 10 or scale == 0):
                raise InputError(f"a scale of {scale} for the adapter {name!r}; -10 to 10 and not 0 are possible")
            self._shelf.load(name)
            self._scales[name] = self._shelf.packed(name).card.scale if scale is None else scale
        self._name = name
        return self

    def choice(self) -> Choice:
        """The adapter in use, loaded where it is not yet; raises as `use`."""
        if self._name is None:
            return Choice(None, BASE_CARD, (), AdapterState())
        packed = self._shelf.packed(self._name)
        scale = self._scales.get(packed.name, packed.card.scale)
        adapters = ((self._shelf.load(packed.name), scale),)
        return Choice(packed.name, packed.card, adapters, AdapterState(packed.sha256, scale))

    def prompt_tokens(self, prompt: str | Sequence[Message], *, system: str | None = None) -> list[int]:
        """Token ids of a prompt as the model sees it, through the chat template.

        Args:
            prompt: a user message's text, or a conversation.
            system: a system message; None: the conversation's own, else the task card's; "" for none.

        Raises:
            InputError: the prompt is empty, or the template fails on it.
            UnsupportedError: the template refuses it.
        """
        card = BASE_CARD if self._name is None else self._shelf.packed(self._name).card
        return self.model.vocab.encode(self.template.render(_messages(prompt, system, card)))

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
        choice = self.choice()
        ids = self.prompt_tokens(prompt, system=system)
        max_tokens = max_tokens_of(choice.card, settings)
        if len(ids) >= self.n_ctx_tokens:
            raise DoesNotFitError(
                f"the prompt has {len(ids)} tokens and up to {max_tokens} are to follow; "
                f"the context holds {self.n_ctx_tokens}",
                hint=f"shorten it, or take a larger context: this base can do {self.base.n_ctx_train_tokens}",
            )
        request = Request(
            prompt=ids,
            adapter=choice.name,
            adapters=choice.adapters,
            state=choice.state,
            sampling=sampling_of(choice.card, settings),
            stop=stop_of(choice.card, settings),
            max_tokens=max_tokens,
            room_tokens=self.n_ctx_tokens,
        )
        return Stream(self._lane, self.model.vocab, request, started_s)

    def ask(
        self, prompt: str | Sequence[Message], *, system: str | None = None, **settings: Unpack[Settings]
    ) -> Answer:
        """The whole answer; arguments and errors as `stream`."""
        stream = self.stream(prompt, system=system, **settings)
        for _ in stream:
            pass
        return stream.answer

    def close(self) -> None:
        """Frees contexts, adapters and the base. Calling it twice does nothing."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _messages(prompt: str | Sequence[Message], system: str | None, card: TaskCard) -> list[Message]:
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not any(message["content"].strip() for message in messages):
        raise InputError("the prompt is empty")
    own = messages[0]["role"] == "system"
    if system is not None and own:
        raise InputError("a system message is given twice: in the conversation and by itself")
    text = system if system is not None else None if own else card.system
    return [{"role": "system", "content": text}, *messages] if text else messages
