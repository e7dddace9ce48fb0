"""Commands of `slm-edge train` beside the training itself: recipes, compress, memory, own-answers, starter."""

from pathlib import Path
from typing import Any

import click

from ...edge.cli.options import threads_option
from ...edge.console import emit, json_option, progress
from ...edge.errors import InputError
from ..run import recipe_file
from .rationales import own_rationales


def summary(name: str, record: dict[str, Any], output: Path) -> str:
    """The lines that are shown when an adapter is done."""
    losses = record["held_out_loss"]
    held_out = "" if losses["base"] is None else f"held-out loss {losses['base']:.3f} -> {losses['adapter']:.3f}; "
    for metric in ("exact", "tokens"):
        shares = record.get(f"held_out_{metric}")
        if shares and shares["base"] is not None:
            held_out += f"{metric} {shares['base']:.1%} -> {shares['adapter']:.1%}; "
    early = f", stopped early (best: step {record['best_step']})" if record["stopped_early"] else ""
    steps = f"{record['steps']} steps{early}, {record['tokens']} tokens"
    return f"{output}: {name}, {steps}; {held_out}details in train.json"


@click.command()
@click.argument("name", required=False)
@click.option("--fields", is_flag=True, help="Explain every field of a recipe file.")
@json_option
def recipes(name: str | None, fields: bool, as_json: bool) -> None:
    """List the recipes that ship, print the one called NAME as TOML, or explain every field.

    \b
    Examples:
      slm-edge train recipes
      slm-edge train recipes math/llama-3.2-1b-instruct > my.toml
      slm-edge train recipes --fields
    """
    if fields:
        docs = recipe_file.field_docs()
        emit(docs, as_json, "\n".join(_field_text(doc) for doc in docs))
    elif name is None:
        names = recipe_file.shipped_names()
        emit(names, as_json, "\n".join(names))
    else:
        values = recipe_file.shipped(name)
        emit(values, as_json, recipe_file.as_toml(values))


def _field_text(doc: dict[str, Any]) -> str:
    default = "needed" if doc["required"] else f"default {recipe_file.toml_value(doc['default'])}"
    return f"{doc['name']} ({doc['type']}; {default})\n    {doc['doc']}"


