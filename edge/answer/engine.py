"""What an engine says of itself, and `base.SessionBase` makes a session of: its files, adapters, limits, and what
computes one answer (`Worker`) or several (`Rows`). And which adapter answers a session's prompts: the one in use, one
for a single call, or what the router chooses (`Choosing`)."""

import abc
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

from ..gguf.chat_template import ChatTemplate, Message, checked_messages
from ..llama.prompt import PromptEncoder
from ..llama.sampling import Sampler
from ..llama.vocab import Vocab
from ..options import EngineOptions, Left, LeftOut, Swap
from ..pack.card import TaskCard
from ..pack.pack import Pack, PackedAdapter
from ..prefix.chunks import Section
from .settings import AdapterName, Choice, choice_of
from .stream import Owner

if TYPE_CHECKING:
    from ..llama.abort import AbortFlag
    from ..memory.plan import MemoryPlan
    from ..router.router import Decision, Router


# What every engine tries an adapter on before the adapter answers anything
CANARY: Final = "The answer is 42"


class Worker(Protocol):
    """Computes prompts and tokens for one answer at a time: `prefix.cache.Lane`, or `onnx.lane.OnnxLane`."""

    n_drafted_tokens: int
    n_accepted_tokens: int

    @property
    def turn(self) -> int:
        """Number of prompts begun."""

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache."""

    def begin(self, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt; how many of its tokens were kept from before."""

    def step(self, token_id: int) -> None:
        """Computes one more token."""

    def sample(self, sampler: Sampler) -> int:
        """Chooses the next token from the last output."""

    def rest(self, turn: int) -> None:
        """The answer that began as `turn` needs nothing more."""

    def flush(self) -> None:
        """Nobody is waiting for an answer."""


class Aside(Protocol):
    """A sequence that was laid aside."""

    @property
    def size_bytes(self) -> int:
        """Of its keys and values."""


