"""`slm-edge run`: one prompt, one answer, streamed."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Aside, awaited, emit, json_option, note, show, waiting
from ..errors import InputError
from ..system.load import OthersCores, busy_words
from ..written import human_bytes
from .options import (
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

if TYPE_CHECKING:
    from ..answer.stream import Answer


@click.command()
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]", shell_complete=pulled_names)
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt, in place of the argument.")
@model_options
@click.option(
    "--adapter",
    metavar="NAME|A:0.7+B:0.3|none|auto",
    help="Adapter that answers, or several added up; auto: the router chooses.  [default: the pack's default]",
)
@click.option("--explain", is_flag=True, help="With --adapter auto: print on stderr what decided, feature by feature.")
@click.option("--system", help="System message, in place of the adapter's own; '' for none.")
@answer_options
@context_option("Longest prompt and answer")
@engine_option
@session_options
@click.option(
    "--prefix-cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps computed system messages for later runs.",
)
@grammar_options
@template_options
@special_option
@click.option("--stats", is_flag=True, help="Print times and peak memory on stderr.")
@json_option
def run(
    words: tuple[str, ...],
    prompt: str | None,
    pack: str | None,
    model: str | None,
    loras: tuple[str, ...],
    adapter: str | None,
    explain: bool,
    system: str | None,
    engine: str,
    prefix_cache: Path | None,
    stats: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Answer PROMPT with a task adapter. PROMPT is read from standard input when it is - or left out.

    MODEL is a GGUF file, a pack's folder, or a reference as "pull" takes it, which is fetched if it is not here;
    without it, --pack or --model the starter pack answers.

    Without --adapter the pack's default adapter answers ("slm-edge pack show" names it), with "none" the base
    alone, with "auto" the one that the pack's router chooses for the prompt, or the base if none fits. The
    starter pack's base model is fetched on first use (98 MB) and kept in the cache. What a model thinks before it
    answers goes to stderr, grey at a terminal; with --json it stands in a field of its own.

    \b
    Examples:
      slm-edge run --adapter math "A box has 12 eggs. 5 are used. How many are left?"
      cat article.txt | slm-edge run --adapter summarize --stats
      slm-edge run --adapter math:0.7+code:0.3 "A pen costs 3 dollars. How much do 4 pens cost?"
      slm-edge run --adapter auto --explain "How many legs have 3 cats?"
      slm-edge run model.gguf --lora style.gguf=0.5 "Hello"
      slm-edge run hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M "Hello"
    """
    from .source import chosen, model_and_prompt

    model, prompt = model_and_prompt(words, prompt, model)
    source = chosen(model, pack, loras)
    name = source.default if adapter is None else adapter
    text = _prompt(prompt)
    if explain and name != "auto":
        raise click.UsageError("--explain says what the router decided: it needs --adapter auto.")
    options = engine_options_of(given)
    options["prefix_cache"] = prefix_cache
    settings = settings_of(given)
    others = OthersCores()
    with source.watched(), source.open(engine, name, one_answer=True, **options) as session:
        decision = session.choose(text, explain=explain) if name == "auto" else None
        if decision is not None:
            session.use(decision.adapter)
            if explain and not as_json:
                note(decision.text())
        aside = Aside()
        stream = session.stream(text, system=system, on_thinking=None if as_json else aside, **settings)
        if as_json:
            with waiting(lambda: "answering"):
                for _ in stream:
                    pass
        else:
            show(aside.before(awaited(stream, "reading the prompt", aside)))
        # While the base is mapped: its mappings show what is mapped twice.
        numbers = _numbers(stream.answer, session.load_s)
        numbers |= {"threads": session.threads_now, "others_cores": others()}
        busy = busy_words(numbers["others_cores"], session.threads)
    if decision is not None:
        numbers["router"] = decision.as_dict()
    if as_json:
        emit(numbers, True, "")
    if (cut := stream.answer.cut()) is not None:
        note(f"[{cut}]")
    if stats:
        note(_stats_line(numbers))
        if busy is not None:
            note(f"{busy}; {numbers['threads']} of {session.threads} threads at the end")


def _prompt(argument: str | None) -> str:
    """The prompt from the command line or standard input, without the newline that ends it."""
    if argument not in (None, "-"):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise click.UsageError("There is no prompt: give one, or pipe it in (- reads what you type until Ctrl-D).")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (byte {error.start})") from None
    # Editors of Windows begin a text with a byte-order mark.
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def _numbers(answer: "Answer", load_s: float) -> dict[str, Any]:
    from ..system.machine import peak_memory_bytes

    data = dataclasses.asdict(answer)
    del data["token_ids"]
    return {**data, "load_s": load_s, "peak_memory_bytes": peak_memory_bytes()}


def _stats_line(numbers: dict[str, Any]) -> str:
    rate = numbers["decode_tokens_per_s"]
    drafted = numbers["n_drafted_tokens"]
    guessed = [f"{numbers['n_accepted_tokens']} of {drafted} guessed tokens right"] if drafted else []
    parts = [
        f"adapter {numbers['adapter'] or 'none'}",
        f"loaded in {numbers['load_s']:.2f} s",
        f"first token after {numbers['first_token_s']:.2f} s ({numbers['n_prompt_tokens']} prompt tokens)",
        f"{numbers['n_tokens']} tokens" + (f" at {rate:.1f} tokens/s" if rate else ""),
        *guessed,
        f"peak memory {human_bytes(numbers['peak_memory_bytes'])}",
        f"ended by {numbers['stop_reason']}",
    ]
    return ", ".join(parts)