@click.command()
@click.argument("adapter", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PEFT folder to write.")
@click.option("--rank", type=click.IntRange(1), help="Highest rank of any module.")
@click.option("--energy", type=float, help="Share of squared singular values each module must keep, e.g. 0.95.")
@click.option(
    "--multiple-of",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Ranks that --energy asks for are rounded up to this: llama.cpp computes prompts slower with others.",
)
@click.option(
    "--base", type=click.Path(exists=True, path_type=Path), help="The base: measure loss and KL before and after."
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The rows that it was trained on; those held out are measured on. May be given more than once.",
)
@json_option
def compress(
    adapter: Path,
    output: Path,
    rank: int | None,
    energy: float | None,
    multiple_of: int,
    base: Path | None,
    data: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Make the trained ADAPTER (a PEFT folder) smaller: its B·A cut to the strongest directions.

    Training at a high rank and cutting afterwards keeps more than training at the low rank. With --base and --data, the
    held-out loss before and after and how far the answers' distributions moved (KL) are measured and recorded.

    \b
    Examples:
      slm-edge train compress peft/math -o peft/math-small --energy 0.95
      slm-edge train compress peft/math -o peft/math-r8 --rank 8 --base base.gguf --data train.jsonl
    """
    from ..model.compress import compress as compress_job

    if bool(base) != bool(data):
        raise InputError("--base and --data go together: both are needed to measure")
    kept = compress_job(adapter, output, rank=rank, energy=energy, multiple=multiple_of).as_dict()
    ranks, share = kept["rank"], kept["energy_kept"]
    text = (
        f"{output}: rank {ranks['min']} to {ranks['max']}, energy kept {share['mean']:.2%} (least {share['min']:.2%})"
    )
    if base is not None:
        from ..tools.compare import compare

        measured = compare(base, data, before=adapter, after=output)
        kept["measured"] = measured
        loss, kl = measured["held_out_loss"], measured["kl"]
        text += (
            f"\nheld-out loss over {measured['completion_tokens']} tokens: base {loss['base']:.4f}, before "
            f"{loss['before']:.4f}, after {loss['after']:.4f}\nKL(before || after) {kl['mean']:.5f} nats per token, "
            f"99th percentile {kl['p99']:.5f}; same first choice {measured['same_top']:.2%}"
        )
    emit(kept, as_json, text)


@click.command()
@click.argument("base")
@click.option(
    "--weights",
    "kinds",
    multiple=True,
    type=click.Choice(["f32", "bf16", "gguf", "nf4"]),
    help="What the frozen weights are kept as [default: all]; may be given more than once.",
)
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="LoRA rank.")
@click.option("--tokens", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a forward pass.")
@click.option("--steps", type=click.IntRange(1), default=1, show_default=True, help="Optimiser steps.")
@json_option
def memory(base: str, kinds: tuple[str, ...], rank: int, tokens: int, steps: int, as_json: bool) -> None:
    """Measure what a training step on BASE takes: peak memory and time for each way to keep the frozen weights.

    BASE is a GGUF file, or a shape, e.g. llama-3.2-1b:q4_0, for which a file of random blocks is made in the temporary
    folder. Each way is measured in a process of its own, with one thread and one pass of random tokens per step.

    \b
    Examples:
      slm-edge train memory SmolLM2-135M-Instruct.Q4_1.gguf
      slm-edge train memory llama-3.2-1b:q4_0 --weights gguf --weights bf16 --rank 128
    """
    from ..tools.memory import KINDS, measure, table

    results = measure(base, kinds or KINDS, rank=rank, n_tokens=tokens, n_steps=steps)
    emit(results, as_json, table(results))


@click.command()
@click.option("--base", required=True, type=click.Path(exists=True, path_type=Path), help="The starter's GGUF.")
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with gsm8k/, mbpp/ and dolly/.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the PEFT folders.")
@click.option("--only", multiple=True, help="Train only this one; may be given more than once.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all cores].")
@json_option
def starter(
    base: Path, data_dir: Path, output: Path, only: tuple[str, ...], threads: int | None, as_json: bool
) -> None:
    """Train the adapters that ship with slm-edge again, from public data.

    Takes about three hours on two cores. Adapters that are already in OUTPUT are kept; one that was stopped continues
    from its last save.

    \b
    Example:
      slm-edge train starter --base SmolLM2-135M-Instruct.Q4_1.gguf --data-dir data -o peft
    """
    from ..tools.starter import STARTER, train_starter

    for name in only:
        if name not in STARTER:
            raise click.BadParameter(f"{name!r}; there are {', '.join(STARTER)}", param_hint="--only")
    records = train_starter(base, data_dir, output, names=only or tuple(STARTER), threads=threads)
    text = "\n".join(summary(name, record, output / name) for name, record in records.items())
    emit(records, as_json, text or "nothing to do")


@click.command("own-answers")
@click.option(
    "--base", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The GGUF that answers."
)
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows with prompts; repeatable.",
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL to write.")
@click.option(
    "--prompts",
    "n_prompts",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Number of prompts, drawn by the seed.",
)
@click.option(
    "--max-prompt-tokens", type=click.IntRange(1), default=256, show_default=True, help="Skip prompts longer than this."
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option("--seed", type=int, default=1, show_default=True)
@threads_option
@json_option
def own_answers(base: Path, data: tuple[Path, ...], output: Path, n_prompts: int, as_json: bool, **how: Any) -> None:
    """Let a base answer general prompts, for `--replay`: what an adapter should not change.

    Rows are chats (`messages`), or have a `prompt`, or an `instruction` with `input` or `context`; their own answers
    are not read. An answer that does not end within --max-tokens is left out. If it is stopped,
    the same command continues where it was.

    \b
    Example:
      slm-edge train own-answers --base base.gguf --data general.jsonl -o own.jsonl
      slm-edge train code --base base.gguf --data mbpp.jsonl --replay 0.3 --replay-data own.jsonl -o peft/code
    """
    from ..drawn.own_answers import own_answers as answer

    with progress("answering", n_prompts, "prompts") as advance:
        found = answer(base, data, output, n_prompts=n_prompts, advance=advance, **how)
    emit({**found, "file": str(output)}, as_json, f"{output}: {found['rows']} of {found['prompts']} answers ended")


TOOLS = (recipes, compress, memory, own_answers, own_rationales, starter)
