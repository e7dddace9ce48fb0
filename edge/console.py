"""What a command shows: results on stdout, everything else on stderr.

Conventions for every command: the result goes to stdout, as text or, with `--json`, as one JSON document.
Notes and progress go to stderr; progress is drawn only on a terminal.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Advance(Protocol):
    """Moves a progress line on."""

    def __call__(self, n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None: ...


def json_option(command: Command) -> Command:
    """Adds `--json`, passed to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(command)


def emit(data: Any, as_json: bool, text: str) -> None:
    """Prints a command's result: `data` as JSON, or `text`."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) if as_json else text)


def note(text: str) -> None:
    """Prints a note on stderr."""
    click.echo(text, err=True)


def silent(n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None:
    """An `Advance` that shows nothing."""


@contextlib.contextmanager
def progress(description: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """A progress line on stderr with rate and time left, where stderr is a terminal; silent elsewhere.

    Args:
        description: what is going on.
        total: how much there is, in `unit`; None when unknown.
        unit: "bytes" shows sizes and speeds; anything else is shown as it is.

    Yields:
        `advance(n, text=..., total=...)`: n more are done; `text` replaces the words behind the bar.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}"), bars.BarColumn()]
    if unit == "bytes":
        columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    else:
        columns += [bars.MofNCompleteColumn(), bars.TextColumn(unit)]
    columns += [bars.TimeElapsedColumn(), bars.TimeRemainingColumn(), bars.TextColumn("{task.fields[text]}")]
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, text="")

        def advance(n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None:
            if text is not None:
                bar.update(task, text=text)
            if total is not None:
                bar.update(task, total=total)
            bar.advance(task, n)

        yield advance
