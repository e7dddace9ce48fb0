"""Bounds beside what was measured, as a table or JSON; the exit code is 1 where one does not hold."""

import json
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import click

_WIDTH: Final = 40


@dataclass(frozen=True)
class Bound:
    """A figure that may not be above `most`, or not below `least`."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def as_dict(self) -> dict[str, Any]:
        limits = {"least": self.least, "most": self.most}
        return {
            "bound": self.name,
            "value": round(self.value, 4),
            **{name: limit for name, limit in limits.items() if limit is not None},
            "holds": self.holds,
        }

    def __str__(self) -> str:
        limit = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"{'holds' if self.holds else 'MISSED'}  {self.name:{_WIDTH}} {self.value:.4g} ({limit})"


def finish(result: dict[str, Any], bounds: list[Bound], *, as_json: bool) -> NoReturn:
    """Prints all, and ends the command."""
    if as_json:
        click.echo(json.dumps({**result, "bounds": [bound.as_dict() for bound in bounds]}, indent=1))
    else:
        for name, value in result.items():
            click.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
        for bound in bounds:
            click.echo(str(bound))
    raise SystemExit(0 if all(bound.holds for bound in bounds) else 1)
