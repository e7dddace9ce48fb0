"""From files of rows to what a run trains on: tasks' pairs, overlap with benchmarks, tokens, duplicates, the split."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ..model.bases import Base
from ..recipe import Recipe
from .contamination import Index, Report, checked, find_benchmarks
from .examples import Counts, Example, Row, file_record, read_rows, shared_prefix_tokens, split_held_out
from .replay import drawn
from .sources import Source
from .task import Task
from .tokenize import tokenize

# test sets that are only ever scored on: sha256 of the files as published
NEVER_TRAINED_ON = {
    "GSM8K test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}


@dataclass(frozen=True)
class Data:
    """What a run trains on: examples of training and held out, and the length of the prefix that all share."""

    train: list[Example]
    held_out: list[Example]
    prefix_tokens: int


@dataclass(frozen=True)
class Prepared:
    """Examples of a run, and what the record says of them.

    Attributes:
        found: overlap with benchmarks; None if it was not looked for.
        invocation: token ids from which on an aLoRA acts; empty for a plain LoRA.
    """

    data: Data
    counts: Counts
    files: list[dict[str, Any]]
    found: Report | None
    invocation: tuple[int, ...]

    def digest(self) -> str:
        """sha256 over the token ids of all examples: what the data came to, whatever files it came from."""
        hashed = hashlib.sha256()
        for part in (self.data.train, self.data.held_out):
            for example in part:
                gaps = (example.gaps,) if example.gaps else ()
                hashed.update(repr((example.ids, example.n_prompt, example.n_before, *gaps)).encode())
            hashed.update(b"\n")
        return hashed.hexdigest()


def as_sources(data: Sequence[str | Path | Source]) -> list[Source]:
    """Plain paths as sources, named by their file names."""
    return [entry if isinstance(entry, Source) else Source(Path(entry), Path(entry).name) for entry in data]


def prepare(
    task: Task,
    recipe: Recipe,
    base: Base,
    sources: Sequence[Source],
    replay: Sequence[Source] = (),
    benchmarks: Sequence[Path] = (),
) -> Prepared:
    """Reads, filters, tokenises and splits the data.

    Args:
        replay: general rows, of which `recipe.replay` are mixed in.
        benchmarks: see `contamination.find_benchmarks`.

    Raises:
        InputError: a file cannot be used, no example is left, or the data holds what `recipe.contamination` refuses.
    """
    counts = Counts()
    rows: list[Row] = []
    records = []
    for source in sources:
        records.append(file_record(source.path, source.name))
        for name, sha256 in NEVER_TRAINED_ON.items():
            if records[-1]["sha256"] == sha256:
                raise InputError(f"is {name}, which is only ever scored on", where=source.path)
        rows.extend(task.read(source.path))
    if recipe.made_rows:
        if task.made is None:
            raise InputError(f"the task {task.name} makes no rows of its own", hint="leave made_rows at 0")
        rows.extend(task.made(recipe.made_rows, recipe.seed))
    counts.rows = len(rows)

    def drop(reason: str) -> None:
        counts.dropped[reason] += 1

    pairs = list(task.pairs(rows, drop))
    if recipe.last_turn:
        pairs = [dataclasses.replace(pair, all_turns=False) for pair in pairs]
    if bool(replay) != (recipe.replay > 0):
        raise InputError("replay and replay_data go together: a share of rows, and the files that they come from")
    if replay:
        records += [{**file_record(source.path, source.name), "replay": True} for source in replay]
        general = [row for source in replay for row in read_rows(source.path)]
        mixed_in = drawn(general, recipe.replay, len(pairs), recipe.seed)
        pairs += mixed_in
        counts.rows += len(general)
        counts.dropped["replay rows not drawn"] = len(general) - len(mixed_in)
    found = None
    if recipe.contamination != "off":
        found = Report(Index(find_benchmarks(benchmarks, [source.path for source in sources])))
        pairs = checked(pairs, found, recipe.contamination, drop)
    invocation = tuple(base.encode(recipe.alora_invocation)) if recipe.alora_invocation else ()
    examples = tokenize(base, pairs, min(recipe.max_tokens, base.n_context_tokens), counts, invocation)
    if len(examples) < 2:
        raise InputError(
            "no examples are left to train on",
            where=", ".join(str(source.path) for source in sources),
            problems=[f"{n} x {reason}" for reason, n in counts.dropped.items()],
        )
    kept, held_out = split_held_out(examples, min(recipe.held_out, len(examples) // 2))
    data = Data(kept, held_out, shared_prefix_tokens(examples))
    return Prepared(data, counts, records, found, invocation)


def lengths(data: Data) -> dict[str, Any]:
    """Length statistics of the training examples, in tokens."""
    totals = sorted(len(example.ids) for example in data.train)
    completions = sorted(len(example.learned) for example in data.train)

    def spread(values: list[int]) -> dict[str, int]:
        return {"min": values[0], "median": values[len(values) // 2], "max": values[-1], "sum": sum(values)}

    return {"example": spread(totals), "completion": spread(completions), "shared_prefix": data.prefix_tokens}
