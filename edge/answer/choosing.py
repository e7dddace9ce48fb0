"""Which adapter answers a session's prompts: the one in use, one for a single call, or what the router chooses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from ..gguf.chat_template import Message, checked_messages
from ..options import Left, LeftOut, Swap
from ..pack.pack import Pack, PackedAdapter
from .choice import AdapterName, Choice, choice_of
from .engine import Engine, RowsT
from .owner import Owner

if TYPE_CHECKING:
    from ..router.router import Decision, Router


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
