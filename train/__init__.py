"""From data and a base to a PEFT adapter. Imports only `edge`.

The names in `__all__` are public; all else may move.
"""

from typing import TYPE_CHECKING

from .. import handed_on

__all__ = [
    "Recipe",
    "train",
]

if TYPE_CHECKING:
    from .recipe import Recipe
    from .run.job import train

else:
    __getattr__ = handed_on(
        __name__,
        {
            "Recipe": ".recipe",
            "train": ".run.job",
        },
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
