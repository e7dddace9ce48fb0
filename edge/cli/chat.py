"""`slm-edge chat`: a conversation at the prompt, with adapters that change while it goes on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import remark
from .options import (
    answer_options,
    engine_option,
    grammar_options,
    grammar_rules,
    model_options,
    session_options,
    size_bytes_of,
    special_option,
)

if TYPE_CHECKING:
    from ..answer.settings import Settings
    from ..options import EngineOptions, Speculate


@click.command()
@click.argument("file", required=False, metavar="[MODEL]")
@model_options
@click.option(
    "--adapter",
    metavar="NAME|none|auto",
    help="First adapter; auto: the router chooses at each turn.  [default: the pack's default adapter]",
)
@click.option("--system", help="System message, in place of the adapter's own; '' for none.")
@answer_options
@click.option(
    "-c",
    "--context",
    "--ctx-size",
    "context_tokens",
    type=click.IntRange(1),
    help="Longest conversation, in tokens.  [default: 2048]",
)
@engine_option
@session_options
@click.option("--pin", "pinned", metavar="NAME", multiple=True, help="Adapter that is never unloaded; repeatable.")
@grammar_options
@special_option
def chat(
    file: str | None,
    pack: Path | None,
    model: str | None,
    loras: tuple[str, ...],
    adapter: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    stop: tuple[str, ...],
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

    MODEL is a GGUF file or a pack's folder; without it, --pack or --model it is the starter pack.

    When the context is full, the oldest questions are dropped with their answers, and a note says so. Ctrl-C stops an
    answer and keeps what there is of it. Text of several lines stands between triple quotes, or is pasted at a
    terminal, where Alt-Enter begins a new line; in a pipe, each line else is a turn. An adapter is loaded when it is
    first used and stays loaded; with --adapter-budget the least recently used is unloaded, unless it is pinned.

    \b
    Examples:
      slm-edge chat --adapter math
      slm-edge chat model.gguf
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
    from .source import chosen
    from .talk import Talk
    from .typed import hidden_typing, typed

    if file is not None and model is not None:
        raise click.UsageError(f"there are two models: {file} and -m {model}; leave one out.")
    source = chosen(file if model is None else model, pack, loras)
    name = source.default if adapter is None else adapter
    settings: Settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "grammar": rules}
    settings |= {"top_k": top_k, "top_p": top_p, "min_p": min_p, "stop": stop or None}
    with source.open(engine, name, **options) as session:
        talk = Talk(session, system=system, settings=settings)
        talk.use("none" if name is None else name)
        if sys.stdin.isatty():
            remark(f"{session.base.name}, adapter {talk.adapter}; /help lists what can be typed, Ctrl-D ends")
        with typed(talk.candidates) as turns:
            for text in turns:
                with hidden_typing():
                    if text.strip() and not talk.turn(text):
                        return
