"""`slm-edge router train`: the router for math, code and summarize, from our own prompts and public training sets."""

from pathlib import Path

import click

from ...edge.cli.options import data_option
from ...edge.console import emit, json_option, note
from ...edge.errors import InputError
from ...edge.written import human_bytes

PATH = click.Path(path_type=Path)


@click.command()
@click.option("-o", "--output", type=PATH, help="Router file to write.")
@click.option("--pack", type=PATH, help="Pack to put the router into.")
@data_option("Folder with gsm8k/, mbpp/ and dolly/; without it our own prompts alone are used.")
@click.option(
    "--prompts", type=PATH, multiple=True, help='More prompts: JSON Lines with "prompt" and "adapter" or null.'
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the words of the patterns.")
@json_option
def train(
    output: Path | None, pack: Path | None, data: Path | None, prompts: tuple[Path, ...], seed: int, as_json: bool
) -> None:
    """Train the router that chooses between the tasks math, code and summarize, and none of them.

    It takes some minutes on one core and needs no base model. The same seed and data give the same file. Adapters for
    other tasks are added to a router by examples, without training it again: slm-edge router examples.

    \b
    Examples:
      slm-edge router train --data DATA -o router.npz
      slm-edge router train --pack my-pack
    """
    from ...edge.router.file import write_router
    from ..router.prompts import TASKS, Prompt, own_prompts, public_prompts
    from ..router.train import train_router

    if output is None and pack is None:
        raise click.UsageError("Say where the router goes: -o FILE or --pack PACK.")
    rows = own_prompts(seed)
    if data is not None:
        rows += public_prompts(data, seed)
    for path in prompts:
        from ..data.examples import read_texts

        for number, row in enumerate(read_texts(path, "prompt"), 1):
            if row.get("adapter") not in (None, *TASKS):
                raise InputError(f"row {number}: its adapter is none of {', '.join(TASKS)}", where=path)
            rows.append(Prompt(row["prompt"], row.get("adapter"), f"yours {path.stem}"))
    model = train_router(rows, on_step=note)
    if output is not None:
        write_router(output, model)
    if pack is not None:
        from ...edge.router.in_pack import put_router

        put_router(pack, model)
    about = dict(model.about)
    text = [f"{about['n_prompts']} prompts; each source held out in turn, whole or a lot of it:"]
    text += [f"  {name:34} {row['n']:5}  {row['accuracy_when_held_out']:.1%}" for name, row in about["sources"].items()]
    text.append(
        f"cross-validated accuracy {about['cross_validated_accuracy']:.1%}, calibration error "
        f"{about['cross_validated_calibration_error']:.3f}, temperature {model.temperature}, "
        f"thresholds {dict(model.thresholds)}"
    )
    if output is not None:
        text.append(f"{output}, {human_bytes(output.stat().st_size)}")
    data_out = {**about, "temperature": model.temperature, "thresholds": dict(model.thresholds)}
    emit(data_out, as_json, "\n".join(text))
