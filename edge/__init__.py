"""What runs on the device: packs, the runtime, the command line. Imports no other folder and never torch.

    from slm_edge.edge import SlmEdgeError, open_session

    with open_session("my-pack") as session:                    # None: the starter pack
        answer = session.ask("How many legs have 3 cats?", adapter="math")
        answer.text, answer.n_tokens, answer.stop_reason

The names in `__all__` are public; all else may move. docs/python-api.md describes them.
"""

from typing import TYPE_CHECKING

from .. import handed_on

__all__ = [
    "Answer",
    "BusyError",
    "ConflictError",
    "DamagedError",
    "Decision",
    "DoesNotFitError",
    "Engine",
    "EngineError",
    "EngineOptions",
    "InputError",
    "MemoryPlan",
    "Message",
    "NewAdapter",
    "Pack",
    "Pending",
    "Piece",
    "Router",
    "Session",
    "Settings",
    "SlmEdgeError",
    "Stream",
    "TaskCard",
    "Ticket",
    "UnreachableError",
    "UnsupportedError",
    "build_pack",
    "open_session",
    "plan_memory",
]

if TYPE_CHECKING:
    from .answer.batcher import Pending
    from .answer.settings import Settings
    from .answer.stream import Answer, Stream
    from .engines import open_session
    from .errors import (
        BusyError,
        ConflictError,
        DamagedError,
        DoesNotFitError,
        EngineError,
        InputError,
        SlmEdgeError,
        UnreachableError,
        UnsupportedError,
    )
    from .gguf.chat_template import Message
    from .memory.plan import MemoryPlan, plan_memory
    from .options import EngineOptions
    from .pack.card import TaskCard
    from .pack.pack import Pack
    from .pack.write import NewAdapter, build_pack
    from .router.router import Decision, Router
    from .scheduler.engine import Engine
    from .scheduler.ticket import Piece, Ticket
    from .session.session import Session

else:
    __getattr__ = handed_on(
        __name__,
        {
            "open_session": ".engines",
            "Session": ".session.session",
            "Engine": ".scheduler.engine",
            "Ticket": ".scheduler.ticket",
            "Piece": ".scheduler.ticket",
            "Answer": ".answer.stream",
            "Stream": ".answer.stream",
            "Pending": ".answer.batcher",
            "Message": ".gguf.chat_template",
            "Pack": ".pack.pack",
            "TaskCard": ".pack.card",
            "NewAdapter": ".pack.write",
            "build_pack": ".pack.write",
            "Router": ".router.router",
            "Decision": ".router.router",
            "MemoryPlan": ".memory.plan",
            "plan_memory": ".memory.plan",
            "EngineOptions": ".options",
            "Settings": ".answer.settings",
            "SlmEdgeError": ".errors",
            "InputError": ".errors",
            "UnsupportedError": ".errors",
            "DoesNotFitError": ".errors",
            "DamagedError": ".errors",
            "EngineError": ".errors",
            "UnreachableError": ".errors",
            "BusyError": ".errors",
            "ConflictError": ".errors",
        },
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
