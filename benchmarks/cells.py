"""Which cells of the matrix tasks x adapters are measured, in which order, and what makes a cell itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..edge.errors import InputError
from ..edge.names import did_you_mean
from ..edge.pack import Pack, PackedAdapter
from .answers import Identity
from .task import Item, Task, items_sha256

IDENTITY_SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One task under one adapter (None: the base alone).

    Attributes:
        items: all of the task's, in running order.
        n: how many of them this run is to measure.
        identity: everything that an answer depends on.
    """

    task: Task
    adapter: PackedAdapter | None
    items: list[Item]
    n: int
    max_tokens: int
    identity: Identity

    @property
    def adapter_name(self) -> str | None:
        return self.adapter.name if self.adapter else None

    @property
    def stop(self) -> tuple[str, ...]:
        return self.adapter.card.stop if self.adapter else ()

    @property
    def is_own(self) -> bool:
        """Whether the adapter was made for this task."""
        return self.adapter is not None and self.task.kind in (self.adapter.card.task, self.adapter.name)

    @property
    def label(self) -> str:
        return f"{self.task.name} x {self.adapter_name or 'base'}"


def _identity(task: Task, items_hash: str, pack: Pack, adapter: PackedAdapter | None, max_tokens: int) -> Identity:
    identity: dict[str, Any] = {
        "schema": IDENTITY_SCHEMA,
        "task": task.name,
        "adapter": adapter.name if adapter else None,
        "items_sha256": items_hash,
        "base_sha256": pack.base.sha256,
        "adapter_sha256": adapter.sha256 if adapter else None,
        "scale": adapter.card.scale if adapter else None,
        "system": adapter.card.system if adapter else None,
        "stop": list(adapter.card.stop) if adapter else [],
        "max_tokens": max_tokens,
        "decoding": "greedy",
        "llama_cpp_python": metadata.version("llama-cpp-python"),
    }
    return identity


def adapters_of(pack: Pack, names: Sequence[str]) -> list[PackedAdapter | None]:
    """The adapters named; "none" is the base alone, "each" the base and every adapter.

    Raises:
        InputError: a name that the pack doesn't have; nearest names are given.
    """
    chosen: dict[str, PackedAdapter | None] = {}
    for name in names or ("each",):
        if name == "each":
            chosen |= {"none": None, **pack.adapters}
        elif name == "none":
            chosen["none"] = None
        elif name in pack.adapters:
            chosen[name] = pack.adapters[name]
        else:
            near = did_you_mean(name, [*pack.adapters, "none", "each"])
            raise InputError(f"the pack {pack.name} has no adapter {name!r}", hint=f"there are: {', '.join(near)}")
    return list(chosen.values())


def plan(
    tasks: Sequence[Task],
    pack: Pack,
    adapters: Sequence[PackedAdapter | None],
    data: Path,
    *,
    limit: int | None = None,
    limit_others: int | None = None,
    max_tokens: int | None = None,
) -> list[Cell]:
    """The cells in order of importance: each task under the base and its own adapter, then the others.

    Args:
        limit: items of each cell; None: all.
        limit_others: the same for adapters made for another task; None: as `limit`.
        max_tokens: cap of an answer in place of the task's own.

    Raises:
        InputError: the data of some task is missing or damaged.
    """
    problems: list[str] = []
    cells: list[Cell] = []
    for task in tasks:
        try:
            items = task.items(data)
        except InputError as error:
            problems += error.problems or [str(error)]
            continue
        items_hash = items_sha256(items)
        cap = max_tokens or task.max_tokens
        for adapter in adapters:
            identity = _identity(task, items_hash, pack, adapter, cap)
            cell = Cell(task, adapter, items, len(items), cap, identity)
            wanted = limit if cell.is_own or adapter is None or limit_others is None else limit_others
            n = len(items) if wanted is None else min(wanted, len(items))
            cells.append(Cell(task, adapter, items, n, cap, identity))
    if problems:
        raise InputError("data of the tasks is missing or damaged", where=data, problems=problems, hint="--data DIR")
    return sorted(cells, key=lambda cell: cell.adapter is not None and not cell.is_own)
