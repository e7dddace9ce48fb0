"""The answers of one cell (task x adapter), one JSON line each, written as they come: what a run resumes from.

The first line says what was measured (the identity); a file of another identity has another name, so answers of a
changed adapter or prompt are never mixed. A new file takes over what ended by itself under a smaller cap. A line cut
short by kill -9 is dropped and its item run again. Nothing of the data is in it but item ids, and what the model
repeated of its prompt. Where a file isn't there, its archive NAME.jsonl.xz is read (`bench pack-answers` writes it),
and a run that goes on unpacks it first.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ...edge.console import note
from ...edge.errors import DamagedError, InputError
from ...edge.files.atomic import atomic_file, locked
from ...edge.files.journal import Journal, line_of, rows_of
from ...edge.files.read import read_bytes

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One answer with its scores.

    Attributes:
        run: 0 for the first run of this cell, 1 for the one that resumed it, ...
        at_s: seconds of that run's clock when the answer was there.
        energy_j: joules of that run when the answer was there, by sensor; None without sensors.
        thinking: what the model thought before the text, which alone is scored; None for nothing.
        by: what gave the answer where the cell doesn't say: the adapter that the router chose, the endpoint's model.
    """

    id: str
    text: str
    scores: dict[str, float]
    n_prompt_tokens: int
    n_tokens: int
    stop_reason: str
    run: int
    at_s: float
    by: str | None = None
    energy_j: dict[str, float] | None = None
    thinking: str | None = None

    def as_row(self) -> dict[str, Any]:
        """As it stands in the file: what is not known is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def identity_sha256(identity: Identity) -> str:
    """The hash that names a cell's file."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def answer_path(folder: Path, identity: Identity) -> Path:
    """Where a cell's answers lie: `TASK.ADAPTER.HASH.jsonl`."""
    # A model behind an endpoint may be called "org/name"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", identity["adapter"] or "base")
    return folder / f"{identity['task']}.{name}.{identity_sha256(identity)[:12]}.jsonl"


def archive_path(path: Path) -> Path:
    """Where the archive of an answer file lies."""
    return path.with_name(f"{path.name}.xz")


def packed(data: bytes) -> bytes:
    """An answer file's whole lines as its archive (xz); the same bytes each time."""
    import lzma

    whole = data[: data.rfind(b"\n") + 1]
    return lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)


def unpacked(archive: Path) -> bytes:
    """What an archive holds.

    Raises:
        DamagedError: it is no whole xz file.
    """
    import lzma

    try:
        return lzma.decompress(read_bytes(archive))
    except (lzma.LZMAError, EOFError) as error:
        raise DamagedError(f"is not a whole xz file ({error})", where=archive) from None


def content(place: Path) -> bytes:
    """The lines of an answer file or of its archive; DamagedError as `unpacked`."""
    return unpacked(place) if place.suffix == ".xz" else read_bytes(place)


def answers_below(folder: Path) -> Path:
    """Where a run's answers lie: `folder` is its --out, or what this returns."""
    return folder / "answers" if (folder / "answers").is_dir() else folder


def answer_places(folder: Path) -> list[Path]:
    """The answer files of a run, and the archives of those that are not there.

    Raises:
        InputError: there are none.
    """
    source = answers_below(folder)
    places = _places(source, "*.jsonl")
    if not places:
        raise InputError("there are no answers (*.jsonl)", where=source, hint="name the --out of a `slm-edge bench`")
    return places


