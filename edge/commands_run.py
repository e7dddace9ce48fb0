"""`slm-edge run`: one prompt, one answer, streamed."""

import dataclasses
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit, human_bytes, json_option, note
from .errors import InputError

if TYPE_CHECKING:
    from .session import Answer, Stream

# What a model writes must not steer the terminal: all control characters but tab and newline.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@click.command()
@click.argument("prompt", required=False)
@click.option("--pack", type=click.Path(path_type=Path), help="Folder of a pack.  [default: the starter pack]")
@click.option("--adapter", metavar="NAME|none", help="Which adapter answers.  [default: the pack's default adapter]")
@click.option("--system", help="System message, in place of the adapter's own; '' for none.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer.  [default: the adapter's card]")
@click.option("--temperature", type=click.FloatRange(0, 100), help="0 is greedy.  [default: the adapter's card]")
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 2), help="Same seed, same answer.")
@click.option("--threads", type=click.IntRange(1, 512), help="CPU threads.  [default: one per physical core]")
@click.option(
    "--context", "context_tokens", type=click.IntRange(1), help="Longest prompt and answer, in tokens.  [default: 2048]"
)
@click.option("--stats", is_flag=True, help="Say on stderr how long it took and how much memory.")
@json_option
def run(
    prompt: str | None,
    pack: Path | None,
    adapter: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    threads: int | None,
    context_tokens: int | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Answer PROMPT with a task adapter. PROMPT is read from standard input when it is - or left out.

    Without --adapter the pack's default adapter answers ("slm-edge pack show" names it), with "none" the base
    alone. The starter pack's base model is fetched on first use (98 MB) and kept in the cache.

    \b
    Examples:
      slm-edge run --adapter math "A box has 12 eggs. 5 are used. How many are left?"
      cat article.txt | slm-edge run --adapter summarize --stats
    """
    text = _prompt(prompt)
    from .pack import Pack
    from .session import Session
    from .shelf import find_adapter

    opened = Pack.open(pack)
    name = opened.default_adapter if adapter is None else None if adapter == "none" else adapter
    if name is not None:
        find_adapter(opened.adapters, name)
    opened.base_path(allow_pull=True)
    start_s = time.perf_counter()
    with Session.open(opened, n_ctx_tokens=context_tokens, threads=threads) as session:
        session.use(name)
        load_s = time.perf_counter() - start_s
        stream = session.stream(text, system=system, max_tokens=max_tokens, temperature=temperature, seed=seed)
        if as_json:
            for _ in stream:
                pass
        else:
            _show(stream)
    numbers = _numbers(stream.answer, load_s)
    if as_json:
        emit(numbers, True, "")
    if stats:
        note(_stats_line(numbers))


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
    return text.removesuffix("\n").removesuffix("\r")


def _show(stream: "Stream") -> None:
    """Writes an answer as it comes, and a newline at its end, however it ends."""
    out = sys.stdout
    terminal = out.isatty()
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")
    last = ""
    try:
        for text in stream:
            out.write(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if terminal else text)
            out.flush()
            last = text
    finally:
        if not last.endswith("\n"):
            out.write("\n")
            out.flush()


def _numbers(answer: "Answer", load_s: float) -> dict[str, Any]:
    from .memory import peak_memory_bytes

    data = dataclasses.asdict(answer)
    del data["token_ids"]
    return {**data, "load_s": load_s, "peak_memory_bytes": peak_memory_bytes()}


def _stats_line(numbers: dict[str, Any]) -> str:
    rate = numbers["decode_tokens_per_s"]
    parts = [
        f"adapter {numbers['adapter'] or 'none'}",
        f"loaded in {numbers['load_s']:.2f} s",
        f"first token after {numbers['first_token_s']:.2f} s ({numbers['n_prompt_tokens']} prompt tokens)",
        f"{numbers['n_tokens']} tokens" + (f" at {rate:.1f} tokens/s" if rate else ""),
        f"peak memory {human_bytes(numbers['peak_memory_bytes'])}",
        f"ended by {numbers['stop_reason']}",
    ]
    return ", ".join(parts)
