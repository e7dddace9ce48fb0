"""What is typed or piped into a chat: lines, blocks between triple quotes, pasted text; history, Tab, colours.

with typed(complete) as turns:
    for text in turns:
        ...

At a terminal, lines are edited by readline: a paste of several lines is one text, Alt-Enter begins a new line, and the
history is kept from one chat to the next, readable by its user alone.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

from ...console import note, paints
from ...files.cache import state_folder, user_path

PROMPT: Final = "> "
MORE: Final = ". "
QUOTES: Final = '"""'
NO_TEXT: Final = "that line is not UTF-8 text; it is left out"
MOST_LINES_KEPT: Final = 1000

# What could stand in place of the line so far: the whole line -> all candidates for its last word
Complete = Callable[[str], list[str]]


@contextlib.contextmanager
def typed(complete: Complete) -> Iterator[Iterator[str]]:
    """Gives each turn's text, until the end of input.

    Args:
        complete: for Tab.
    """
    if not sys.stdin.isatty():
        yield _turns(_piped)
        return
    with _line_editing(complete) as edits:
        yield _turns(lambda prompt: _ask(_bold(prompt) if edits else prompt))


def _turns(read: Callable[[str], str | None]) -> Iterator[str]:
    """Single lines, and what stands between triple quotes as one text.

    Args:
        read: the next line to a prompt; None at the end of input.
    """
    while (line := read(PROMPT)) is not None:
        # A byte-order mark before a piped text is no part of it.
        line = line.removeprefix("\ufeff")
        if not line.lstrip().startswith(QUOTES):
            yield line
            continue
        block = line.lstrip().removeprefix(QUOTES)
        while not block.rstrip().endswith(QUOTES):
            more = read(MORE)
            if more is None:
                note(f"the text was not ended by {QUOTES}; it is left out")
                return
            block += f"\n{more}"
        yield block.rstrip().removesuffix(QUOTES).strip("\n")


def _piped(_: str) -> str | None:
    while True:
        try:
            return next(sys.stdin).rstrip("\r\n")
        except StopIteration:
            return None
        except UnicodeDecodeError:
            note(NO_TEXT)


def _ask(prompt: str) -> str | None:
    while True:
        try:
            return input(prompt)
        except EOFError:
            click.echo()
            return None
        except UnicodeDecodeError:
            note(NO_TEXT)
        except KeyboardInterrupt:
            # As in a shell: the line is dropped, the conversation goes on.
            click.echo()
            time.sleep(0.01)


def _bold(prompt: str) -> str:
    """The prompt as readline takes it: what moves no cursor stands between \\1 and \\2."""
    return f"\1\x1b[1;32m\2{prompt}\1\x1b[0m\2" if paints(sys.stdout) else prompt


@contextlib.contextmanager
def _line_editing(complete: Complete) -> Iterator[bool]:
    """Readline with Tab, pastes and the history; false where Python has none."""
    try:
        import readline
    except ImportError:
        yield False
        return
    words: list[str] = []

    def candidate(text: str, number: int) -> str | None:
        if number == 0:
            words[:] = [word for word in complete(readline.get_line_buffer()) if word.startswith(text)]
        return words[number] if number < len(words) else None

    readline.set_completer(candidate)
    readline.set_completer_delims(" \t\n")
    if "libedit" in (readline.__doc__ or ""):
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        if os.environ.get("TERM", "dumb") != "dumb":
            # Python turns it off; without it each pasted line would be a turn.
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')
    history = _history_file()
    if history is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
    readline.set_history_length(MOST_LINES_KEPT)
    try:
        yield True
    finally:
        readline.set_completer(None)
        if history is not None:
            with contextlib.suppress(OSError):
                readline.write_history_file(history)
                history.chmod(0o600)


def _history_file() -> Path | None:
    """The file of the history, there for its user alone; None where none can be written."""
    path = state_folder() / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return None
    return path


@contextlib.contextmanager
def hidden_typing() -> Iterator[None]:
    """Keys that are typed in the block are not shown; they wait for the next line. Ctrl-C stays what it is."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import termios
    except ImportError:
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    hidden = [*before]
    hidden[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, hidden)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def files_like(text: str) -> list[str]:
    """The paths that begin so, for Tab; folders end in a slash."""
    try:
        folder, _, start = text.rpartition("/")
        place = user_path(f"{folder}/") if folder or text.startswith("/") else Path()
        names = sorted(path for path in place.iterdir() if path.name.startswith(start))
    except (OSError, ValueError):
        return []
    head = text[: len(text) - len(start)]
    return [f"{head}{path.name}{'/' if path.is_dir() else ''}" for path in names]
