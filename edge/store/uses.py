"""Who uses what is in the store, and when it was used last: so that nothing is removed under anyone.

    mark_use(sha256, "my-pack")         # until this process ends, and its time
    uses_of(store, sha256)              # [Use(who="my-pack", last="2026-…", running=True, command="slm-edge run")]

    state/used/KEY/….json       one for each user of a blob or version; its time is when it was used last

A running process holds a shared lock on the file; however it ends, the kernel releases it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ..errors import SlmEdgeError
from ..files.read import read_table
from .store import Store

# A time that is nearly right is enough, and spares memory cards.
_EVERY_S: Final = 60
_held: dict[Path, int] = {}


@dataclass(frozen=True)
class Use:
    """One user of a blob or a version.

    Attributes:
        who: a pack's folder, or the name of something pulled.
        file_name: what its user calls the file.
        last: when it was used last, in UTC, as ISO 8601.
        running: a process uses it now; `command` is the one that began last.
    """

    who: str
    file_name: str
    last: str
    running: bool
    command: str


def mark_use(key: str, who: str, file_name: str = "", store: Store | None = None) -> None:
    """Notes that this process uses a blob (its sha256) or a version (its digest), until it ends.

    A store that cannot be written to, or locked, is used without a note: nothing is removed from it either.
    """
    store = store or Store()
    name = hashlib.sha256(who.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    path = store.folder / "state" / "used" / key / f"{name}.json"
    if path in _held or sys.platform == "win32":
        return
    import fcntl

    for gone in [path for path in _held if not path.exists()]:
        os.close(_held.pop(gone))
    # Not while things are removed: then what is looked for next is here or gone for good.
    with contextlib.suppress(OSError, SlmEdgeError), store.filling():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _held[path] = handle
        fcntl.flock(handle, fcntl.LOCK_SH)
        found = os.fstat(handle)
        if found.st_size == 0 or time.time() - found.st_mtime > _EVERY_S:
            said = {"who": who, "file_name": file_name, "command": " ".join(sys.argv[:2])[:200]}
            text = json.dumps(said).encode()
            os.pwrite(handle, text, 0)
            os.ftruncate(handle, len(text))


def uses_of(store: Store, key: str) -> list[Use]:
    """Who uses or used a blob or a version, the last one first."""
    uses = []
    for path in (store.folder / "state" / "used" / key).glob("*.json"):
        try:
            said = {name: str(value) for name, value in read_table(path).items()}
            last_s = path.stat().st_mtime
        except (OSError, SlmEdgeError):
            continue
        last = datetime.fromtimestamp(last_s, UTC).isoformat(timespec="seconds")
        use = Use(said.get("who", ""), said.get("file_name", ""), last, _is_held(path), said.get("command", ""))
        uses.append((last_s, use))
    return [use for _, use in sorted(uses, key=lambda row: -row[0])]


def forget_uses(store: Store, key: str) -> None:
    """Removes what was noted of something that is gone."""
    shutil.rmtree(store.folder / "state" / "used" / key, ignore_errors=True)


def _is_held(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        # Of our own process, too, the lock is another one: it belongs to the open file.
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
