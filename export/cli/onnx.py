"""`slm-edge export onnx` and `slm-edge export onnx-adapter`."""

from pathlib import Path
from typing import Any

import click

from ...edge.console import emit, json_option, note
from ...edge.written import human_bytes

A_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", type=A_PATH)
@click.option("-o", "--output", required=True, type=A_PATH, help="Folder to create.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["keep", "f32", "f16", "int8", "int4"]),
    help="How matrices are held. keep: a GGUF's blocks as they are. int4 leaves embedding and head at 8 bits.  "
    "[default: keep for a GGUF, int8 for a checkpoint]",
)
@click.option("--packed", is_flag=True, help="q, k, v and gate, up as one matrix each: fewer nodes, larger adapters.")
@click.option(
    "--max-length",
    "max_length_tokens",
    type=click.IntRange(16),
    help="Longest prompt and answer, in tokens.  [default: the base's own, up to 8192]",
)
@click.option(
    "--activations",
    type=click.Choice(["int8", "f32"]),
    default="int8",
    show_default=True,
    help="What quantised matrices multiply: int8 blocks, as in llama.cpp, or F32, slower and exact.",
)
@click.option("--force", is_flag=True, help="Replace a folder that this command made.")
@json_option
def onnx(
    source: Path,
    output: Path,
    kind: Any,
    packed: bool,
    max_length_tokens: int | None,
    activations: str,
    force: bool,
    as_json: bool,
) -> None:
    """Turn SOURCE into the ONNX form of a base: two graphs over one file of weights.

    SOURCE is a GGUF base or a Hugging Face folder (see docs/families.md). Adapters stay outside: each LoRA pair is an
    optional input of any rank. onnxruntime, onnxruntime-genai and optimum run the folder.

    From a GGUF every block of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K and IQ4_NL is carried over as it is, so
    that both engines hold the same numbers; other types are requantised to 8 bits, and the
    command prints what that loses.

    \b
    Example:
      slm-edge export onnx base.gguf -o onnx-base
      slm-edge export onnx ./Qwen2.5-0.5B-Instruct -o onnx-base --type int8
      slm-edge pack onnx my-pack onnx-base
    """
    from ..onnx.base import export_onnx

    done = export_onnx(
        source,
        output,
        kind=kind,
        packed=packed,
        max_length_tokens=max_length_tokens,
        activations=activations,
        force=force,
    )
    for line in done.notes:
        note(f"note: {line}")
    base = done.base
    held = ", ".join(f"{count} {name}" for name, count in base.weights.items())
    lines = [
        f"{base.folder}: {base.architecture}, {base.dtype}, {human_bytes(done.size_bytes)}, "
        f"up to {base.max_length_tokens} tokens, in {done.seconds_s:.1f} s",
        f"matrices: {held}; {base.n_pairs} LoRA pairs{', packed' if base.packed else ''}",
    ]
    lines += [
        f"{source_type} became {held_type}: relative error {error:.3%} (root mean square)"
        for source_type, (held_type, error) in done.losses.items()
    ]
    emit(
        {
            "path": str(base.folder),
            "size_bytes": done.size_bytes,
            "architecture": base.architecture,
            "dtype": base.dtype,
            "packed": base.packed,
            "max_length_tokens": base.max_length_tokens,
            "matrices": dict(base.weights),
            "n_pairs": base.n_pairs,
            "losses": {name: {"held": type, "error": error} for name, (type, error) in done.losses.items()},
            "fingerprint": base.fingerprint,
            "files": dict(base.files),
            "seconds_s": done.seconds_s,
            "notes": list(done.notes),
        },
        as_json,
        "\n".join(lines),
    )


@click.command("onnx-adapter")
@click.argument("source", type=A_PATH)
@click.option("--base", required=True, type=A_PATH, help="The folder that `slm-edge export onnx` made.")
@click.option("-o", "--output", required=True, type=A_PATH, help="The .onnx_adapter file to write.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def onnx_adapter(source: Path, base: Path, output: Path, force: bool, as_json: bool) -> None:
    """Turn SOURCE, a folder that PEFT saved or a GGUF adapter, into an adapter for the ONNX form of its base.

    Scaling is PEFT's own and folded into B; what a plain LoRA cannot express is refused with all reasons.
    A description is written beside the file: sha256, fingerprint of the base, rank.

    \b
    Example:
      slm-edge export onnx-adapter ./my-adapter --base onnx-base -o math.onnx_adapter
      slm-edge export onnx-adapter math.gguf --base onnx-base -o math.onnx_adapter
      slm-edge pack add my-pack math math.onnx_adapter
    """
    from ...edge.onnx.adapter import SUFFIX
    from ..onnx.adapter import export_onnx_adapter

    if output.suffix != SUFFIX:
        raise click.BadParameter(f"must end in {SUFFIX}, by which it is known", param_hint="--output")
    done = export_onnx_adapter(source, base, output, force=force)
    adapter = done.adapter
    for line in done.notes:
        note(f"note: {line}")
    emit(
        {
            "path": str(adapter.path),
            "size_bytes": adapter.size_bytes,
            "sha256": adapter.sha256,
            "rank": adapter.rank,
            "n_pairs": adapter.n_pairs,
            "task": done.task,
            "notes": list(done.notes),
        },
        as_json,
        f"{adapter.path}: {adapter.n_pairs} pairs, rank {adapter.rank}, {human_bytes(adapter.size_bytes)}",
    )
