"""Names that a package hands on, imported when they are first asked for, so that importing the package costs nothing.

__getattr__ = handed_on(__name__, {"Session": ".session.session"})
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def handed_on(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`.

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
