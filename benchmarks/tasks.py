"""The table of tasks: a name and its module, imported on use. A new task is one module and one row here."""

import importlib

from ..edge.errors import InputError
from .task import Task

MODULES = {
    "gsm8k": "gsm8k",
    "mbpp": "mbpp",
    "dolly": "dolly",
    "svamp": "svamp",
}


def task(name: str) -> Task:
    """The task called `name`.

    Raises:
        InputError: there is none.
    """
    if name not in MODULES:
        raise InputError(f"no task {name!r}", hint=f"there are: {', '.join(MODULES)}")
    made = importlib.import_module(f".{MODULES[name]}", __package__).TASK
    assert isinstance(made, Task) and made.name == name
    return made
