"""What a benchmark task is. One module per task makes one `TASK`; `tasks.py` names the modules.

    TASK = Task(name="gsm8k", kind="math", ..., load=load, score=score)

Data is read from a folder that the user names; none ships with slm-edge.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edge.chat import Message
from ..edge.errors import InputError

# One running order for all: a run that stops early, or --limit, leaves a random sample, the same for each adapter
ORDER_SEED = 20261124


@dataclass(frozen=True)
class Item:
    """One question. `id` is unique within its task; `truth` is what `score` needs."""

    id: str
    messages: list[Message]
    truth: Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A score of one answer. `binary` ones are 0 or 1."""

    name: str
    binary: bool
    title: str


@dataclass(frozen=True)
class Task:
    """A public test set and its rules.

    Attributes:
        kind: task name of the adapter that is made for it ("math", "code", "summarize").
        files: the data files below the data folder.
        max_tokens: cap of an answer, in tokens.
        metrics: the first one is the task's main one.
        load: data folder -> items in the order of the files.
        score: item, answer -> value of each metric by name. May be called from another thread.
        protocol: the rules in a sentence or two, for the report.
    """

    name: str
    kind: str
    title: str
    files: tuple[str, ...]
    max_tokens: int
    metrics: tuple[Metric, ...]
    load: Callable[[Path], list[Item]]
    score: Callable[[Item, str], dict[str, float]]
    protocol: str

    def items(self, data: Path) -> list[Item]:
        """All items in the order in which they are run: shuffled by `ORDER_SEED`.

        Raises:
            InputError: a data file is missing (all missing ones are named) or damaged.
        """
        missing = [str(data / name) for name in self.files if not (data / name).is_file()]
        if missing:
            raise InputError(
                f"the data of {self.name} is not there",
                where=data,
                problems=missing,
                hint="name its folder with --data DIR",
            )
        items = self.load(data)
        if len({item.id for item in items}) != len(items):
            raise InputError(f"the data of {self.name} names an item twice", where=data)
        random.Random(ORDER_SEED).shuffle(items)
        return items


def json_lines(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, each checked to be an object with `keys`.

    Raises:
        InputError: a line is something else, with its number.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"line {number} is not JSON ({error})", where=path) from None
            if not isinstance(row, dict) or any(key not in row for key in keys):
                raise InputError(f"line {number} lacks one of {', '.join(keys)}", where=path)
            yield row


def items_sha256(items: list[Item]) -> str:
    """One hash over what is asked and what is right: the data, the prompt's wording and the order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.messages, item.truth], ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()
