"""`slm-edge train own-rationales`: the model's own right answers as training rows."""

from pathlib import Path
from typing import Any

import click

from ...edge.cli.options import threads_option
from ...edge.console import emit, json_option, progress


@click.command("own-rationales")
@click.option("--base", required=True, type=click.Path(exists=True, path_type=Path), help="A GGUF or a folder.")
@click.option(
    "--adapter",
    type=click.Path(exists=True, path_type=Path),
    help="Adapter that answers: a GGUF on a CPU, a PEFT folder on a GPU (slow on a CPU).",
)
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Rows with question and answer, as GSM8K's; repeatable.",
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL to write.")
@click.option(
    "--samples", "n_samples", type=click.IntRange(1), default=4, show_default=True, help="Answers to each problem."
)
@click.option(
    "--keep", "n_kept", type=click.IntRange(1), default=4, show_default=True, help="Right answers kept of each problem."
)
@click.option("--temperature", type=click.FloatRange(0, 10), default=0.7, show_default=True)
@click.option("--max-prompt-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest problem.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True, help="Longest answer.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--parallel", "n_parallel", type=click.IntRange(1), help="Answers drawn at once [default: 16, on a GPU 2048]."
)
@threads_option
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [default: cuda if there is one].")
@json_option
def own_rationales(
    base: Path,
    data: tuple[Path, ...],
    output: Path,
    adapter: Path | None,
    n_kept: int,
    n_parallel: int | None,
    device: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Let the model work problems out several times, and keep the answers that came out right.

    The output is data for `train math`, beside the gold answers or in their place. If it is stopped, the same command
    continues where it was; until the output is complete, answers are kept beside it.

    \b
    Example:
      slm-edge train own-rationales --base base.gguf --adapter math.gguf --data gsm8k/train.jsonl -o own.jsonl
      slm-edge train math --base base.gguf --data gsm8k/train.jsonl --data own.jsonl -o peft/math-2
    """
    from ..drawn.own_rationales import Drawing
    from ..drawn.own_rationales import own_rationales as draw
    from ..model.device import best_device

    device = device or best_device()
    drawing = Drawing(n_parallel=n_parallel or (16 if device == "cpu" else 2048), **how)
    with progress("answering", None, "answers") as advance:
        found = draw(
            base, data, output, adapter=adapter, n_kept=n_kept, drawing=drawing, device=device, advance=advance
        )
    per_s = found["tokens_drawn"] / found["seconds"]
    text = (
        f"{output}: {found['rows']} rows; {found['right']} of {found['answers']} answers were right, to "
        f"{found['problems_right']} of {found['problems']} problems; {per_s:.0f} tokens/s"
    )
    emit({**found, "file": str(output)}, as_json, text)
