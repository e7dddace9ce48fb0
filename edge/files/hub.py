"""Files of the Hugging Face hub, models' and data sets': only those that are wanted, resumable, all of one commit.

    found = hub_files("openai/gsm8k", lambda names: [name for name in names if "train" in name], kind="dataset")
    found.files      # paths in huggingface_hub's cache ($HF_HOME), so that nothing is fetched twice

$HF_ENDPOINT, $HF_TOKEN and offline mode work as everywhere.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ..console import note
from ..errors import InputError, UnreachableError

Kind = Literal["model", "dataset"]
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CLIENTS: Final = ("requests", "httpx", "httpx2")
_SAID: Final = {"model": "model", "dataset": "data set"}


@dataclass(frozen=True)
class HubFiles:
    """What was fetched.

    Attributes:
        folder: the snapshot's folder; files lie below it as in the repository.
        files: the wanted ones.
        commit: the commit they are of.
    """

    folder: Path
    files: list[Path]
    commit: str


def is_hub_name(source: Path) -> bool:
    """Whether SOURCE reads as `organisation/name` and is nothing on this disk."""
    return not source.exists() and _NAME.fullmatch(source.as_posix()) is not None


class HubAwayError(UnreachableError):
    """The hub cannot be reached, or is not to be asked (offline mode)."""


@contextlib.contextmanager
def hub_errors(name: str, kind: Kind = "model", revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises, whichever release and client it is, into our errors.

    Raises:
        InputError: there is no such repository or revision, or it is gated.
        HubAwayError: the hub cannot be reached.
        HubBusyError: it asks to wait.
        UnreachableError: it answers with another error.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # huggingface_hub's errors derive from those of the client it uses: requests, httpx or httpx2.
    unreachable: Any = [kind for kind in HfHubHTTPError.__mro__ if kind.__module__.partition(".")[0] in _CLIENTS][-1]
    said = _SAID[kind]
    try:
        yield
    except GatedRepoError:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        raise InputError(
            f"the {said} is gated: its owner wants its terms accepted first",
            where=name,
            hint=f"accept them at {page}, then set HF_TOKEN or run: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"the {said} has no revision {revision!r}", where=name) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"no such file or folder, and no such {said} on the hub (or it is private)",
            where=name,
            hint=f"check the spelling; for a private {said} set HF_TOKEN",
        ) from None
    except OfflineModeIsEnabled:
        raise HubAwayError("offline mode is on (HF_HUB_OFFLINE)", where=name) from None
    except LocalEntryNotFoundError:
        raise HubAwayError("the hub cannot be reached", where=name) from None
    except HfHubHTTPError as error:
        answer = getattr(error, "response", None)
        if getattr(answer, "status_code", None) == 429:
            raise HubBusyError(dict(getattr(answer, "headers", {})), name) from None
        raise InputError(f"the hub answers: {error}", where=name, hint="try again later") from None
    except unreachable as error:
        raise HubAwayError(f"the hub cannot be reached ({type(error).__name__})", where=name) from None


class HubBusyError(UnreachableError):
    """The hub answers 429; `headers` say how long it wants us to wait."""

    def __init__(self, headers: dict[str, str], name: str) -> None:
        self.headers = headers
        super().__init__(
            "the hub is asked too often", where=name, hint="try again later; with HF_TOKEN one may ask more"
        )


def hub_files(
    name: str, wanted: Callable[[list[str]], list[str]], *, kind: Kind = "model", revision: str | None = None
) -> HubFiles:
    """Fetches the wanted files of a repository where they are not in the cache yet.

    Files come one after the other in this thread, so that Ctrl-C ends at once; those that are whole are kept, and what
    was fetched of the last one if huggingface_hub keeps it (0.x does; its latest releases begin a file anew).

    Args:
        name: "organisation/name".
        wanted: chooses among the names of all files; may raise.
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        InputError: there is no such repository or revision, it is gated, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with hub_errors(name, kind, revision):
            # Any: each release names other classes of repositories.
            info: Any = HfApi().repo_info(name, repo_type=kind, revision=revision)
            files = wanted(sorted(entry.rfilename for entry in info.siblings or []))
            commit = str(info.sha)
            note(f"{name} at {commit}: {len(files)} files")
            paths = [Path(hf_hub_download(name, file, repo_type=kind, revision=commit)) for file in files]
            # Asked by its branch as well, now that all are there: the cache then knows what the branch is when offline.
            hf_hub_download(name, files[0], repo_type=kind, revision=revision)
            folder = paths[0]
            for _ in Path(files[0]).parts:
                folder = folder.parent
            return HubFiles(folder, paths, commit)
    except HubAwayError:
        return _cached(name, wanted, kind, revision)


def _cached(name: str, wanted: Callable[[list[str]], list[str]], kind: Kind, revision: str | None) -> HubFiles:
    """The hub is unreachable: what is in the cache may do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        raise InputError(
            f"no such file or folder; the hub cannot be reached and the {_SAID[kind]} is not in its cache",
            where=name,
            hint="give a local file or folder, or try again online (what was fetched so far is kept)",
        ) from None
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return HubFiles(folder, [folder / file for file in wanted(names)], folder.name)
