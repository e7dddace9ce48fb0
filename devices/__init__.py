"""What is known and measured about devices. Imports only `edge`.

The names in `__all__` are public; all else may move.
"""

from typing import TYPE_CHECKING

from .. import handed_on

__all__ = [
    "Target",
    "Wish",
    "find_device",
    "judge",
]

if TYPE_CHECKING:
    from .catalogue.catalogue import find_device
    from .predict.fit import Target, Wish, judge

else:
    __getattr__ = handed_on(
        __name__,
        {
            "find_device": ".catalogue.catalogue",
            "judge": ".predict.fit",
            "Target": ".predict.fit",
            "Wish": ".predict.fit",
        },
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
