"""Answers of a long drawing as they come, in a file beside its output: stopped at any moment, it goes on from there.

with KeptAnswers(Path("own.jsonl"), {"seed": 1, ...}) as kept:
    kept.add(3, Kept("12 - 5 = 7", 9))         # the answer to the fourth prompt
kept.finish(rows)                              # the output is written
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ...edge.answer.stream import Answer
from ...edge.console import Advance, note
from ...edge.errors import DamagedError, InputError
from ...edge.files.atomic import atomic_file
from ...edge.files.journal import Journal, line_of, rows_of
from ...edge.files.read import read_bytes
from ...edge.gguf.chat_template import Message
from ...edge.session.batch import generate_batch
from ...edge.session.session import Session


@dataclass(frozen=True)
class Kept:
    """One answer; those that were cut off have no text."""

    text: str | None
    n_tokens: int


class KeptAnswers(AbstractContextManager["KeptAnswers"]):
    """What was answered already, by the number of the prompt.

    Args:
        output: the file is `OUTPUT.answers` beside it.
        of: everything that the answers depend on.

    Attributes:
        answers: by number; what is added is there at once.

    Raises:
        InputError: the file holds the answers of something else.
        DamagedError: a line is no answer.
    """

    def __init__(self, output: Path, of: Mapping[str, Any]) -> None:
        self._output = output
        self.path = output.with_name(f"{output.name}.answers")
        self.answers: dict[int, Kept] = {}
        rows, whole = rows_of(read_bytes(self.path), self.path) if self.path.exists() else ([], 0)
        self._first = {"of": json.loads(json.dumps(of))}
        if rows and rows[0] != self._first:
            raise InputError(
                "holds answers to other prompts, or drawn in another way",
                where=self.path,
                hint="give another -o, or remove it to begin anew",
            )
        for row in rows[1:]:
            try:
                at = int(row.pop("at"))
                self.answers[at] = Kept(**row)
            except (KeyError, TypeError, ValueError) as error:
                raise DamagedError(f"is damaged ({error})", where=self.path, hint="remove it to begin anew") from None
        self.n_before = len(self.answers)
        self._whole_bytes = whole
        self._journal: Journal | None = None

    def add(self, at: int, answer: Kept) -> None:
        """Writes the answer to a prompt, if it is not there yet."""
        if at not in self.answers:
            if self._journal is None:
                # Not before there is an answer, so that what fails early leaves nothing
                self._journal = Journal(self.path, self._whole_bytes, self._first)
            self._journal.add({"at": at, **asdict(answer)})
            self.answers[at] = answer

    def answer(
        self,
        session: Session,
        prompts: Sequence[Sequence[Message]],
        advance: Advance,
        *,
        adapter: str | None,
        max_tokens: int,
        n_parallel: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Has a session answer those of all prompts that are not answered yet; arguments as of `generate_batch`."""
        missing = [at for at in range(len(prompts)) if at not in self.answers]
        advance(self.n_before, total=len(prompts))

        def on_done(i: int, answer: Answer) -> None:
            self.add(missing[i], Kept(answer.text if answer.stop_reason == "end" else None, answer.n_tokens))
            advance(1)

        generate_batch(
            session,
            [prompts[at] for at in missing],
            adapter=adapter,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=[seed + at for at in missing],
            n_parallel=n_parallel,
            on_done=on_done,
        )

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the output, a row a line, and removes the file."""
        with atomic_file(self._output) as aside:
            aside.write_bytes(b"".join(map(line_of, rows)))
        self.remove()

    def remove(self) -> None:
        """Removes the file."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if kind is KeyboardInterrupt:
            note(f"{len(self.answers)} answers are kept in {self.path}; the same command goes on from there")
