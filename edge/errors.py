"""The one error tree. Every failure that a user can meet is one of these.

    SlmEdgeError                 exit 1
    ├── InputError               exit 2   what the user gave is wrong: an argument, a file's contents
    ├── UnsupportedError         exit 3   it is well formed, but cannot be done (and why)
    ├── DoesNotFitError          exit 4   memory, context or disk do not suffice (with the numbers)
    ├── DamagedError             exit 5   bytes are not what their header or hash says
    ├── EngineError              exit 6   llama.cpp failed on something that passed our checks
    │   └── UnreachableError     exit 8   what is to be fetched cannot be reached, or the server does not give it
    └── BusyError                exit 7   an engine takes no more work for now (and how long until it does)

A message says what is wrong, `where` it is wrong and a `hint` what to do. All faults of one file are
gathered in `problems` and raised once. Exit 130 is Ctrl-C.
"""

import errno
from collections.abc import Sequence
from os import PathLike, fsdecode
from typing import Final

# No space, over the user's quota, over the process's limit of a file's size.
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class SlmEdgeError(Exception):
    """Base of all errors that are shown to a user as one message, without a traceback.

    Args:
        message: what is wrong, one sentence.
        where: the file, key, tensor or option concerned.
        hint: what to do about it.
        problems: every fault found, when there may be several.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | PathLike[str] | None = None,
        hint: str | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        self.message = message
        self.where = None if where is None else str(where)
        self.hint = hint
        self.problems = tuple(problems)
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message if self.where is None else f"{self.where}: {self.message}"]
        lines += [f"  - {problem}" for problem in self.problems]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The error for `--json`: kind, message, where, hint, problems, exit_code."""
        return {
            "kind": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "problems": list(self.problems),
            "exit_code": self.exit_code,
        }


class InputError(SlmEdgeError):
    """What the user gave is wrong."""

    exit_code = 2


class UnsupportedError(SlmEdgeError):
    """Well formed, but it cannot be done; the message says why."""

    exit_code = 3


class DoesNotFitError(SlmEdgeError):
    """Memory, context or disk do not suffice; the message has the numbers."""

    exit_code = 4


class DamagedError(SlmEdgeError):
    """Bytes are not what their header or hash says."""

    exit_code = 5


class EngineError(SlmEdgeError):
    """llama.cpp failed on something that passed our checks."""

    exit_code = 6


class UnreachableError(EngineError):
    """What is to be fetched cannot be reached, or whoever has it does not give it."""

    exit_code = 8


class ConflictError(InputError):
    """What was to be replaced is not what the caller saw last."""


class BusyError(SlmEdgeError):
    """An engine takes no more work for now.

    Attributes:
        wait_s: after how many seconds a request would begin; None where the engine is ending and takes none any more.
    """

    exit_code = 7

    def __init__(self, message: str, *, wait_s: float | None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wait_s = wait_s

    def as_dict(self) -> dict[str, object]:
        """As of every error, with `wait_s`."""
        return {**super().as_dict(), "wait_s": self.wait_s}


def is_full(error: OSError) -> bool:
    """Whether it says that there is no room on the disk."""
    return error.errno in _FULL


def of_system(error: OSError, action: str = "be read or written") -> SlmEdgeError:
    """What the operating system refused, as an error to raise: DoesNotFitError on a full disk, else InputError."""
    kind = DoesNotFitError if is_full(error) else InputError
    where = error.filename if isinstance(error.filename, str | bytes | PathLike) else None
    subject = "" if where else "a file "
    return kind(f"{subject}cannot {action} ({error.strerror or error})", where=fsdecode(where) if where else None)
