"""The answers of one cell (task x adapter), one JSON line each, written as they come: what a run resumes from.

The first line says what was measured (the identity); a file of another identity has another name, so answers of a
changed adapter, prompt or cap are never mixed. A line cut short by kill -9 is dropped and its item run again.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..edge.errors import DamagedError

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One answer with its scores.

    Attributes:
        run: 0 for the first run of this cell, 1 for the one that resumed it, ...
        at_s: seconds of that run's clock when the answer was there.
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


def identity_sha256(identity: Identity) -> str:
    """The hash that names a cell's file."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def answer_path(folder: Path, identity: Identity) -> Path:
    """Where a cell's answers lie: `TASK.ADAPTER.HASH.jsonl`."""
    # A model behind an endpoint may be called "org/name"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", identity["adapter"] or "base")
    return folder / f"{identity['task']}.{name}.{identity_sha256(identity)[:12]}.jsonl"


class AnswerFile:
    """The answers of a cell, opened to read what is there and to add to it. Hold `files.locked` around it to write.

    Attributes:
        records: by item id, in the order of the file.
        run: number of this run.

    Raises:
        DamagedError: a line is not a record, or the file is of another cell.
    """

    def __init__(self, folder: Path, identity: Identity, *, write: bool = False) -> None:
        self.path = answer_path(folder, identity)
        self.records: dict[str, Record] = {}
        self._stream: BinaryIO | None = None
        whole = self._read(identity)
        self.run = 1 + max((record.run for record in self.records.values()), default=-1)
        if write:
            self._stream = self.path.open("ab", buffering=0)
            os.ftruncate(self._stream.fileno(), whole)
            if whole == 0:
                self._write({"identity": identity})

    def _read(self, identity: Identity) -> int:
        """Fills `records`; returns how many bytes are whole lines."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                if number == 1:
                    if row["identity"] != json.loads(json.dumps(identity)):
                        raise DamagedError("holds the answers of something else", where=self.path)
                    continue
                record = Record(**row)
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedError(
                    f"line {number} is not an answer ({error})", where=self.path, hint="remove it to measure this again"
                ) from None
            self.records.setdefault(record.id, record)
        return whole

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._stream is not None
        # One unbuffered write of one whole line: what was written survives the process
        self._stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def add(self, record: Record) -> None:
        """Writes one answer. An item that has one already is left as it is."""
        if record.id not in self.records:
            row = asdict(record)
            if record.by is None:
                del row["by"]
            self._write(row)
            self.records[record.id] = record

    def wall_s(self) -> float:
        """Seconds over all runs: each until its last answer."""
        last: dict[int, float] = {}
        for record in self.records.values():
            last[record.run] = max(last.get(record.run, 0.0), record.at_s)
        return sum(last.values())

    def close(self) -> None:
        """Ends writing."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
