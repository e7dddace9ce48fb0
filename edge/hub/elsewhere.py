"""Files that other programs on this machine have already, by their sha256: huggingface_hub's cache and Ollama's.

for path in copies_of(sha256): ...      # to be read and linked, never written to
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import SlmEdgeError
from ..files.cache import user_path


def copies_of(sha256: str) -> Iterator[Path]:
    """The files that are named by this sha256; whether they are it is not looked at."""
    for folder in hub_caches():
        # A blob of huggingface_hub's cache has its sha256 for a name, where the hub keeps the file by it.
        yield from _files(folder, f"models--*/blobs/{sha256}")
    for folder in ollama_folders():
        yield from _files(folder, f"blobs/sha256-{sha256}")


def hub_caches() -> list[Path]:
    """Where huggingface_hub, and llama.cpp with it, keeps what it fetched."""
    named = [os.environ.get(name) for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE")]
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    usual = f"{home}/hub" if home else f"{cache}/huggingface/hub"
    return _folders([*named, usual])


def ollama_folders() -> list[Path]:
    """Where Ollama keeps its models: the user's, and those of its service."""
    return _folders([os.environ.get("OLLAMA_MODELS"), "~/.ollama/models", "/usr/share/ollama/.ollama/models"])


def _folders(names: list[str | None]) -> list[Path]:
    found = []
    for name in names:
        try:
            if name and (folder := user_path(name)).is_dir():
                found.append(folder)
        except (SlmEdgeError, OSError):
            continue
    return found


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from (path for path in folder.glob(pattern) if path.is_file())
    except OSError:
        return
