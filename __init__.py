"""Small language models with task adapters, on your own device.

    import slm_edge

    with slm_edge.open_session(None, adapter="math") as session:          # None: the starter pack
        print(session.ask("How many legs have 3 cats?").text)

`slm_edge.edge` has the runtime, `slm_edge.export`, `slm_edge.train` and `slm_edge.devices` the rest; docs/python-api.md
describes what is public. The command line is `slm-edge --help`.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

__all__ = [
    "Engine",
    "Pack",
    "Session",
    "SlmEdgeError",
    "__version__",
    "open_session",
]


def handed_on(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: names that it hands on, imported when they are first asked for.

    __getattr__ = handed_on(__name__, {"Session": ".session.session"})

    Args:
        places: name -> the module that defines it, relative to the package.
    """

    def look_up(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        found = getattr(importlib.import_module(places[name], package), name)
        setattr(sys.modules[package], name, found)
        return found

    return look_up


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
