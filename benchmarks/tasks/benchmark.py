"""What a benchmark is. One module per test set makes one `BENCHMARK`; `registry.py` names the modules.

    BENCHMARK = Benchmark(name="gsm8k", kind="math", ..., load=load, score=score)

A task asks for one greedy answer to each item, for several drawn ones (`decoding`), or for the likelihoods of given
endings (`way`). Data is read from a folder that the user names; none ships with slm-edge.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...edge.errors import InputError
from ...edge.files.read import is_text, json_rows
from ...edge.gguf.chat_template import Message

# One running order for all: a run that stops early, or --limit, leaves a random sample, the same for each adapter
ORDER_SEED = 20261124

Row = dict[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. One greedy answer, or `samples` of each item at `temperature` within the top `top_p`."""

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def __post_init__(self) -> None:
        problems = []
        if self.samples < 1 or (self.samples > 1 and self.greedy):
            problems.append(f"{self.samples} samples at temperature {self.temperature}: more than one needs it above 0")
        if not 0 <= self.temperature <= 10:
            problems.append(f"temperature is {self.temperature}; it must be between 0 and 10")
        if not 0 < self.top_p <= 1:
            problems.append(f"top-p is {self.top_p}; it must be above 0 and at most 1")
        if problems:
            raise InputError("answers cannot be drawn like this", problems=problems)


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique within its task.
        messages: what is asked, through the chat template.
        truth: what `score` needs.
        raw: what is asked instead, as plain text without the template.
        endings: with `way="choices"`, what may follow `raw`.
        problem: the item of which this is one of several samples; else the id.
    """

    id: str
    messages: list[Message]
    truth: Mapping[str, Any]
    raw: str | None = None
    endings: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Metric:
    """A score of one answer. `binary` ones are 0 or 1.

    Attributes:
        k: where set, pass@k over the samples of each problem, from the answers' score `of`.
        of: name of the answers' score; by default the metric's own.
    """

    name: str
    binary: bool
    title: str
    k: int | None = None
    of: str = ""

    @property
    def source(self) -> str:
        """The answers' score that it is made from."""
        return self.of or self.name


@dataclass(frozen=True)
class Benchmark:
    """A public test set and its rules.

    Attributes:
        kind: task name of the adapter that is made for it ("math", "code", "summarize").
        files: the data files below the data folder.
        max_tokens: cap of an answer, in tokens.
        metrics: the first one is the task's main one.
        load: data folder -> items in the order of the files.
        score: item, answer -> value of each metric by name. May be called from another thread.
        protocol: the rules in a sentence or two, for the report.
        decoding: how answers are drawn unless the user says otherwise.
        way: "answers" are generated; "choices" are endings whose likelihoods are computed, which `score` gets as JSON.
        stop: texts that end an answer, in place of the adapter's own.
        runs_code: `score` runs what the model wrote, in the sandbox.
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
    decoding: Decoding = field(default_factory=Decoding)
    way: Literal["answers", "choices"] = "answers"
    stop: tuple[str, ...] | None = None
    runs_code: bool = False

    @property
    def takes_samples(self) -> bool:
        """Whether several answers to an item make sense: some metric is a pass@k."""
        return any(metric.k for metric in self.metrics)

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


def refuse_rows(path: Path, ids: Sequence[str], reason: str) -> None:
    """Refuses a data file some of whose rows cannot be scored.

    Args:
        ids: those rows.
        reason: what is wrong with them, e.g. "no answer `#### NUMBER`".

    Raises:
        InputError: there is one; the first five are named.
    """
    if ids:
        named = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise InputError(f"{reason}: {named}", where=path, hint="Mend these rows or leave them out.")


def json_lines(path: Path, *texts: str, numbers: Sequence[str] = (), lists: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a JSON Lines file (gzipped or not) or of a JSON list, each checked to be an object with these keys.

    Args:
        texts: keys of texts.
        numbers: keys of whole numbers.
        lists: keys of lists of texts, of one at least.

    Raises:
        InputError: a row is something else, with its number.
    """
    for number, row in json_rows(path):
        yield checked_row(row, f"line {number}", path, texts, numbers=numbers, lists=lists)


def checked_row(
    row: Any, name: str, path: Path, texts: Sequence[str], *, numbers: Sequence[str] = (), lists: Sequence[str] = ()
) -> Row:
    """A row with these keys; InputError where it is none. A benchmark leaves no row out: its score would be another."""
    if not isinstance(row, dict):
        raise InputError(f"{name} is not an object", where=path)
    missing = [key for key in (*texts, *numbers, *lists) if key not in row]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}", where=path)
    faults = [f"{key!r} is no text, or has half a surrogate pair" for key in texts if not is_text(row[key])]
    faults += [
        f"{key!r} is no whole number" for key in numbers if not isinstance(row[key], int) or isinstance(row[key], bool)
    ]
    for key in lists:
        if not isinstance(row[key], list) or not row[key] or not all(is_text(one) for one in row[key]):
            faults.append(f"{key!r} is no list of texts")
    if faults:
        raise InputError(f"{name} is not a row of this data", where=path, problems=faults)
    return row


def items_sha256(items: list[Item]) -> str:
    """One hash over what is asked and what is right: the data, the prompt's wording and the order."""
    digest = hashlib.sha256()
    for item in items:
        parts: list[Any] = [item.id, item.messages, item.truth]
        if item.raw is not None:
            parts += [item.raw, list(item.endings)]
        digest.update(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()


def sampled(items: list[Item], samples: int) -> list[Item]:
    """Every item `samples` times, one problem after the other: "HumanEval/3#0", "HumanEval/3#1", ..."""
    return [
        dataclasses.replace(item, id=f"{item.id}#{number}", problem=item.id)
        for item in items
        for number in range(samples)
    ]


def sample_seed(seed: int, item_id: str) -> int:
    """The seed of one answer: it depends on nothing but the run's seed and the item, so order doesn't matter."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{item_id}".encode()).digest()[:4], "big") % ((1 << 32) - 1)
