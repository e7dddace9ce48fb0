"""`slm-edge train`: one command per task, its flags made from the recipe's fields, and `starter` for what ships."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from ..edge.console import emit, json_option
from .recipe import Recipe
from .task import find_task, task_names

_BASE = click.option(
    "--base",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="What to train on: the GGUF that ships, or a Hugging Face folder.",
)
_THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all cores].")


def _flag(field: "dataclasses.Field[Any]", default: Any) -> Any:
    """The option of one recipe field; None stands for "not given"."""
    name = "--" + field.name.replace("_", "-")
    shown = ",".join(default) if isinstance(default, tuple) else default
    doc = field.metadata["doc"]
    text = f"{doc[0].upper()}{doc[1:]} [default: {'none' if shown is None else shown}]."
    if field.type is bool:
        return click.option(f"{name}/--no-{name[2:]}", field.name, default=None, help=text)
    kind: Any = float if field.type is float else int if field.type in (int, int | None) else str
    return click.option(name, field.name, type=kind, default=None, help=text)


def _recipe(task: str, flags: dict[str, Any]) -> Recipe:
    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    if "targets" in given:
        given["targets"] = [name.strip() for name in given["targets"].split(",") if name.strip()]
    return Recipe.from_mapping({"task": task, **find_task(task).defaults, **given})


def summary(name: str, record: dict[str, Any], output: Path) -> str:
    """The lines that are shown when an adapter is done."""
    losses = record["held_out_loss"]
    held_out = "" if losses["base"] is None else f"held-out loss {losses['base']:.3f} -> {losses['adapter']:.3f}; "
    return f"{output}: {name}, {record['steps']} steps, {record['tokens']} tokens; {held_out}details in train.json"


def task_command(name: str) -> click.Command:
    """The command that trains an adapter for one task."""
    task = find_task(name)

    @json_option
    @click.option("--finish", is_flag=True, help="Train no further: write what the last checkpoint holds.")
    @click.option("--resume/--fresh", default=True, help="Take up a checkpoint of the same run, or begin anew.")
    @click.option(
        "--save-every", type=click.FloatRange(0), default=60, show_default=True, help="Seconds between checkpoints."
    )
    @_THREADS
    @click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PEFT folder to write.")
    @click.option(
        "--data",
        required=True,
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="JSONL or JSON file of rows; may be given more than once.",
    )
    @_BASE
    def command(
        base: Path,
        data: tuple[Path, ...],
        output: Path,
        threads: int | None,
        save_every: float,
        resume: bool,
        finish: bool,
        as_json: bool,
        **flags: Any,
    ) -> None:
        recipe = _recipe(name, flags)
        from .job import train as train_job

        record = train_job(
            recipe,
            base=base,
            data=data,
            output=output,
            threads=threads,
            save_every_s=save_every,
            fresh=not resume,
            finish=finish,
        )
        emit(record, as_json, summary(name, record, output))

    for field in reversed(dataclasses.fields(Recipe)):
        if field.name != "task":
            command = _flag(field, task.defaults.get(field.name, field.default))(command)
    return click.command(
        name=name,
        short_help=task.about,
        help=f"""Train an adapter: {task.about}.

        Writes a PEFT folder that `slm-edge export lora` takes as it is. A run that was cut off goes on where its last
        checkpoint stands (in OUTPUT.run), with the same result.

        \b
        Example:
          slm-edge train {name} --base base.gguf --data train.jsonl -o peft/{name}
        """,
    )(command)


@click.group()
def train() -> None:
    """Train a task adapter (PEFT LoRA) on the very weights that ship.

    \b
    Example:
      slm-edge train math --base SmolLM2-135M-Instruct.Q4_1.gguf --data gsm8k/train.jsonl -o peft/math
    """


@train.command()
@click.argument("adapter", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PEFT folder to write.")
@click.option("--rank", type=click.IntRange(1), help="Highest rank of any module.")
@click.option("--energy", type=float, help="Share of the squared singular values that each module keeps, as 0.95.")
@json_option
def compress(adapter: Path, output: Path, rank: int | None, energy: float | None, as_json: bool) -> None:
    """Make the trained ADAPTER (a PEFT folder) smaller: its B·A cut to the strongest directions.

    Training at a high rank and cutting afterwards keeps more than training at the low rank.

    \b
    Examples:
      slm-edge train compress peft/math -o peft/math-small --energy 0.95
      slm-edge train compress peft/math -o peft/math-r8 --rank 8
    """
    from .compress import compress as compress_job

    kept = compress_job(adapter, output, rank=rank, energy=energy).as_dict()
    ranks, share = kept["rank"], kept["energy_kept"]
    emit(
        kept,
        as_json,
        f"{output}: rank {ranks['min']} to {ranks['max']}, energy kept {share['mean']:.2%} (least {share['min']:.2%})",
    )


@train.command()
@_BASE
@click.option(
    "--data-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with gsm8k/, mbpp/ and dolly/.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the PEFT folders.")
@click.option("--only", multiple=True, help="Train only this one; may be given more than once.")
@_THREADS
@json_option
def starter(
    base: Path, data_dir: Path, output: Path, only: tuple[str, ...], threads: int | None, as_json: bool
) -> None:
    """Train the adapters that ship with slm-edge again, from public data.

    Takes about 75 minutes on two cores. Adapters that lie in OUTPUT already are left as they are; one that was cut
    off goes on from its checkpoint.

    \b
    Example:
      slm-edge train starter --base SmolLM2-135M-Instruct.Q4_1.gguf --data-dir data -o peft
    """
    from .starter import STARTER, train_starter

    for name in only:
        if name not in STARTER:
            raise click.BadParameter(f"{name!r}; there are {', '.join(STARTER)}", param_hint="--only")
    records = train_starter(base, data_dir, output, names=only or tuple(STARTER), threads=threads)
    text = "\n".join(summary(name, record, output / name) for name, record in records.items())
    emit(records, as_json, text or "nothing to do")


for _name in task_names():
    train.add_command(task_command(_name))
