"""Which machine this is, for rollouts: an id that is drawn once and never leaves it.

bucket_percent(release.seed, machine_id()) < release.percent
"""

import contextlib
import hashlib
import secrets
from pathlib import Path
from typing import Final

from ..files.atomic import atomic_file, locked, make_folder
from ..files.cache import state_folder

_ID_FILE: Final = "machine-id"
_SYSTEM: Final = Path("/etc/machine-id")


def machine_id() -> str:
    """This machine's id, drawn when it is first asked for.

    The system's own is mixed in, because a memory card that was copied with ours has another of these at least; both
    together are the same only where both were copied.
    """
    path = state_folder() / _ID_FILE
    if not path.is_file():
        make_folder(path.parent)
        with locked(path.with_suffix(".lock")):
            if not path.is_file():
                with atomic_file(path) as aside:
                    aside.write_text(secrets.token_hex(16), encoding="ascii")
    system = ""
    with contextlib.suppress(OSError):
        system = _SYSTEM.read_text(encoding="ascii", errors="replace").strip()
    return hashlib.sha256(f"{path.read_text(encoding='ascii')} {system}".encode()).hexdigest()


def bucket_percent(seed: str, machine: str) -> float:
    """Where a machine stands among all, from 0 to 100: by a hash, so that each release draws anew and nobody counts."""
    digest = hashlib.sha256(f"{seed} {machine}".encode()).digest()
    return 100 * int.from_bytes(digest[:4], "big") / 2**32
