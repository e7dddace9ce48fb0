"""The router of a session: opened when it is first asked, with its second stage where that is wanted.

routing = Routing(session.adapters)
routing.pack = pack
routing.choose("How many legs have 3 cats?", current=None)
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .chat import Message
from .pack import Pack, PackedAdapter

if TYPE_CHECKING:
    from .hidden_state import State
    from .router import Decision, Router
    from .second_stage import SecondStage

# Reads a prompt with the base: its hidden state, or None where it has no room.
ReadState = Callable[[str | Sequence[Message]], "State | None"]


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
        self._second: SecondStage | None = None

    @property
    def router(self) -> "Router":
        """The pack's router.

        Raises:
            InputError: there is no pack, or it has no router that knows one of the adapters.
            SlmEdgeError: as `pack_router.open_router`.
        """
        if self._router is None:
            # A prompt whose adapter is named must not wait for it.
            from .pack_router import open_router

            self._router = open_router(self.pack, self._adapters)
        return self._router

    def choose(
        self, prompt: str | Sequence[Message], current: str | None, read_state: ReadState | None = None
    ) -> "Decision":
        """The router's decision; with `read_state`, the second stage's part in it where the first is unsure.

        Of a conversation that has answers only the first stage judges: its adapter stays unless another is clearly
        likelier, and reading all of it with the base would cost more than a wrong turn.

        Raises:
            InputError: as `router`, and where there is no second stage but `read_state` is given.
        """
        decision = self.router.choose(prompt, current=current)
        if read_state is None:
            return decision
        started_s = time.perf_counter()
        if self._second is None:
            from .second_stage import read_second_stage

            self._second = read_second_stage(self.pack)
        talk = not isinstance(prompt, str) and any(message["role"] == "assistant" for message in prompt)
        if talk or decision.confidence >= self._second.below:
            return decision
        state = read_state(prompt)
        if state is None:
            return decision
        decision = self.router.choose(prompt, current=current, opinion=self._second.opinion(state))
        return dataclasses.replace(decision, second_stage_s=time.perf_counter() - started_s)
