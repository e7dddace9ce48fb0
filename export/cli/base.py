"""`slm-edge export base`: a Hugging Face checkpoint, or another GGUF, to one GGUF base."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...edge.console import emit, json_option, note
from ...edge.errors import InputError
from ...edge.written import human_bytes
from ..base.quantize import TYPES, find_type

if TYPE_CHECKING:
    from ...devices.predict.base_type import TypeChoice


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The GGUF file to write.")
@click.option(
    "--type",
    "type_name",
    default="q8_0",
    show_default=True,
    metavar="TYPE",
    help=f"{', '.join(TYPES)}; keep (a GGUF's tensors as they are); or auto (the fastest that fits --device and loses "
    "little).",
)
@click.option("--device", help='With --type auto: a device of "slm-edge devices list", or this.  [default: this]')
@click.option(
    "--context",
    "n_ctx_tokens",
    type=click.IntRange(16),
    default=2048,
    show_default=True,
    help="With --type auto: tokens that memory must hold.",
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix (GGUF or .dat), for few-bit types.")
@click.option(
    "--chat-template", type=click.Path(path_type=Path), help="Use this Jinja file instead of the model's own template."
)
@click.option(
    "--date",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The day that the chat template writes into prompts, in place of today.",
)
@click.option(
    "--output-weight",
    is_flag=True,
    help="Write a tied head as a tensor of its own, for adapters on embed_tokens or lm_head.",
)
@click.option("--name", help="The model's name in the file; default: the folder's name.")
@click.option(
    "--pre-tokenizer", metavar="NAME", help="Use this pre-tokenizer of llama.cpp instead of the one that was found."
)
@click.option("--revision", help="Branch, tag or commit on the hub; default: main.")
@click.option("--threads", type=click.IntRange(1), help="Threads for quantising; default: all cores.")
@click.option("--allow-requantize", is_flag=True, help="Accept a GGUF that is already quantised below 8 bits.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def base(
    source: Path,
    output: Path,
    type_name: str,
    device: str | None,
    n_ctx_tokens: int,
    imatrix: Path | None,
    chat_template: Path | None,
    date: datetime.datetime | None,
    output_weight: bool,
    name: str | None,
    pre_tokenizer: str | None,
    revision: str | None,
    threads: int | None,
    allow_requantize: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Turn SOURCE into one GGUF base.

    SOURCE is a Hugging Face checkpoint folder, the name of one on the hub (organisation/model), or a GGUF file.

    Tensors are streamed: memory stays at a few blocks, whatever the model's size. The tokenizer is proved against
    the checkpoint's own before anything is written.

    \b
    Example:
      slm-edge export base ./Llama-3.2-1B-Instruct -o base.gguf --type q4_k_m
      slm-edge export base Qwen/Qwen2.5-0.5B-Instruct -o base.gguf
      slm-edge export base ./Llama-3.2-1B-Instruct -o base.gguf --type auto --device raspberry-pi-5-4gb
      slm-edge export base base-f16.gguf -o base-q4.gguf --type iq4_xs --imatrix base.imatrix
    """
    from ...edge.files.hub import is_hub_name
    from ..base.base import Options, export_base
    from ..checkpoint.hub import hub_checkpoint

    kind = find_type(type_name, "keep", "auto")
    is_auto = type_name.lower() == "auto"
    if device is not None and not is_auto:
        raise click.UsageError("--device goes with --type auto.")
    if imatrix is not None and is_auto:
        raise click.UsageError("--type auto weighs types without an importance matrix; with --imatrix name a type.")
    if is_hub_name(source):
        name = name or source.name
        source = hub_checkpoint(source.as_posix(), revision)
    elif revision is not None:
        raise InputError("--revision is for models on the hub", where=source)
    options = Options(
        output_weight=output_weight,
        chat_template=chat_template,
        date=date.date() if date else None,
        pre_tokenizer=pre_tokenizer,
        imatrix=imatrix,
        name=name,
        threads=threads,
        allow_requantize=allow_requantize,
        force=force,
    )
    choice = _chosen(source, device or "this", n_ctx_tokens, output_weight) if is_auto else None
    if choice is not None:
        kind = find_type(choice.chosen.label)
        note(choice.text())
    result = export_base(source, output, kind, options)
    for line in result.notes:
        note(f"note: {line}")
    if output.suffix != ".gguf":
        note(f"note: a pack takes a base whose name ends in .gguf; {output.name} runs by itself")
    lines = [
        f"{result.path}: {result.architecture}, {result.n_parameters / 1e6:,.1f} M parameters, {result.type}, "
        f"{human_bytes(result.size_bytes)}, in {result.seconds_s:.1f} s",
        "tensors: " + ", ".join(f"{count} {kind}" for kind, count in result.types.items()),
    ]
    if result.n_texts_compared is not None:
        which = f"pre-tokenizer {result.pre_tokenizer}" if result.pre_tokenizer else "SentencePiece tokenizer"
        lines.append(f"{which}: token ids equal on {result.n_texts_compared} texts")
    chosen = {} if choice is None else {"choice": choice.as_dict()}
    emit(result.as_dict() | chosen, as_json, "\n".join(lines))


def _chosen(source: Path, device: str, n_ctx_tokens: int, output_weight: bool) -> "TypeChoice":
    """The type for a device.

    Raises:
        InputError: there is no such device, no such source, or this machine cannot be probed now.
        UnsupportedError, DoesNotFitError: as `shape_of_source` and `choose_type`.
    """
    from ...devices.machine.this import named_sizes
    from ...devices.predict.base_type import choose_type
    from ...devices.predict.fit import Wish
    from ..base.source_shape import shape_of_source

    if not source.exists():
        raise InputError("no such file or folder", where=source)
    shape = shape_of_source(source, output_weight=output_weight)
    sizes, calibration = named_sizes(device)
    if sizes[0].unprobed:
        raise InputError(f"this machine cannot be probed now: {sizes[0].unprobed}", hint="name a --device, or a --type")
    context = min(n_ctx_tokens, shape.n_ctx_train_tokens)
    return choose_type(shape, sizes, Wish(context_tokens=context), calibration=calibration)
