"""Rows of data files, what a task makes of one, and what a run trains on."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from ...edge.files.read import is_text, json_rows, sha256_file
from ...edge.gguf.chat_template import Message

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """What a task makes of a row: the messages of the prompt and the text to answer.

    Attributes:
        reply: the answer as a message, where it is more than its text.
        all_turns: the answers among `messages` are learned too.
        arguments: what the chat template is told besides, such as tools.
    """

    messages: list[Message]
    completion: str
    reply: Message | None = None
    all_turns: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conversation(self) -> list[Message]:
        """The prompt's messages and the answer."""
        return [*self.messages, self.reply or {"role": "assistant", "content": self.completion}]


def text_of(row: Row, key: str) -> str:
    """A cell that must be a text.

    Raises:
        ValueError: it is missing, null, of another type, or has half a surrogate pair.
    """
    value = row.get(key)
    if not is_text(value):
        what = "has half a surrogate pair" if isinstance(value, str) else "is no text"
        raise ValueError(f"the cell {key!r} {what}")
    return str(value)


def asked_of(row: Row) -> str:
    """What an Alpaca-style row asks: its instruction, and its input if it has one; ValueError as `text_of`."""
    given = "" if row.get("input") is None else text_of(row, "input")
    return "\n".join(part.strip() for part in (text_of(row, "instruction"), given) if part.strip())


def turns_of(row: Row) -> list[Message]:
    """The `messages` of a row; ValueError where they are no list of roles and texts."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("the cell 'messages' is no list of messages")
    return [{"role": text_of(turn, "role"), "content": text_of(turn, "content")} for turn in turns]


@dataclass(frozen=True)
class Example:
    """One row as token ids.

    Attributes:
        ids: prompt and completion.
        n_prompt: how many of `ids` are the prompt; the loss is on the others.
        n_before: how many of `ids` an aLoRA leaves to the base; 0 for a plain LoRA.
        gaps: spans behind the prompt, from and to, that are not learned: what others said between two answers.
        of: tells rows of one conversation, which are held out together; empty where it is this row alone.
    """

    ids: tuple[int, ...]
    n_prompt: int
    n_before: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    of: str = ""

    @property
    def learned(self) -> list[int]:
        """The places in `ids` that the loss is on."""
        starts = [self.n_prompt, *(end for _, end in self.gaps)]
        ends = [*(start for start, _ in self.gaps), len(self.ids)]
        return [place for start, end in zip(starts, ends, strict=True) for place in range(start, end)]


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
    for _, row in numbered_rows(path):
        yield row


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """As `read_rows`, each with its line in the file, or its number from 1 where rows are no lines."""
    if path.name.endswith(".parquet"):
        yield from enumerate(_parquet_rows(path), 1)
        return
    for number, row in json_rows(path):
        if not isinstance(row, dict):
            raise InputError(f"row {number} is not an object", where=path)
        yield number, row


def read_texts(path: Path, *keys: str) -> Iterator[Row]:
    """The rows of a file as `read_rows`, each with texts in these cells; InputError with the row where it has not."""
    for number, row in enumerate(read_rows(path), 1):
        try:
            for key in keys:
                text_of(row, key)
        except ValueError as error:
            raise InputError(f"row {number}: {error}", where=path) from None
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
    """Training and held-out examples: the `n` with the smallest hash of their ids are held out, in whatever order.

    Rows of one conversation stay together, so that there may be a few more.
    """

    def rank(example: Example) -> str:
        return example.of or hashlib.sha256(repr(example.ids).encode()).hexdigest()

    held = set(sorted(map(rank, examples))[:n])
    return (
        [example for example in examples if rank(example) not in held],
        [example for example in examples if rank(example) in held],
    )
