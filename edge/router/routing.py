"""The router of a session: opened when it is first asked.

routing = Routing(session.adapters)
routing.pack = pack
routing.choose("How many legs have 3 cats?", current=None)
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..gguf.chat_template import Message
from ..pack.pack import Pack, PackedAdapter

if TYPE_CHECKING:
    from .router import Decision, Router


class Routing:
    """Chooses among a session's adapters.

    Args:
        adapters: those that the session can use.

    Attributes:
        pack: whose router it is; None for a session over loose files.
    """

    def __init__(self, adapters: Mapping[str, PackedAdapter]) -> None:
        self.pack: Pack | None = None
        self._adapters = adapters
        self._router: Router | None = None

    @property
    def router(self) -> "Router":
        """The pack's router.

        Raises:
            InputError: there is no pack, or it has no router that knows one of the adapters.
            SlmEdgeError: as `in_pack.open_router`.
        """
        if self._router is None:
            # A prompt whose adapter is named must not wait for it.
            from .in_pack import open_router

            self._router = open_router(self.pack, self._adapters)
        return self._router

    def choose(self, prompt: str | Sequence[Message], current: str | None) -> "Decision":
        """The router's decision; raises as `router`."""
        return self.router.choose(prompt, current=current)
