"""A task: how rows become prompt and completion. One file in train/tasks each, found by its name, or a TOML file."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from .examples import Pair, Row, read_rows


class Skip(Exception):
    """Raised by a task for a row that it does not train on; its text is counted."""


@dataclass(frozen=True)
class Task:
    """One entry of the table.

    Attributes:
        name: as in `slm-edge train NAME`.
        about: one line.
        pair: makes prompt and completion of a row, or raises Skip with the reason; ValueError as `text_of`.
        defaults: recipe fields that differ from Recipe's own defaults.
        made: makes n rows of its own from a seed, where the task has such rows.
        read: the rows of a data file; InputError as `read_rows`.
        metric: of the held-out rows beside the loss: "exact" is the share of rows whose answers are the likeliest
            tokens throughout, which is what greedy answers are right in; "tokens" the share of such tokens.
        text: of the file that the task is from; "" for those in train/tasks.
    """

    name: str
    about: str
    pair: Callable[[Row], Pair]
    defaults: dict[str, Any] = field(default_factory=dict)
    made: Callable[[int, int], Iterator[Row]] | None = None
    read: Callable[[Path], Iterator[Row]] = read_rows
    metric: str = "loss"
    text: str = ""

    def pairs(self, rows: Iterable[Row], skipped: Callable[[str], object]) -> Iterator[Pair]:
        """Pairs of all rows; `skipped` is called with the reason for each row left out, odd cells among them."""
        for row in rows:
            try:
                yield self.pair(row)
            except (Skip, ValueError) as reason:
                skipped(str(reason))


def task_names() -> list[str]:
    """All tasks there are: the files in train/tasks."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent.parent / "tasks")]))


def find_task(name: str, folder: Path | None = None) -> Task:
    """The task of that name, or of a TOML file.

    Args:
        folder: where a file's relative path begins; None: the working folder.

    Raises:
        InputError: there is none, or the file is no task.
    """
    if name.endswith(".toml"):
        from .task_file import read_task

        return read_task((folder or Path()) / name)
    if name not in task_names():
        raise InputError(f"no task {name!r}; there are {', '.join(task_names())}", hint="a file's name ends in .toml")
    module = importlib.import_module(f"slm_edge.train.tasks.{name}")
    task: Task = module.TASK
    return task
