"""`slm-edge router train-second`: the router's second stage, from the base's hidden states."""

from pathlib import Path

import click

from ..edge.commands_options import data_option, threads_option
from ..edge.console import emit, json_option, progress

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", metavar="PACK", type=PATH)
@data_option("Folder with gsm8k/, mbpp/ and dolly/; without it our own prompts alone are used.")
@threads_option
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the patterns' words.")
@json_option
def train_second(folder: Path, data: Path | None, threads: int | None, seed: int, as_json: bool) -> None:
    """Train the second stage of PACK's router on its base, and put it into PACK.

    Where the router is unsure, --second-stage lets the base read the prompt, and this head judges by the base's hidden
    state. The base reads 400 prompts for it: some minutes on one core with a small base.

    \b
    Example:
      slm-edge router train-second my-pack --data DATA
    """
    from ..edge.hidden_state import StateReader
    from ..edge.pack import Pack
    from ..edge.second_stage import SECOND_FILE, put_second_stage
    from .router_prompts import own_prompts, public_prompts
    from .second_stage_train import second_stage_prompts, train_second_stage

    pack = Pack.open(folder)
    rows = own_prompts(seed) + (public_prompts(data, seed) if data is not None else [])
    prompts = second_stage_prompts(rows)
    with (
        StateReader(pack.base_path(allow_pull=True), threads=threads) as reader,
        progress("reading", len(prompts), "prompts") as advance,
    ):
        stage = train_second_stage(prompts, reader, on_prompt=lambda: advance(1))
    put_second_stage(folder, stage)
    path = folder / SECOND_FILE
    emit(
        {"file": str(path), "n_prompts": len(prompts), "below": stage.below},
        as_json,
        f"{path}: trained on {len(prompts)} prompts, asked below a confidence of {stage.below}",
    )
