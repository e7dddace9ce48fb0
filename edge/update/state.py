"""What a machine remembers of a pack's updates, and how it takes one back.

    with changing(store, name) as state:        # one process at a time; written whole when the block ends
        state.refused[digest] = "its golden prompts failed"

A name's `Ref` says what runs. This says why something does not run any more, and how the newest is doing.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..console import note
from ..errors import InputError
from ..files.atomic import locked, make_folder, write_json
from ..files.read import read_table
from ..store.store import Store
from ..store.version import Ref, encoded

# Of a new version: so many uses in a row may fail before it is taken back, and so many that succeed end the watch.
MOST_BAD: Final = 3
ENOUGH_GOOD: Final = 20


@dataclass
class State:
    """What is remembered.

    Attributes:
        refused: digests that failed here, or that somebody went back from by hand, and why.
        versions: digest -> version, as it was signed.
        rehearsed: digest -> the slm-edge that its rehearsal held with.
        n_good, n_bad: uses of the version on trial; bad ones in a row.
        reasons: of the bad ones.
        begun: uses that have not ended: process id -> when that process began.
    """

    refused: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rehearsed: dict[str, str] = field(default_factory=dict)
    n_good: int = 0
    n_bad: int = 0
    reasons: list[str] = field(default_factory=list)
    begun: dict[str, float] = field(default_factory=dict)

    def start_watch(self) -> None:
        """Forgets how an earlier version did."""
        self.n_good, self.n_bad, self.reasons, self.begun = 0, 0, [], {}


def _path(store: Store, name: str) -> Path:
    return store.folder / "state" / "updates" / f"{encoded(name)}.json"


def read_state(store: Store, name: str) -> State:
    """What is remembered; nothing where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    path = _path(store, name)
    if not path.exists():
        return State()
    data = read_table(path)
    kinds: dict[str, type] = {"n_good": int, "n_bad": int, "reasons": list}  # the others are tables
    fits = all(isinstance(data.get(entry.name), kinds.get(entry.name, dict)) for entry in dataclasses.fields(State))
    if not fits or len(data) != len(dataclasses.fields(State)):
        raise InputError("is not what slm-edge wrote", where=path, hint=f"remove it: rm '{path}'")
    return State(**data)


@contextlib.contextmanager
def changing(store: Store, name: str) -> Iterator[State]:
    """The state under its lock; written when the block ends, if it changed and nothing was raised."""
    path = _path(store, name)
    make_folder(path.parent)
    with locked(path.with_suffix(".lock")):
        state = read_state(store, name)
        before = dataclasses.asdict(state)
        yield state
        if dataclasses.asdict(state) != before:
            write_json(path, dataclasses.asdict(state))


def take_back(store: Store, name: str, digest: str, why: str) -> Ref:
    """Goes back from a version to the one before it, for good: first it is noted, then one write switches.

    Whatever is killed between the two, `settle` ends.

    Args:
        digest: of the version to leave; nothing is switched if it is not the current one.
    """
    with changing(store, name) as state:
        state.refused[digest] = why
        state.start_watch()

    def back(ref: Ref) -> Ref:
        if ref.current != digest:
            return ref
        return dataclasses.replace(ref, current=ref.previous, previous=None, trial=None)

    return store.switch(name, back)


def settle(store: Store, name: str) -> None:
    """Ends a going back that was killed in its middle."""
    ref = store.ref(name)
    if ref is None or ref.current is None or ref.trial != ref.current:
        return
    why = read_state(store, name).refused.get(ref.current)
    if why is not None and ref.previous is not None:
        take_back(store, name, ref.current, why)


def begin_use(store: Store, name: str, digest: str) -> bool:
    """Notes that a use of the version on trial begins; those whose process is gone without an end have failed.

    A machine that was restarted meanwhile ended its processes itself.
    Returns whether the version was taken back for that.
    """
    if not _on_trial(store, name, digest):
        return False
    import psutil

    with changing(store, name) as state:
        for pid, began_s in [*state.begun.items()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(int(pid)).create_time() == began_s:
                    continue
            del state.begun[pid]
            if began_s < psutil.boot_time():
                continue
            state.n_bad += 1
            state.reasons = [*state.reasons, "the process died"][-MOST_BAD:]
        state.begun[str(os.getpid())] = psutil.Process().create_time()
    return _weigh(store, name, digest)


def end_use(store: Store, name: str, digest: str, fault: str | None, *, counts: bool = True) -> bool:
    """Notes how a use of the version on trial ended; returns whether the version was taken back for it.

    Args:
        fault: what was wrong; None for a good use.
        counts: False where it says nothing about the version.
    """
    if not _on_trial(store, name, digest):
        return False
    with changing(store, name) as state:
        state.begun.pop(str(os.getpid()), None)
        if counts and fault is None:
            state.n_good, state.n_bad = state.n_good + 1, 0
        elif counts:
            state.n_bad += 1
            state.reasons = [*state.reasons, str(fault)][-MOST_BAD:]
    return _weigh(store, name, digest)


def _on_trial(store: Store, name: str, digest: str) -> bool:
    ref = store.ref(name)
    return ref is not None and ref.trial == ref.current == digest


def _weigh(store: Store, name: str, digest: str) -> bool:
    state, ref = read_state(store, name), store.ref(name)
    if state.n_bad >= MOST_BAD and ref is not None and ref.previous is not None:
        take_back(store, name, digest, f"{state.n_bad} uses in a row failed: {state.reasons[-1]}")
        note(f"{name}: the new version failed {state.n_bad} times in a row; the one before it is back")
        return True
    if state.n_good >= ENOUGH_GOOD:
        store.switch(name, lambda ref: _kept(ref, digest))
    return False


def _kept(ref: Ref, digest: str) -> Ref:
    return dataclasses.replace(ref, trial=None) if ref.trial == digest else ref


def as_dict(state: State) -> dict[str, Any]:
    """For `--json`."""
    return dataclasses.asdict(state)
