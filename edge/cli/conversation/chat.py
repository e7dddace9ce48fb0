"""`slm-edge chat`: a conversation at the prompt, with adapters that change while it goes on."""

import sys
from typing import Any

import click

from ...console import remark
from ..options import (
    answer_options,
    context_option,
    engine_option,
    engine_options_of,
    grammar_options,
    model_options,
    pulled_names,
    session_options,
    settings_of,
    special_option,
    template_options,
)


@click.command()
@click.argument("file", required=False, metavar="[MODEL]", shell_complete=pulled_names)
@model_options
@click.option(
    "--adapter",
    metavar="NAME|none|auto",
    help="First adapter; auto: the router chooses at each turn.  [default: the pack's default adapter]",
)
@click.option("--system", help="System message, in place of the adapter's own; '' for none.")
@answer_options
@context_option("Longest conversation")
@engine_option
@session_options
@click.option(
    "--exact",
    is_flag=True,
    help="Keep of the conversation only what is bit for bit what computing it anew gives; else the last answer is not "
    "computed again either, and near ties may differ.",
)
@click.option("--pin", "pinned", metavar="NAME", multiple=True, help="Adapter that is never unloaded; repeatable.")
@grammar_options
@template_options
@special_option
def chat(
    file: str | None,
    pack: str | None,
    model: str | None,
    loras: tuple[str, ...],
    adapter: str | None,
    system: str | None,
    engine: str,
    exact: bool,
    pinned: tuple[str, ...],
    **given: Any,
) -> None:
    """Talk with the model; it remembers the conversation. /help lists the commands, Ctrl-D ends.

    MODEL is a GGUF file, a pack's folder, or a reference as "pull" takes it; without it, --pack or --model it is the
    starter pack.

    When the context is full, the oldest questions are dropped with their answers, and a note says so. Ctrl-C stops an
    answer and keeps what there is of it. Text of several lines stands between triple quotes, or is pasted at a
    terminal, where Alt-Enter begins a new line; in a pipe, each line else is a turn. An adapter is loaded when it is
    first used and stays loaded; with --adapter-budget the least recently used is unloaded, unless it is pinned. What
    the model thinks before it answers goes to stderr, grey at a terminal, and is no part of the next prompt unless its
    chat template puts it there.

    \b
    Examples:
      slm-edge chat --adapter math
      slm-edge chat model.gguf
      printf 'Hello\\n/adapter math\\nWhat is 3 times 4?\\n' | slm-edge chat
    """
    settings = settings_of(given)
    options = engine_options_of(given)
    options["reuse"] = "exact" if exact else "fast"
    if pinned:
        options["pinned"] = pinned
    from ..source import chosen
    from .talk import Talk
    from .typed import hidden_typing, typed

    if file is not None and model is not None:
        raise click.UsageError(f"there are two models: {file} and -m {model}; leave one out.")
    source = chosen(file if model is None else model, pack, loras)
    name = source.default if adapter is None else adapter
    with source.watched(), source.open(engine, name, **options) as session:
        talk = Talk(session, system=system, settings=settings)
        talk.use("none" if name is None else name)
        if sys.stdin.isatty():
            remark(f"{source.shown}, adapter {talk.adapter}; /help lists what can be typed, Ctrl-D ends")
        with typed(talk.candidates) as turns:
            for text in turns:
                with hidden_typing():
                    if text.strip() and not talk.turn(text):
                        return
