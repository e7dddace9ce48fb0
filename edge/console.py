"""What a command shows: results on stdout, everything else on stderr, nothing that steers a terminal.

Conventions for every command: the result goes to stdout, as text or, with `--json`, as one JSON document.
Notes and progress go to stderr; progress is drawn only on a terminal.

    with own_streams():
        ...                 # sys.stdin, sys.stdout and sys.stderr are ours: all that is shown passes here

Texts come from packs, servers, templates, files and models. U+FFFD stands in place of what a terminal would obey: on
stderr always, on stdout if it is a terminal; JSON escapes it. Letters that the output's encoding lacks become "?".
"""

import contextlib
import errno
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn, Protocol, TextIO, TypeVar

import click

from .errors import DoesNotFitError, InputError, SlmEdgeError, is_full

Command = TypeVar("Command", bound=Callable[..., Any])
# Control characters but tab and newline (C0, DEL, C1), marks that turn the direction of writing, lone surrogates
_STEERING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Advance(Protocol):
    """Moves a progress line on."""

    def __call__(self, n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None: ...


class OutputLostError(Exception):
    """Stdout takes nothing more. No mistake that a command could go on after, so it is none of `edge.errors`.

    Attributes:
        error: what to tell; None where whoever read the output (`| head`) has what it wanted.
    """

    def __init__(self, error: SlmEdgeError | None = None) -> None:
        self.error = error
        super().__init__(str(error))


def harmless(text: str) -> str:
    """The text with U+FFFD in place of whatever a terminal would obey."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def json_text(data: Any, indent: int | None = 2) -> str:
    """JSON that can be shown anywhere: what a terminal would obey, and all but ASCII where stdout has no Unicode, is
    escaped. Raises ValueError for NaN and infinity."""
    ascii_only = not str(getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    # These can only stand inside of strings.
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_option(command: Command) -> Command:
    """Adds `--json`, passed to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(command)


def emit(data: Any, as_json: bool, text: str) -> None:
    """Prints a command's result: `data` as JSON, or `text`."""
    click.echo(json_text(data) if as_json else text)


def show(pieces: Iterable[str], on_text: Callable[[str], object] = lambda text: None) -> None:
    """Writes an answer to stdout as it comes, and a newline at its end, however it ends.

    Args:
        on_text: called with each piece before it is written.
    """
    last = ""
    try:
        for text in pieces:
            on_text(text)
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text
    finally:
        if not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def note(text: str) -> None:
    """Prints a note on stderr."""
    click.echo(harmless(text), err=True)


def paints(stream: TextIO) -> bool:
    """Whether colours may be written to a stream: it is a terminal that has them, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def remark(text: str) -> None:
    """A note that stands between a model's answers: grey where the terminal has colours."""
    paper = drawn_on(sys.stderr) if paints(sys.stderr) else None
    with contextlib.suppress(OSError):
        if paper is not None:
            paper.write("\x1b[2m")
    try:
        note(text)
    finally:
        with contextlib.suppress(OSError):
            if paper is not None:
                paper.write("\x1b[0m")
                paper.flush()


class Aside:
    """Shows what a model thinks before it answers: on stderr, grey where the terminal has colours.

    Attributes:
        begun: something was shown.
    """

    def __init__(self) -> None:
        self.begun = False
        self._ended = True

    def __call__(self, text: str) -> None:
        """Shows a further piece."""
        text = text if self.begun else text.lstrip()
        if text:
            self.begun, self._ended = True, False
            grey = paints(sys.stderr)
            self._paint("\x1b[2m" if grey else "")
            click.echo(harmless(text), err=True, nl=False)
            self._paint("\x1b[0m" if grey else "")

    def end(self) -> None:
        """An empty line, where something was shown."""
        if not self._ended:
            self._ended = True
            click.echo("\n", err=True)

    def before(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces of the answer, ending what was shown before the first."""
        try:
            for piece in pieces:
                self.end()
                yield piece
        finally:
            self.end()

    @staticmethod
    def _paint(code: str) -> None:
        if code:
            with contextlib.suppress(OSError):
                drawn_on(sys.stderr).write(code)


@contextlib.contextmanager
def waiting(words: Callable[[], str], after_s: float = 4, every_s: float = 20) -> Iterator[None]:
    """Says on stderr what is being waited for, once the block takes long, and again at times until it ends.

    Args:
        words: what; "" where there is nothing to say at the moment.
    """
    ended, began_s = threading.Event(), time.monotonic()

    def tell() -> None:
        wait_s = after_s
        while not ended.wait(wait_s):
            if text := words():
                note(f"{text} … ({time.monotonic() - began_s:.0f} s)")
            wait_s = every_s

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def awaited(pieces: Iterable[str], words: str, aside: Aside | None = None) -> Iterator[str]:
    """The pieces; `waiting` says the words while the first one is not there, and nothing was shown aside."""
    rest = iter(pieces)
    with waiting(lambda: "" if aside is not None and aside.begun else words):
        first = next(rest, None)
    if first is not None:
        yield first
        yield from rest


def silent(n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None:
    """An `Advance` that shows nothing."""


@contextlib.contextmanager
def progress(description: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """A progress line on stderr with rate and time left, where stderr is a terminal; elsewhere a line at times.

    Args:
        description: what is going on.
        total: how much there is, in `unit`; None when unknown.
        unit: "bytes" shows sizes and speeds; anything else is shown as it is.

    Yields:
        `advance(n, text=..., total=...)`: n more are done; `text` replaces the words behind the bar.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        state: dict[str, Any] = {"done": 0.0, "total": total, "text": ""}

        def count(n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None:
            state["done"] += n
            state["text"] = state["text"] if text is None else text
            state["total"] = state["total"] if total is None else total

        with waiting(lambda: _progress_line(description, **state), after_s=10):
            yield count
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}", markup=False), bars.BarColumn()]
    if unit == "bytes":
        columns += [bars.DownloadColumn(), bars.TransferSpeedColumn()]
    else:
        columns += [bars.MofNCompleteColumn(), bars.TextColumn(unit)]
    columns += [bars.TimeElapsedColumn(), bars.TimeRemainingColumn()]
    columns += [bars.TextColumn("{task.fields[text]}", markup=False)]
    with bars.Progress(*columns, console=Console(file=drawn_on(sys.stderr)), transient=True) as bar:
        task = bar.add_task(harmless(description), total=total, text="")

        def advance(n: float = 1, /, *, text: str | None = None, total: float | None = None) -> None:
            if text is not None:
                bar.update(task, text=harmless(text))
            if total is not None:
                bar.update(task, total=total)
            bar.advance(task, n)

        yield advance


def _progress_line(description: str, done: float, total: float | None, text: str) -> str:
    """How far it is, where no bar can be drawn."""
    part = f" {100 * done / total:.0f} %" if total else ""
    return f"{description}{part} {text}".rstrip()


def drawn_on(stream: TextIO) -> TextIO:
    """The terminal behind one of our streams, for what draws by itself: progress lines."""
    return stream.behind if isinstance(stream, _Output) and stream.behind is not None else stream


@contextlib.contextmanager
def own_streams() -> Iterator[None]:
    """Puts our streams in place of sys.stdin, sys.stdout and sys.stderr until the block ends.

    In the block a write to stdout raises OutputLostError if it cannot be written: whoever read it is gone, the disk is
    full, or it was closed when the process began. What is lost on stderr is passed over.
    """
    _fill_closed()
    before: tuple[Any, Any, Any] = sys.stdin, sys.stdout, sys.stderr
    try:
        sys.stdin = before[0] or _ClosedInput()
        sys.stdout = _Output(before[1], "standard output", True)
        sys.stderr = _Output(before[2], "standard error", False)
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def _fill_closed() -> None:
    """A closed descriptor would be the number of the next file that is opened, and take what C libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


class _Output(io.TextIOBase):
    """Standard output or error. It has no `buffer`, so that nobody writes past it unknowingly.

    Args:
        behind: the real stream; None where it was closed when the process began.
        name: for people.
        is_result: what is lost of it is an error; it is cleaned on a terminal only, since others read bytes.
    """

    def __init__(self, behind: TextIO | None, name: str, is_result: bool) -> None:
        self.behind = behind
        self._name = name
        self._is_result = is_result
        self._lost: OutputLostError | None = None
        self._cleans = not is_result or (behind is not None and behind.isatty())
        if is_result and isinstance(behind, io.TextIOWrapper):
            behind.reconfigure(errors="replace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(getattr(self.behind, "encoding", None) or "utf-8")

    @property
    def errors(self) -> str:  # type: ignore[override]
        return str(getattr(self.behind, "errors", None) or "replace")

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.behind is not None and self.behind.isatty()

    def fileno(self) -> int:
        if self.behind is None:
            raise io.UnsupportedOperation("fileno")
        return self.behind.fileno()

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text is written here, not {type(text).__name__}")
        if text:
            # Libraries' progress lines begin so; our own texts go through `note`, which replaces it.
            back = "\r" if text.startswith("\r") and not self._is_result else ""
            self._do(lambda behind: behind.write(back + harmless(text.removeprefix(back)) if self._cleans else text))
        return len(text)

    def flush(self) -> None:
        if self.behind is not None:
            self._do(lambda behind: behind.flush())

    def _do(self, action: Callable[[TextIO], object]) -> None:
        """Writes or flushes; once something was lost, all else is."""
        if self.behind is None and self._lost is None:
            closed = InputError(f"the {self._name} is closed, and what was to be shown is lost")
            self._lost = OutputLostError(closed)
        if self.behind is not None and self._lost is None:
            try:
                action(self.behind)
            except OSError as error:
                self._lost = self._why(error)
        if self._lost is not None and self._is_result:
            raise self._lost

    def _why(self, error: OSError) -> OutputLostError:
        """What was written cannot get out; what the stream still holds must not fail again when the process ends."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        if error.errno == errno.EPIPE:
            return OutputLostError()
        kind = DoesNotFitError if is_full(error) else InputError
        return OutputLostError(kind(f"the {self._name} cannot be written ({error.strerror or error})"))


class _ClosedInput(io.TextIOBase):
    """Standard input that was closed when the process began."""

    @property
    def buffer(self) -> "_ClosedInput":
        return self

    def read(self, size: int | None = -1, /) -> NoReturn:
        raise InputError("the standard input is closed")

    def readline(self, size: int = -1, /) -> NoReturn:  # type: ignore[override]
        self.read()
