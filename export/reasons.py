"""Gathers the reasons why something is refused, those of one kind in one line, and raises them once."""

from pathlib import Path
from typing import Final

from ..edge.errors import InputError, SlmEdgeError, UnsupportedError

SHOWN: Final = 3


class Reasons:
    """Reasons of refusal in two kinds: what cannot be done, and what is wrong.

    Attributes:
        hint: what to do, shown under the reasons.
    """

    def __init__(self) -> None:
        self.hint: str | None = None
        self._unsupported: dict[str, list[str]] = {}
        self._wrong: dict[str, list[str]] = {}

    def unsupported(self, reason: str, *cases: str) -> None:
        """It is well formed, but cannot be done; `cases` of the same reason share its line."""
        self._unsupported.setdefault(reason, []).extend(cases)

    def wrong(self, reason: str, *cases: str) -> None:
        """It is not as it must be; `cases` of the same reason share its line."""
        self._wrong.setdefault(reason, []).extend(cases)

    def __bool__(self) -> bool:
        return bool(self._unsupported or self._wrong)

    def lines(self) -> list[str]:
        """One line for each reason, with its first cases and the number of the others."""
        return [
            reason if not cases else f"{reason}: {some(cases)}"
            for reason, cases in (*self._unsupported.items(), *self._wrong.items())
        ]

    def raise_any(self, message: str, where: Path) -> None:
        """Raises all of them as one error; does nothing when there are none.

        Raises:
            InputError: something is wrong.
            UnsupportedError: nothing is wrong, but something cannot be done.
        """
        if not self:
            return
        kind: type[SlmEdgeError] = InputError if self._wrong else UnsupportedError
        raise kind(message, where=where, problems=self.lines(), hint=self.hint)


def some(cases: list[str]) -> str:
    """The first cases, and how many more there are."""
    return "; ".join(cases[:SHOWN]) + (f"; and {len(cases) - SHOWN} more" if len(cases) > SHOWN else "")