class Rows(Protocol):
    """Where answers are computed side by side: `session.rows.LlamaRows`, or `onnx.rows.OnnxRows`."""

    @property
    def beginnings_bytes(self) -> int:
        """Kept beginnings of prompts in memory, beside the rows."""

    @property
    def n_evicted(self) -> int:
        """Kept beginnings of prompts that went for want of room."""

    @property
    def held_tokens(self) -> int:
        """Whose keys and values the sequences hold."""

    def prefill(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt in an empty sequence; how many of its tokens were kept from before."""

    def kept(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section], fast: bool) -> int:
        """How many tokens of a prompt a sequence holds that need not be computed."""

    def fill(
        self,
        sequence: int,
        prompt: Sequence[int],
        sections: Sequence[Section],
        fast: bool = False,
        flag: "AbortFlag | None" = None,
    ) -> Iterator[int]:
        """Computes a prompt chunk by chunk; others may compute in between.

        Args:
            fast: keep what was computed of it in other pieces, as an answer; the last bits may differ then.
            flag: once it is set, it ends with an EngineError.

        Yields:
            How many of its tokens the sequence holds: first what was kept, then after each chunk.
        """

    def step(self, token_ids: Sequence[int], sequences: Sequence[int], flag: "AbortFlag | None" = None) -> None:
        """Computes one more token for each of several sequences, which rise and have the same adapters to come.

        Args:
            flag: once it is set, it ends with an EngineError; the sequences are as they were.
        """

    def sample(self, sampler: Sampler, i: int) -> int:
        """Chooses a token from the logits of the i-th of the last step; -1: from those of the last prompt.

        Raises:
            EngineError: as `Sampler.sample`; of that sequence nothing is read again.
        """

    def lay_aside(self, sequence: int) -> "Aside":
        """Takes a sequence out, to be put back into any; it is empty then."""

    def put_back(self, sequence: int, aside: Any) -> None:
        """Puts back what `lay_aside` gave, bit for bit; EngineError where that cannot be."""

    def aside_bytes(self, sequence: int) -> int:
        """What `lay_aside` would hold."""

    def has_room(self, n_bytes: int) -> bool:
        """Whether so much may be laid aside in all."""

    def hold(self, n_bytes: int) -> None:
        """So much is laid aside in all, or will be next; kept beginnings of prompts give way to it."""

    def release(self, sequence: int) -> None:
        """Empties a sequence, or leaves what it holds to others that begin alike."""

    def flush(self) -> None:
        """Called when nobody waits for an answer."""

    def close(self) -> None:
        """Frees everything. Calling it twice does nothing."""


RowsT = TypeVar("RowsT", bound=Rows)


class Engine(abc.ABC, Generic[RowsT]):
    """What differs between engines; a session is one of them.

    Attributes:
        engine_name: "llama" or "onnx".
        engine_options: the names of `EngineOptions` that this engine has.
        base: what the base is; has its `name` and `fingerprint`.
        template: the base's chat template.
        vocab: the tokenizer.
        prompts: conversations as token ids.
        n_ctx_tokens: longest prompt and answer together.
        longest_tokens: the same of a request that is handed to a batcher itself.
        plan: the memory that was planned; None if the engine plans none.
        held: names of the adapters that answers of a scheduler are being made with: they stay in memory.
    """

    engine_name: ClassVar[str]
    engine_options: ClassVar[frozenset[str]]
    base: Any
    template: ChatTemplate
    vocab: Vocab
    prompts: PromptEncoder
    n_ctx_tokens: int
    longest_tokens: int
    plan: "MemoryPlan | None"
    held: Callable[[], Collection[str]] = staticmethod(tuple)

    @classmethod
    @abc.abstractmethod
    def _base_in(cls, pack: Pack, allow_pull: bool) -> Path:
        """Where the pack's base is, as the engine takes it."""

    @classmethod
    @abc.abstractmethod
    def adapters_in(cls, pack: Pack) -> dict[str, PackedAdapter]:
        """The pack's adapters in the engine's format."""

    @classmethod
    @abc.abstractmethod
    def _opened(cls, base_path: str | os.PathLike[str]) -> Any:
        """The base, opened and checked."""

    @classmethod
    @abc.abstractmethod
    def loose(cls, base: Any, name: str, path: Path, card: TaskCard | None) -> PackedAdapter:
        """A loose adapter; InputError if the file is not there."""

    @property
    @abc.abstractmethod
    def base_path(self) -> Path:
        """The base's file, or its folder, as the class takes it."""

    @abc.abstractmethod
    def _load(self, choice: Choice, swap: Swap | None) -> None:
        """Loads the adapters of a choice and tries them at its scales; raises as `use`."""

    @abc.abstractmethod
    def _sections(self, choice: Choice, ids: Sequence[int], n_shared_tokens: int) -> list[Section]:
        """The parts of a prompt with the adapters of each, loaded where they are not; raises as `use`."""

    @abc.abstractmethod
    def _worker(self, choice: Choice, room_tokens: int) -> Worker:
        """What computes one answer under a choice."""

    @abc.abstractmethod
    def row_maker(self) -> Callable[[int, int], RowsT]:
        """Makes so many sequences of so many tokens each, for `batcher.Batcher`."""

    @abc.abstractmethod
    def forget(self, name: str) -> None:
        """Frees an adapter, if it is in memory; none of the answers in the making may need it."""

    @property
    @abc.abstractmethod
    def threads(self) -> int:
        """CPU threads for single tokens, at most."""

    @property
    def threads_now(self) -> int:
        """CPU threads for the next single token: fewer beside busy processes, unless a number was given."""
        return self.threads

    @property
    @abc.abstractmethod
    def loaded_adapters(self) -> dict[str, int]:
        """Bytes of the adapters in memory by name, the one used last at the end."""

    @property
    @abc.abstractmethod
    def longest(self) -> str:
        """The longest context that can be had, for the user whose prompt does not fit."""

    def shared_tokens(
        self, messages: Sequence[Message], ids: Sequence[int], arguments: Mapping[str, Any] | None = None
    ) -> int:
        """How many tokens every prompt with that system message begins with, where the engine keeps those.

        Args:
            arguments: of the template.
        """
        return 0

    @classmethod
    def _for_one_answer(cls, options: EngineOptions, adapters_bytes: int) -> None:
        """Sets what saves memory in a session that answers once, with adapters of that size."""


class Choosing(Engine[RowsT]):
    """The part of a session that knows its adapters.

    Attributes:
        adapters: by name.
    """

    adapters: dict[str, PackedAdapter]
    _choice: Choice
    _routed: bool
    _pack: Pack | None
    _router: "Router | None"
    _owner: Owner

    @property
    def adapter(self) -> str | None:
        """The name of the adapter in use, of several as "code:0.3+math:0.7"; None for the base alone."""
        return self._choice.name

    @property
    def choice(self) -> Choice:
        """What is in use: names, scales and the card."""
        return self._choice

    def use(self, name: AdapterName, *, scale: float | None = None, swap: Swap | None = None) -> Self:
        """Chooses the adapter for the prompts to come; an answer that is being read goes on as it began.

        Args:
            name: None or "none" for the base alone. Several with their scales, such as {"math": 0.7, "code": 0.3} or
                "math:0.7+code:0.3", are added up (PEFT's weighted sum); the first one's task card says how answers
                are made.
            scale: its strength; None for the card's.
            swap: insists on a way of being taken up in the middle of a conversation: "recompute", or "activated" for
                an activated LoRA.

        Raises:
            InputError: there is no such adapter (the hint has those that are), its file is not valid for the base, or
                a scale is out of range.
            UnsupportedError: the adapter cannot be taken up as `swap` says, or not be added to others.
            DamagedError: the file's bytes changed since it was packed.
            DoesNotFitError: adapters may not take so much memory.
            EngineError: it does nothing to the base's output, or makes it no number.
        """
        self._choice, self._routed = self.choice_of(name, scale=scale, swap=swap), False
        return self

    def choice_of(self, name: AdapterName, *, scale: float | None = None, swap: Swap | None = None) -> Choice:
        """What `use` would choose, loaded and tried; arguments and errors as there."""
        self._owner.check()
        choice = choice_of(name, scale, self.adapters)
        self._load(choice, swap)
        return choice

    @property
    def router(self) -> "Router":
        """The pack's router over the adapters that are here, opened when it is first asked for; errors as `choose`."""
        self._owner.check()
        if self._router is None:
            self._router = router_of(self._pack, self.adapters)
        return self._router

    def choose(self, prompt: str | Sequence[Message], *, explain: bool = False) -> "Decision":
        """Which adapter the pack's router would give a prompt to; `use` takes it up.

        In a conversation with answers the adapter in use is kept unless another one is clearly likelier.

        Args:
            explain: fill the decision's `reasons`.

        Raises:
            InputError: the session is not of a pack, or the pack has no router that knows one of the adapters.
            SlmEdgeError: as `router.in_pack.open_router`.
        """
        return self.router.choose(checked_messages(prompt), current=self.adapter, explain=explain)

    def _chosen(self, prompt: str | Sequence[Message], adapter: AdapterName | LeftOut) -> Choice:
        """The choice for one call."""
        self._owner.check()
        if adapter is Left.OUT and not self._routed:
            return self._choice
        if adapter is Left.OUT or adapter == "auto":
            adapter = self.choose(prompt).adapter
        return self.choice_of(adapter)


def router_of(pack: Pack | None, adapters: Mapping[str, PackedAdapter]) -> "Router":
    """The router of a pack over the adapters that are here; errors as `router.in_pack.open_router`."""
    # A prompt whose adapter is named must not wait for it.
    from ..router.in_pack import open_router

    return open_router(pack, adapters)
