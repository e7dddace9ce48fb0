"""`slm-edge chat`: a conversation at the prompt, with adapters that change while it goes on."""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import note
from .options import (
    answer_options,
    engine_option,
    grammar_options,
    grammar_rules,
    session_options,
    size_bytes_of,
    special_option,
)

if TYPE_CHECKING:
    from ..options import EngineOptions, Speculate

PROMPT = "> "


@click.command()
@click.option("--pack", type=click.Path(path_type=Path), help="Folder of a pack.  [default: the starter pack]")
@click.option(
    "--adapter",
    metavar="NAME|none|auto",
    help="First adapter; auto: the router chooses at each turn.  [default: the pack's default adapter]",
)
@click.option("--system", help="System message, in place of the adapter's own; '' for none.")
@answer_options
@click.option(
    "--context", "context_tokens", type=click.IntRange(1), help="Longest conversation, in tokens.  [default: 2048]"
)
@engine_option
@session_options
@click.option("--pin", "pinned", metavar="NAME", multiple=True, help="Adapter that is never unloaded; repeatable.")
@grammar_options
@special_option
def chat(
    pack: Path | None,
    adapter: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    threads: int | None,
    threads_batch: int | None,
    context_tokens: int | None,
    engine: str,
    speculate: "Speculate | None",
    ram: str | None,
    adapter_budget: str | None,
    pinned: tuple[str, ...],
    schema: str | None,
    grammar: Path | None,
    allow_special: bool,
    regex: str | None,
    lark: Path | None,
) -> None:
    """Talk with the model; it remembers the conversation. /help lists the commands, Ctrl-D ends.

    When the context is full, the oldest questions are dropped with their answers, and a note says so. Ctrl-C stops an
    answer and keeps what there is of it. In a pipe, each line is a turn. An adapter is loaded when it is first used and
    stays loaded; with --adapter-budget the least recently used is unloaded, unless it is pinned.

    \b
    Examples:
      slm-edge chat --adapter math
      printf 'Hello\\n/adapter math\\nWhat is 3 times 4?\\n' | slm-edge chat
    """
    rules = grammar_rules(schema, grammar, regex, lark)
    options: EngineOptions = {
        "n_ctx_tokens": context_tokens,
        "threads": threads,
        "threads_batch": threads_batch,
        "ram_bytes": size_bytes_of(ram),
        "adapter_budget_bytes": size_bytes_of(adapter_budget),
        "speculate": speculate,
        "allow_special": allow_special,
    }
    if pinned:
        options["pinned"] = pinned
    from ..engines import open_session
    from ..pack.pack import Pack
    from .talk import Talk

    opened = Pack.open(pack)
    name = opened.default_adapter if adapter is None else adapter
    with open_session(opened, engine, adapter=name, allow_pull=True, **options) as session:
        talk = Talk(
            session,
            system=system,
            settings={"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "grammar": rules},
        )
        talk.use("none" if name is None else name)
        if sys.stdin.isatty():
            note(f"{session.base.name}, adapter {talk.adapter}; /help lists what can be typed, Ctrl-D ends")
        _loop(talk)


def _loop(talk: Any) -> None:
    """Reads lines until the end of input."""
    terminal = sys.stdin.isatty()
    if terminal:
        # Line editing and the history of this conversation come with the import alone.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            line = input(PROMPT) if terminal else next(sys.stdin).rstrip("\r\n")
        except (EOFError, StopIteration):
            if terminal:
                click.echo()
            return
        except UnicodeDecodeError:
            note("that line is not UTF-8 text; it is left out")
            continue
        except KeyboardInterrupt:
            if not terminal:
                raise
            # As in a shell: the line is dropped, the conversation goes on.
            click.echo()
            time.sleep(0.01)
            continue
        # A byte-order mark before a piped text is no part of it.
        line = line.removeprefix("\ufeff")
        if line.strip() and not talk.turn(line):
            return