def _places(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    return files + [one for one in sorted(folder.glob(f"{pattern}.xz")) if one.with_suffix("") not in files]


def parsed(data: bytes, where: Path, of: Identity | None = None) -> tuple[Identity | None, list[Record], int]:
    """An answer file's identity, its records, and how many bytes are whole lines. None: not even one line is whole.

    Raises:
        DamagedError: a line is not a record, or the identity is not `of`.
    """
    rows, whole = rows_of(data, where)
    identity: Identity | None = None
    records: list[Record] = []
    for number, row in enumerate(rows, 1):
        try:
            if number == 1:
                identity = dict(row["identity"])
                if of is not None and identity != json.loads(json.dumps(of)):
                    raise DamagedError("holds the answers of something else", where=where)
            else:
                records.append(Record(**row))
        except (TypeError, KeyError) as error:
            raise DamagedError(
                f"line {number} is not an answer ({error})", where=where, hint="remove it to measure this again"
            ) from None
    return identity, records, whole


def ended_below(folder: Path, identity: Identity) -> list[Record]:
    """Answers of the same cell under a smaller cap that ended before it: a larger one changes nothing of them."""
    found: dict[str, Record] = {}
    rest = {**json.loads(json.dumps(identity)), "max_tokens": None}
    stem = answer_path(folder, identity).name.rsplit(".", 2)[0]
    for place in _places(folder, f"{stem}.*.jsonl"):
        other, records, _ = parsed(content(place), place)
        if other is None or {**other, "max_tokens": None} != rest or other["max_tokens"] >= identity["max_tokens"]:
            continue
        for record in records:
            if record.stop_reason in ("end", "stop"):
                found.setdefault(record.id, record)
    return list(found.values())


def joined(there: Iterable[Record], more: Iterable[Record]) -> list[Record]:
    """The answers of runs that knew nothing of each other, as if those of `more` had followed."""
    found = {record.id: record for record in there}
    runs = 1 + max((record.run for record in found.values()), default=-1)
    for record in more:
        found.setdefault(record.id, replace(record, run=runs + record.run))
    return list(found.values())


class AnswerFile:
    """The answers of a cell, opened to read what is there and to add to it. To write, open it by `held`.

    Attributes:
        records: by item id, in the order of the file.
        run: number of this run.

    Raises:
        DamagedError: a line is not a record, the file is of another cell, or its archive is damaged.
    """

    def __init__(self, folder: Path, identity: Identity, *, write: bool = False) -> None:
        self.identity = identity
        self.path = answer_path(folder, identity)
        self.records: dict[str, Record] = {}
        self._journal: Journal | None = None
        whole = self._read(identity)
        earlier = ended_below(folder, identity) if write and whole == 0 else []
        runs = [record.run for record in (*self.records.values(), *earlier)]
        self.run = 1 + max(runs, default=-1)
        if write:
            if not self.path.exists() and archive_path(self.path).exists():
                with atomic_file(self.path) as aside:
                    aside.write_bytes(unpacked(archive_path(self.path)))
            self._journal = Journal(self.path, whole, {"identity": identity})
            for record in earlier:
                self.add(record)

    def _read(self, identity: Identity) -> int:
        """Fills `records`; returns how many bytes are whole lines."""
        place = self.path if self.path.exists() else archive_path(self.path)
        if not place.exists():
            return 0
        _, records, whole = parsed(content(place), place, identity)
        for record in records:
            self.records.setdefault(record.id, record)
        return whole

    def add(self, record: Record) -> None:
        """Writes one answer. An item that has one already is left as it is."""
        if record.id not in self.records:
            assert self._journal is not None
            self._journal.add(record.as_row())
            self.records[record.id] = record

    def replace(self, records: Iterable[Record]) -> None:
        """Writes the file anew with these records, in one step; for files that are not open to be added to."""
        assert self._journal is None
        self.records = {record.id: record for record in records}
        lines = [line_of({"identity": self.identity}), *(line_of(record.as_row()) for record in self.records.values())]
        with atomic_file(self.path) as aside:
            aside.write_bytes(b"".join(lines))

    def wall_s(self) -> float:
        """Seconds over all runs: each until its last answer."""
        last: dict[int, float] = {}
        for record in self.records.values():
            last[record.run] = max(last.get(record.run, 0.0), record.at_s)
        return sum(last.values())

    def close(self) -> None:
        """Ends writing."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def held(folder: Path, identity: Identity, label: str, *, write: bool = False) -> Iterator[AnswerFile]:
    """An answer file that no other process writes meanwhile; waits for one that does, and says so.

    Args:
        label: what is measured, for that note.
        write: opened to be added to; without, `AnswerFile.replace` is possible.
    """
    lock = answer_path(folder, identity).with_suffix(".lock")
    wait = locked(lock, lambda: note(f"{label}: another process is at it; waiting"))
    with wait, AnswerFile(folder, identity, write=write) as answers:
        yield answers
