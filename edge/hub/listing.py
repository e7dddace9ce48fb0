"""What lies in a repository of the hub at one commit: names, sizes, sha256.

listing = list_repository("org/tiny-GGUF", None)
listing.commit, listing.find("tiny.Q4_K_M.gguf")
"""

import email.message
import time
import urllib.error
from dataclasses import dataclass
from typing import Any, Final

from ..console import note
from ..errors import DamagedError, InputError
from ..files.hub import HubAwayError, HubBusyError, hub_errors
from ..files.web import OFFLINE, hub_endpoint, is_offline, wait_s

TRIES: Final = 4
MOST_FILES: Final = 100_000


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        sha256: of files that the hub keeps by it (LFS, xet); None for small ones, whose git id is `blob_id`.
    """

    path: str
    size_bytes: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Listing:
    """A repository's files at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]

    def find(self, path: str) -> HubFile | None:
        """The file of that path."""
        return next((file for file in self.files if file.path == path), None)

    def names(self, ending: str) -> list[str]:
        """The paths that end so, capitals or not."""
        return [file.path for file in self.files if file.path.lower().endswith(ending)]


def list_repository(repo: str, revision: str | None) -> Listing:
    """Asks the hub what a repository holds; a branch or tag is resolved to its commit.

    Raises:
        InputError: there is no such repository or revision, or it is gated.
        HubAwayError: the hub cannot be reached, or offline mode is on.
        HubBusyError: it asks to wait longer than we do.
        DamagedError: what it says makes no sense.
    """
    if is_offline():
        # huggingface_hub looks at it when it is imported alone.
        raise HubAwayError(OFFLINE, where=f"hf:{repo}")
    from huggingface_hub import HfApi

    for last in (*[False] * (TRIES - 1), True):
        try:
            with hub_errors(repo, "model", revision):
                info: Any = HfApi(endpoint=hub_endpoint()).model_info(repo, revision=revision, files_metadata=True)
            return _listing(repo, info)
        except HubBusyError as error:
            pause_s = _asked_s(error)
            if last or pause_s > 60:
                raise
            note(f"the hub asks to wait {pause_s:.0f} s …")
            time.sleep(pause_s)
    raise AssertionError("unreachable")


def _asked_s(error: HubBusyError) -> float:
    headers = email.message.Message()
    for name, value in error.headers.items():
        headers[name] = value
    return wait_s(urllib.error.HTTPError("", 429, "", headers, None), 2.0, most_s=1e9)


def _listing(repo: str, info: Any) -> Listing:
    commit, siblings = str(info.sha or ""), list(info.siblings or [])
    if not commit.isalnum() or len(siblings) > MOST_FILES:
        raise DamagedError("the hub says nothing sensible of it", where=repo)
    return Listing(repo, commit, tuple(_file(entry) for entry in siblings))


def _file(entry: Any) -> HubFile:
    lfs: Any = entry.lfs
    sha256 = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
    size_bytes = entry.size if isinstance(entry.size, int) else -1
    return HubFile(str(entry.rfilename), size_bytes, sha256, str(entry.blob_id or ""))


def no_such_file(listing: Listing, path: str) -> InputError:
    """The error for a file that a repository does not hold."""
    ending = path[path.rfind(".") :] if "." in path else ""
    there = listing.names(ending)[:20] or [file.path for file in listing.files[:20]]
    return InputError(f"holds no file {path!r}", where=f"hf:{listing.repo}", problems=there)
