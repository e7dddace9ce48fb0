"""Small language models with task adapters, on your own device.

    import slm_edge

    with slm_edge.open_session(None, adapter="math") as session:          # None: the starter pack
        print(session.ask("How many legs have 3 cats?").text)

`slm_edge.edge` has the runtime, `slm_edge.export`, `slm_edge.train` and `slm_edge.devices` the rest; docs/python-api.md
describes what is public. The command line is `slm-edge --help`.
"""

from typing import TYPE_CHECKING

# Absolute: pytest imports this file by its folder's name, which in a clone is no Python name ("slm-edge").
from slm_edge.edge.public import handed_on

__all__ = [
    "Engine",
    "Pack",
    "Session",
    "SlmEdgeError",
    "__version__",
    "open_session",
]

if TYPE_CHECKING:
    from .edge import Engine, Pack, Session, SlmEdgeError, open_session

    __version__: str
else:
    look_up = handed_on(
        __name__,
        {
            "Engine": ".edge",
            "Session": ".edge",
            "Pack": ".edge",
            "open_session": ".edge",
            "SlmEdgeError": ".edge",
        },
    )

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("slm-edge")
        return look_up(name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
