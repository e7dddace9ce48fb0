"""The table of tasks: a name, its module and the task in it, imported on use. A new task is a module and a row here."""

import importlib

from ...edge.errors import InputError
from .benchmark import Benchmark

MODULES = {
    "gsm8k": "gsm8k:BENCHMARK",
    "mbpp": "mbpp:BENCHMARK",
    "dolly": "dolly:BENCHMARK",
    "svamp": "svamp:BENCHMARK",
    "humaneval": "humaneval:BENCHMARK",
    "humaneval-raw": "humaneval:RAW",
    "hellaswag": "hellaswag:BENCHMARK",
    "gsm8k-raw": "gsm8k_shots:RAW",
    "gsm8k-8shot": "gsm8k_shots:EIGHT",
    "gsm8k-8shot-raw": "gsm8k_shots:EIGHT_RAW",
}
# What is measured where no task is named: the starter's own, one greedy answer each
DEFAULT = ("gsm8k", "mbpp", "dolly", "svamp")


def task(name: str) -> Benchmark:
    """The task called `name`.

    Raises:
        InputError: there is none.
    """
    if name not in MODULES:
        raise InputError(f"no task {name!r}", hint=f"there are: {', '.join(MODULES)}")
    module, attribute = MODULES[name].split(":")
    made = getattr(importlib.import_module(f".{module}", __package__), attribute)
    assert isinstance(made, Benchmark) and made.name == name
    return made
