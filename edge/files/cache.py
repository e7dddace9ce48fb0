"""Where slm-edge keeps what it fetched or measured once, and the locks that its processes share.

The store holds packs and bases (`store/`), the cache what can be made again:

bases/SHA256.gguf   base models that earlier versions kept here; the next pull takes them over into the store
first-loads/        what llama.cpp was tried with and held (`llama/first_load.py`, `session/shelf.py`)
devices/            what was measured on this device (devices/)
locks/              held while a pack is changed (`pack/write.py`)
"""

import json
import os
import stat
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
    """The user's cache for slm-edge: `$SLM_EDGE_CACHE`, `$SLM_EDGE_HOME/cache`, else the platform's usual place.

    Not created here.
    """
    if own := os.environ.get("SLM_EDGE_CACHE"):
        return user_path(own)
    if home := os.environ.get("SLM_EDGE_HOME"):
        return user_path(home) / "cache"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "slm-edge"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "slm-edge"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "slm-edge"


def store_folder() -> Path:
    """Where packs and bases are kept: `$SLM_EDGE_HOME/store`, else `$SLM_EDGE_CACHE/store`, else with the user's data.

    Not created here. Whoever named another disk for the cache meant the bases.
    """
    if own := os.environ.get("SLM_EDGE_HOME") or os.environ.get("SLM_EDGE_CACHE"):
        return user_path(own) / "store"
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "slm-edge" / "store"
    if sys.platform == "win32":
        return cache_folder() / "store"
    return Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share") / "slm-edge" / "store"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise InputError("this user has no home folder to keep a cache in", hint="set SLM_EDGE_HOME") from None


def state_folder() -> Path:
    """Where the chat's history is: `$SLM_EDGE_HOME/state`, else `$XDG_STATE_HOME/slm-edge`, else below `~/.local`.

    Not created here.
    """
    if home := os.environ.get("SLM_EDGE_HOME"):
        return user_path(home) / "state"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "slm-edge"


def runtime_folder() -> Path:
    """Where running servers have their sockets: `$RUNTIME_DIRECTORY`, `$XDG_RUNTIME_DIR/slm-edge`, else below /tmp.

    It is this user's alone, and made here.

    Raises:
        InputError: it cannot be made, or is somebody else's.
    """
    own, runtime = os.environ.get("RUNTIME_DIRECTORY"), os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(own.partition(":")[0]) if own else Path(runtime) / "slm-edge" if runtime else None
    folder = folder or Path("/tmp") / f"slm-edge-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=folder) from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise InputError("is not this user's alone", where=folder, hint="set XDG_RUNTIME_DIR to a folder that is")
    return folder


def blob_path(sha256: str) -> Path:
    """Where the store keeps the file with this sha256."""
    return store_folder() / "blobs" / "sha256" / sha256


def old_base_path(sha256: str) -> Path:
    """Where earlier versions kept the base with this sha256."""
    return cache_folder() / "bases" / f"{sha256}.gguf"


def base_cache_path(sha256: str) -> Path:
    """Where the base model with this sha256 is, or will be; every pack that names it shares the file."""
    blob, old = blob_path(sha256), old_base_path(sha256)
    return old if not blob.exists() and old.is_file() else blob


def first_load_path(sha256: str) -> Path:
    """Where it is noted that llama.cpp loaded and used the file with this sha256."""
    return cache_folder() / "first-loads" / f"{sha256}.json"


def held_before(sha256: str, engine: str) -> bool:
    """Whether the cache says that what has this sha256 held with this engine."""
    try:
        said = json.loads(first_load_path(sha256).read_text(encoding="utf-8"))
        return bool(said["engine"] == engine)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remember_held(sha256: str, engine: str) -> None:
    """Says so from now on."""
    from .atomic import make_folder, write_json

    record = first_load_path(sha256)
    make_folder(record.parent)
    write_json(record, {"engine": engine})


def trust_folder() -> Path:
    """Where the trusted keys are: `$SLM_EDGE_TRUST`, else `$SLM_EDGE_HOME/trust`, else `~/.config/slm-edge/trust`.

    Not created here. It is apart from packs and from the cache, so that a service may read it and need not write it.
    """
    if own := os.environ.get("SLM_EDGE_TRUST"):
        return user_path(own)
    if home := os.environ.get("SLM_EDGE_HOME"):
        return user_path(home) / "trust"
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config") / "slm-edge" / "trust"
