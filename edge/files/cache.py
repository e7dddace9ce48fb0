"""Where slm-edge keeps what it fetched or measured once, and the locks that its processes share.

bases/SHA256.gguf   base models (`pack/pull.py`)
first-loads/        files that llama.cpp was tried with (`llama/first_load.py`)
devices/            what was measured on this device (devices/)
locks/              held while a pack is changed (`pack/write.py`)
"""

import os
import sys
from pathlib import Path

from ..errors import InputError

# Of a path, what Linux takes; others take less, and say so themselves
MOST_PATH_BYTES = 4096


def user_path(text: str) -> Path:
    """The path that a pack, a conversation or the environment names, with `~` as the user's folder.

    Raises:
        InputError: no system has such a path: an unknown user, a NUL, half a surrogate pair, too long.
    """
    try:
        path = Path(text).expanduser()
        if not text or "\0" in text or len(str(path).encode("utf-8", "surrogateescape")) > MOST_PATH_BYTES:
            raise ValueError
    except (RuntimeError, ValueError):
        raise InputError(f"{text[:200]!r} is no path", hint="~NAME is the folder of a user of this machine") from None
    return path


def cache_folder() -> Path:
    """The user's cache for slm-edge: `$SLM_EDGE_CACHE`, else the platform's usual place. Not created here."""
    own = os.environ.get("SLM_EDGE_CACHE")
    if own:
        return user_path(own)
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "slm-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "slm-edge"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "slm-edge"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise InputError("this user has no home folder to keep a cache in", hint="set SLM_EDGE_CACHE") from None


def state_folder() -> Path:
    """Where the chat's history is: `$XDG_STATE_HOME/slm-edge`, else `~/.local/state/slm-edge`. Not created here."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "slm-edge"


def base_cache_path(sha256: str) -> Path:
    """Where the cache keeps the base model with this sha256; every pack that names it shares the file."""
    return cache_folder() / "bases" / f"{sha256}.gguf"


def first_load_path(sha256: str) -> Path:
    """Where it is noted that llama.cpp loaded and used the file with this sha256."""
    return cache_folder() / "first-loads" / f"{sha256}.json"
