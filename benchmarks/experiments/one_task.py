"""The steps that experiments on one task are made of: train, export, pack, measure. None is done twice.

Each is one of our own commands in a process of its own, as a user would give it; its result lies in `Work.out` under a
name, and what lies there is taken as it is.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ...edge.cli.options import data_option, threads_option
from ...edge.console import note
from ...edge.errors import InputError
from ...edge.files.atomic import make_folder, write_json
from ..report.reproduce import TRAINING, run_command
from ..scores.answers import parsed
from ..stats import paired_means

TASK: Final = "summarize"


@dataclass(frozen=True)
class Work:
    """Where, on what and how much; `recipe` are flags of `slm-edge train summarize`, `n_loss` and `n_answers` items."""

    data: Path
    out: Path
    recipe: tuple[str, ...]
    n_loss: int
    n_answers: int
    threads: int | None
    say: Callable[[str], object] = note

    @property
    def few(self) -> list[object]:
        """The flag for threads."""
        return [] if self.threads is None else ["--threads", self.threads]

    def check(self, base: Path) -> None:
        """Makes the folder.

        Raises:
            InputError: base or data are not there.
        """
        missing = [str(path) for path in (base, *(self.data / name for name in TRAINING[TASK])) if not path.exists()]
        if missing:
            raise InputError("what it is made from is not there", problems=missing)
        make_folder(self.out)


def train(work: Work, base: Path, name: str, flags: Sequence[object] = ()) -> Path:
    """The PEFT folder of an adapter trained on `base`."""
    peft = work.out / "peft" / name
    if not (peft / "adapter_model.safetensors").exists():
        work.say(f"{name}: training")
        make_folder(peft.parent)
        words: list[object] = ["train", TASK, "--base", base, "-o", peft, *flags, *work.recipe, *work.few]
        for file in TRAINING[TASK]:
            words += ["--data", work.data / file]
        run_command(*words)
    return peft


def export(work: Work, base: Path, peft: Path, kind: str = "f32") -> Path:
    """The adapter's GGUF, in float32 where nothing else is asked: what is compared is not how it was rounded."""
    file = work.out / f"adapter-{peft.name}{'' if kind == 'f32' else f'.{kind}'}.gguf"
    if not file.exists():
        run_command("export", "lora", peft, "--base", base, "-o", file, "--type", kind)
    return file


def pack(work: Work, name: str, base: Path, adapter: Path | None) -> Path:
    """A pack of the base and at most one adapter."""
    folder = work.out / "packs" / name
    if not folder.exists():
        make_folder(folder.parent)
        words: list[object] = ["pack", "build", "-o", folder, "--base", base, "--no-copy-base", "--default", "none"]
        run_command(*words, *([] if adapter is None else ["--adapter", f"{TASK}={adapter}"]))
    return folder


def measured(work: Work, folder: Path, with_adapter: bool, reference: Path) -> dict[str, dict[str, float]]:
    """Item -> value, for nll (nats per token), kl (from the pack `reference` with its adapter) and rouge1."""
    name = TASK if with_adapter else "none"
    file = work.out / "measured" / f"{folder.name}-{name}.json"
    if not file.exists():
        work.say(f"{folder.name}, {name}: measuring")
        common: list[object] = ["--pack", folder, "--adapter", name, "--data", work.data, *work.few, "--json"]
        against = ["--against", reference, "--against-adapter", TASK]
        loss = json.loads(run_command("bench", "loss", "dolly", *common, "--limit", work.n_loss, *against))
        out = work.out / "answers" / folder.name
        make_folder(out.parent)
        run_command("bench", "scores", "dolly", *common, "--limit", work.n_answers, "--out", out)
        found = {key: {item: row[key] for item, row in loss["items"].items()} for key in ("nll", "kl")}
        found["rouge1"] = _rouge(out, TASK if with_adapter else "base")
        write_json(make_folder(file.parent) / file.name, found)
    values: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return values


def _rouge(out: Path, column: str) -> dict[str, float]:
    (path,) = (out / "answers").glob(f"dolly.{column}.*.jsonl")
    return {record.id: record.scores["rouge1"] for record in parsed(path.read_bytes(), path)[1]}


def loss_difference(other: Sequence[float], mine: Sequence[float]) -> str:
    """The mean paired difference `mine - other` with its 95 % interval, for a table."""
    found = paired_means(other, mine).difference
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def work_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that make a `Work`, which the command gets as `work`."""

    @functools.wraps(command)
    def with_work(
        recipe: str, n_loss: int, n_answers: int, data: Path, threads: int | None, out: Path, **others: Any
    ) -> None:
        command(work=Work(data, out, tuple(recipe.split()), n_loss, n_answers, threads), **others)

    counted: dict[str, Any] = {"type": click.IntRange(2), "show_default": True}
    options = (
        click.option("--recipe", default="--steps 40", show_default=True, help="Flags of `slm-edge train summarize`."),
        click.option("--n-loss", default=100, help="Answers that are scored.", **counted),
        click.option("--n-answers", default=60, help="Answers that are asked for.", **counted),
        data_option("Folder with dolly/.", required=True),
        threads_option,
        click.option(
            "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for everything that is made."
        ),
    )
    for option in reversed(options):
        with_work = option(with_work)
    return with_work
