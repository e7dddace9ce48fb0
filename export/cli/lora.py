"""`slm-edge export lora`."""

from pathlib import Path
from typing import Any

import click

from ...edge.console import emit, json_option, note
from ...edge.written import human_bytes

A_FILE = click.Path(dir_okay=False, path_type=Path)
A_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("peft_dir", type=A_PATH)
@click.option("--base", required=True, type=A_FILE, help="The base GGUF that the adapter will run on.")
@click.option("-o", "--output", required=True, type=A_FILE, help="The GGUF adapter to write.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["auto", "f32", "f16", "bf16", "q8_0"]),
    default="auto",
    show_default=True,
    help="How matrices are stored. auto: Q8_0 where the row length is a multiple of 32, else F16, and a wider type "
    "where values are too small for that.",
)
@click.option("--task", help="Name of the task, written into the file.  [default: train.json's]")
@click.option("--prompt-prefix", help="Text that the adapter wants in front of prompts, written into the file.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def lora(
    peft_dir: Path,
    base: Path,
    output: Path,
    kind: Any,
    task: str | None,
    prompt_prefix: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn the folder PEFT_DIR that PEFT saved into a GGUF adapter for one base.

    Scaling is PEFT's own: alpha / r, rsLoRA, alpha_pattern and rank_pattern. What a GGUF adapter cannot hold (DoRA,
    biases, modules_to_save, a resized vocabulary, …) is refused with all reasons, and nothing is written.

    \b
    Example:
      slm-edge export lora ./my-adapter --base base.gguf -o math.gguf --task math
    """
    from ..lora.lora import export_lora

    done = export_lora(peft_dir, base, output, kind=kind, task=task, prompt_prefix=prompt_prefix, force=force)
    info = done.info
    for line in done.notes:
        note(f"note: {line}")
    types = ", ".join(f"{n} {name}" for name, n in sorted(done.types.items()))
    folded = f", {done.n_folded} modules' own scales folded into B" if done.n_folded else ""
    emit(
        {
            "path": str(info.path),
            "size_bytes": info.size_bytes,
            "sha256": done.sha256,
            "rank": info.rank,
            "alpha": info.alpha,
            "n_pairs": info.n_pairs,
            "n_folded": done.n_folded,
            "types": done.types,
            "task": info.task_name,
            "base_fingerprint": info.fingerprint,
            "alora_tokens": list(info.alora_tokens),
            "notes": list(done.notes),
        },
        as_json,
        f"{info.path}: {info.n_pairs} pairs, rank {info.rank}, alpha {info.alpha:g}{folded}; {types}; "
        f"{human_bytes(info.size_bytes)}",
    )
