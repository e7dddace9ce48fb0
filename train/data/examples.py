"""From rows to token ids: chat template, completion, end-of-turn token; duplicates and long rows are left out."""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.files.atomic import sha256_file
from ...edge.gguf.chat_template import Message
from ..model.alora import last_place
from ..model.bases import Base, completion_end

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """What a task makes of a row: the messages of the prompt and the text to answer."""

    messages: list[Message]
    completion: str


@dataclass(frozen=True)
class Example:
    """One row as token ids.

    Attributes:
        ids: prompt and completion.
        n_prompt: how many of `ids` are the prompt; the loss is on the others.
        n_before: how many of `ids` an aLoRA leaves to the base; 0 for a plain LoRA.
    """

    ids: tuple[int, ...]
    n_prompt: int
    n_before: int = 0


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For train.json."""
        return {"rows": self.rows, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}


def read_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file (gzipped or not), of a JSON file that holds one list, or of a parquet file.

    Raises:
        InputError: not there, not of these formats, or not objects.
    """
    if path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
        return
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=path) from None
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON or JSONL: {error}", where=path) from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"row {number} is not an object", where=path)
        yield row


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"is not a parquet file: {error}", where=path) from None
    return rows


def file_record(path: Path, name: str | None = None) -> dict[str, Any]:
    """Name, size and sha256 of a data file, for train.json."""
    return {"name": name or path.name, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def tokenize(
    base: Base, pairs: Iterable[Pair], max_tokens: int, counts: Counts, invocation: Sequence[int] = ()
) -> list[Example]:
    """Token ids of every pair; exact duplicates and rows of more than `max_tokens` are dropped and counted.

    Args:
        invocation: tokens from which on an aLoRA acts; rows without them in the prompt, or with them in the answer, are
            dropped too.
    """
    end = completion_end(base)
    seen: set[tuple[int, ...]] = set()
    examples = []
    for pair in pairs:
        prompt = base.prompt_ids(pair.messages)
        ids = (*prompt, *base.encode(pair.completion), *end)
        if ids in seen:
            counts.dropped["duplicate"] += 1
        elif len(ids) > max_tokens:
            counts.dropped["too long"] += 1
        elif invocation:
            start = last_place(ids, invocation)
            if start is None or start >= len(prompt):
                counts.dropped["no invocation in the prompt, or one in the answer"] += 1
            else:
                examples.append(Example(ids, len(prompt), start))
        else:
            examples.append(Example(ids, len(prompt)))
        seen.add(ids)
    counts.kept += len(examples)
    return examples


def shared_prefix_tokens(examples: Sequence[Example]) -> int:
    """How many tokens all prompts begin with; at least one prompt token is left to each row."""
    if not examples:
        return 0
    first = min(examples, key=lambda example: example.ids)
    last = max(examples, key=lambda example: example.ids)
    limit = min(example.n_prompt for example in examples) - 1
    if any(example.n_before for example in examples):
        limit = min(limit, *(example.n_before for example in examples))
    for at, (a, b) in enumerate(zip(first.ids[:limit], last.ids[:limit], strict=False)):
        if a != b:
            return at
    return max(0, min(limit, len(first.ids), len(last.ids)))


def split_held_out(examples: list[Example], n: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples: the `n` with the smallest hash of their ids are held out, in whatever order."""

    def rank(example: Example) -> bytes:
        return hashlib.sha256(repr(example.ids).encode()).digest()

    held = set(sorted(range(len(examples)), key=lambda at: rank(examples[at]))[:n])
    return (
        [example for at, example in enumerate(examples) if at not in held],
        [example for at, example in enumerate(examples) if at in held],
    )
