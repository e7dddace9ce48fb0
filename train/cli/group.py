"""`slm-edge train`: a recipe (a TOML file or one that ships), or a task; flags are made from the fields."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from ...edge.console import emit, json_option
from ...edge.errors import InputError
from ..data.task import find_task, task_names
from ..data.task_file import is_task_file
from ..recipe import Recipe
from ..run import recipe_file
from ..run.ranks import is_first_process
from ..run.recipe_file import Inputs
from .tools import TOOLS, summary

_NEEDED = ("base", "data", "output")


def _flag(field: "dataclasses.Field[Any]", default: Any) -> Any:
    """The option of one field of a recipe file; None or () stands for "not given"."""
    name = "--" + field.name.replace("_", "-")
    doc, many = field.metadata["doc"], field.type not in (str, int, float, bool, int | None)
    many = many and field in dataclasses.fields(Inputs)
    shown = ",".join(default) if isinstance(default, tuple | list) else default
    nothing = shown in (None, "", dataclasses.MISSING)
    required = nothing and field.name in _NEEDED
    text = f"{doc[0].upper()}{doc[1:]}" + ("." if required else f" [default: {'none' if nothing else shown}].")
    if field.type is bool:
        return click.option(f"{name}/--no-{name[2:]}", field.name, default=None, help=text)
    kind: Any = float if field.type is float else int if field.type in (int, int | None) else str
    names = ["-o", name, field.name] if field.name == "output" else [name, field.name]
    if many:
        text += " May be given more than once."
    return click.option(*names, type=kind, multiple=many, default=None, required=required, help=text)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """What stands on the command line, as a recipe file would say it; paths begin where the user is."""
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    if "targets" in given:
        given["targets"] = [name.strip() for name in given["targets"].split(",") if name.strip()]
    for key in ("base", "data", "replay_data", "benchmarks"):
        if isinstance(given.get(key), str):
            given[key] = _from_here(given[key])
        elif key in given:
            given[key] = [_from_here(text) for text in given[key]]
    for key in ("output", "start"):
        if key in given:
            given[key] = str(Path(given[key]).absolute())
    return given


def _from_here(text: str) -> str:
    return str(Path(text).absolute()) if Path(text).exists() else text


def training_command(name: str, values: dict[str, Any], folder: Path, about: str, example: str) -> click.Command:
    """A command that trains.

    Args:
        values: a recipe file's table, as far as it is known before the flags.
        folder: where the table's relative paths begin.
    """

    @json_option
    @click.option("--finish", is_flag=True, help="Stop training and write what the last save holds.")
    @click.option("--resume/--fresh", default=True, help="Continue from the run's last save, or begin anew.")
    @click.option(
        "--save-every", type=click.FloatRange(0), default=60, show_default=True, help="Seconds between saves."
    )
    @click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute [default: cuda if there is one]."
    )
    @click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all cores].")
    def command(
        threads: int | None,
        device: str | None,
        save_every: float,
        resume: bool,
        finish: bool,
        as_json: bool,
        **flags: Any,
    ) -> None:
        told = recipe_file.parse({**values, **_given(flags)}, folder)
        if not told.inputs.output:
            raise InputError("nothing says where the adapter goes", hint="-o FOLDER, or output in the recipe")
        output = folder / told.inputs.output
        from ..data.sources import find_data
        from ..model.device import best_device
        from ..run.job import Extras, train

        def sources(texts: tuple[str, ...]) -> list[Any]:
            return [source for text in texts for source in find_data(text, folder)]

        record = train(
            told.recipe,
            base=folder / told.inputs.base if (folder / told.inputs.base).exists() else told.inputs.base,
            data=sources(told.inputs.data),
            output=output,
            extras=Extras(
                sources(told.inputs.replay_data),
                [folder / place for place in told.inputs.benchmarks],
                folder / told.inputs.start if told.inputs.start else None,
            ),
            threads=threads,
            device=device or best_device(),
            save_every_s=save_every,
            fresh=not resume,
            finish=finish,
            task=told.task,
        )
        if is_first_process():
            emit(record, as_json, summary(told.recipe.task, record, output))

    fields = [*dataclasses.fields(Inputs), *dataclasses.fields(Recipe)]
    for field in reversed(fields):
        if field.name != "task":
            command = _flag(field, values.get(field.name, field.default))(command)
    return click.command(
        name=name,
        short_help=about,
        help=f"""Train an adapter: {about}.

        Writes a PEFT folder that `slm-edge export lora` takes as it is. A run that was stopped continues from its
        last save (in OUTPUT.run), with the same result.

        \b
        Example:
          {example}
        """,
    )(command)


def task_command(name: str) -> click.Command:
    """The command that trains an adapter for one task."""
    task = find_task(name)
    example = f"slm-edge train {name} --base base.gguf --data train.jsonl -o peft/{task.name}"
    return training_command(name, {"task": name, **task.defaults}, Path(), task.about, example)


class _Train(click.Group):
    """The group of all tasks and tools, in which a recipe is a command too."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name.endswith(".toml"):
            path = Path(cmd_name)
            values = recipe_file.read(path)
            if is_task_file(values):
                return task_command(cmd_name)
            recipe_file.check_keys(values, path)
            example = f"slm-edge train {cmd_name} -o peft/mine --rank 32"
            return training_command(cmd_name, values, path.parent, f"the recipe {cmd_name}, flags before it", example)
        if found is None and "/" in cmd_name:
            values = recipe_file.shipped(cmd_name)
            example = f"slm-edge train {cmd_name} --rank 64 -o peft/{values['task']}"
            return training_command(cmd_name, values, Path(), f"the recipe {cmd_name} that ships", example)
        return found


@click.group(cls=_Train, subcommand_metavar="RECIPE.toml | TASK | COMMAND [ARGS]...")
def train() -> None:
    """Train a task adapter (PEFT LoRA) on the very weights that ship.

    A recipe says what to train: a TOML file of yours, one that ships (`slm-edge train recipes`), or flags. A task that
    ships is named, one of yours is a TOML file too: docs/training.md has an example.

    \b
    Examples:
      slm-edge train my.toml
      slm-edge train math/llama-3.2-1b-instruct --rank 64 -o peft/math
      slm-edge train math --base SmolLM2-135M-Instruct.Q4_1.gguf --data gsm8k/train.jsonl -o peft/math
    """


for _name in task_names():
    train.add_command(task_command(_name))
for _tool in TOOLS:
    train.add_command(_tool)
