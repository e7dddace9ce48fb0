"""Whether test items of benchmarks are in the training data: runs of words that both have.

    index = Index(find_benchmarks([Path("data")]))
    index.found_in("Natalia sold clips to 48 of her friends ...")      # {("GSM8K test", 17)}

Two texts overlap where they share 13 words in a row, letters and digits only, case aside (the rule of GPT-3's appendix
C, Brown et al. 2020, arXiv 2005.14165). An item of fewer words overlaps where all of it stands in a row of the
data; one of fewer than 8 words says too little and is not looked for.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...edge.errors import InputError
from .examples import Pair, Row, read_rows

N_WORDS = 13
LEAST_WORDS = 8
# Of a benchmark's items, standing in the data: more is no chance, but the test set itself.
TOO_MANY = 0.2
_WORD = re.compile(r"[^\W_]+")
# What a row's question is called, in this order, in the files of benchmarks.
_QUESTION = ("question", "text", "prompt", "Question", "instruction", "query")

_MBPP_TEST = frozenset(map(str, range(11, 511)))

Words = tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Test items of one benchmark: their texts."""

    name: str
    items: list[str]


def words_of(text: str) -> Words:
    """The words of a text: lower case, letters and digits."""
    return tuple(_WORD.findall(text.lower()))


def _mbpp_test(row: Row) -> bool:
    return str(row.get("task_id")) in _MBPP_TEST


# Below a data folder: file -> name, and which rows are test items.
STANDARD: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "gsm8k/test.jsonl": ("GSM8K test", lambda row: True),
    "mbpp/mbpp.jsonl": ("MBPP test", _mbpp_test),
    "humaneval/HumanEval.jsonl.gz": ("HumanEval", lambda row: True),
    "humaneval/HumanEval.jsonl": ("HumanEval", lambda row: True),
    "svamp/SVAMP.json": ("SVAMP", lambda row: True),
}


def _question(row: Row, path: Path) -> str:
    for key in _QUESTION:
        if isinstance(row.get(key), str):
            return f"{row['Body']} {row[key]}" if "Body" in row else str(row[key])
    raise InputError(f"a row has none of {', '.join(_QUESTION)}", where=path, hint="name files of test items")


def _in_folder(folder: Path) -> list[Benchmark]:
    found = {}
    for file, (name, is_test) in STANDARD.items():
        path = folder / file
        if path.is_file() and name not in found:
            found[name] = Benchmark(name, [_question(row, path) for row in read_rows(path) if is_test(row)])
    return list(found.values())


def find_benchmarks(places: Sequence[Path], data: Sequence[Path] = ()) -> list[Benchmark]:
    """The benchmarks to look for.

    Args:
        places: files of test items, or folders laid out as `STANDARD`.
        data: the training files; where `places` is empty, the folders that they lie in are looked into.

    Raises:
        InputError: a place is not there, or holds no test items.
    """
    found: list[Benchmark] = []
    for place in places:
        if place.is_dir():
            inside = _in_folder(place)
            if not inside:
                raise InputError("holds none of the test sets", where=place, problems=list(STANDARD))
            found += inside
        else:
            found.append(Benchmark(place.name, [_question(row, place) for row in read_rows(place)]))
    if not places:
        for folder in sorted({path.absolute().parent.parent for path in data}):
            found += _in_folder(folder)
    return list({benchmark.name: benchmark for benchmark in found}.values())


class Index:
    """All runs of words to look for."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.benchmarks = list(benchmarks)
        self._runs: dict[Words, set[tuple[str, int]]] = defaultdict(set)
        self._short: dict[Words, list[tuple[Words, tuple[str, int]]]] = defaultdict(list)
        for benchmark in benchmarks:
            for number, text in enumerate(benchmark.items):
                words, item = words_of(text), (benchmark.name, number)
                for at in range(len(words) - N_WORDS + 1):
                    self._runs[words[at : at + N_WORDS]].add(item)
                if LEAST_WORDS <= len(words) < N_WORDS:
                    self._short[words[:LEAST_WORDS]].append((words, item))

    def found_in(self, text: str) -> set[tuple[str, int]]:
        """The items, as (benchmark, number), that overlap with a text."""
        words = words_of(text)
        found: set[tuple[str, int]] = set()
        for at in range(len(words) - LEAST_WORDS + 1):
            found |= self._runs.get(words[at : at + N_WORDS], set())
            for whole, item in self._short.get(words[at : at + LEAST_WORDS], ()):
                if words[at : at + len(whole)] == whole:
                    found.add(item)
        return found


@dataclass
class Report:
    """What was found, for train.json.

    Attributes:
        rows: benchmark -> training rows that overlap with it.
        items: benchmark -> numbers of its items that were met.
        examples: the first few: benchmark, number of its item, beginning of the training row.
    """

    index: Index
    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    items: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    examples: list[dict[str, Any]] = field(default_factory=list)

    def meets(self, pair: Pair) -> set[str]:
        """Names of the benchmarks that a training row overlaps with; they are counted."""
        text = " ".join([*(str(message["content"]) for message in pair.messages), pair.completion])
        found = self.index.found_in(text)
        for name, number in sorted(found):
            self.items[name].add(number)
            if len(self.examples) < 10:
                self.examples.append({"benchmark": name, "item": number, "row": text[:120]})
        names = {name for name, _ in found}
        for name in names:
            self.rows[name] += 1
        return names

    def as_dict(self) -> dict[str, Any]:
        """For train.json."""
        return {
            "words_in_a_row": N_WORDS,
            "benchmarks": {
                benchmark.name: {
                    "items": len(benchmark.items),
                    "items_met": len(self.items[benchmark.name]),
                    "rows": self.rows[benchmark.name],
                }
                for benchmark in self.index.benchmarks
            },
            "examples": self.examples,
        }

    def lines(self) -> list[str]:
        """One line per benchmark that was met."""
        return [
            f"{self.rows[b.name]} rows share {N_WORDS} words in a row with {len(self.items[b.name])} of the "
            f"{len(b.items)} items of {b.name}"
            for b in self.index.benchmarks
            if self.rows[b.name]
        ]


def checked(pairs: Iterable[Pair], report: Report, choice: str, drop: Callable[[str], object]) -> list[Pair]:
    """The rows that may be trained on.

    Args:
        choice: "report" keeps all, "drop" leaves out those that overlap, "refuse" raises if there is one.
        drop: told the reason for each row left out.

    Raises:
        InputError: `choice` says so, or a good part of a test set stands in the data.
    """
    kept = []
    for pair in pairs:
        met = report.meets(pair)
        if met and choice == "drop":
            drop(f"overlaps with {', '.join(sorted(met))}")
        else:
            kept.append(pair)
    whole = [b.name for b in report.index.benchmarks if len(report.items[b.name]) > TOO_MANY * len(b.items) >= 2]
    if whole and choice != "drop":
        raise InputError(
            f"more than {TOO_MANY:.0%} of {' and of '.join(whole)} is in the training data",
            problems=report.lines(),
            hint='train on other rows, or leave these out: contamination = "drop"',
        )
    if choice == "refuse" and report.lines():
        raise InputError(
            "test items of benchmarks are in the training data",
            problems=[*report.lines(), *(f"{e['benchmark']} {e['item']}: {e['row']}" for e in report.examples)],
            hint='contamination = "drop" leaves these rows out',
        )
    return kept
