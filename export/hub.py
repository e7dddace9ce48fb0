"""Fetches a checkpoint from the Hugging Face hub: only what an export needs, resumable, one commit for all files.

    folder = hub_checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct")

Files lie in huggingface_hub's own cache ($HF_HOME), so that nothing is fetched twice; $HF_ENDPOINT, $HF_TOKEN and
offline mode work as everywhere.
"""

import fnmatch
import re
import sys
from pathlib import Path
from typing import Final

from ..edge.console import note
from ..edge.errors import InputError

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED: Final = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
)


def is_hub_name(source: Path) -> bool:
    """Whether SOURCE reads as `organisation/model` and is nothing on this disk."""
    return not source.exists() and _NAME.fullmatch(source.as_posix()) is not None


def hub_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, fetched where it is not in the cache yet.

    Files come one after the other in this thread, so that Ctrl-C ends at once; what was fetched of a file is kept.

    Args:
        name: "organisation/model".
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        InputError: there is no such model, it is gated, it has no safetensors, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from requests.exceptions import RequestException

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        info = HfApi().model_info(name, revision=revision)
        files = sorted(
            entry.rfilename
            for entry in info.siblings or []
            if any(fnmatch.fnmatchcase(entry.rfilename, pattern) for pattern in _WANTED)
        )
        if not any(file.endswith(".safetensors") for file in files):
            raise InputError("the model has no safetensors on the hub", where=name)
        note(f"{name} at {info.sha}: {len(files)} files")
        paths = [Path(hf_hub_download(name, file, revision=info.sha)) for file in files]
        # Asked by its branch as well, now that all are there: the cache then knows what the branch is when offline.
        hf_hub_download(name, files[0], revision=revision)
        return paths[0].parent
    except GatedRepoError:
        raise InputError(
            "the model is gated: its owner wants its terms accepted first",
            where=name,
            hint=f"accept them at https://huggingface.co/{name}, then set HF_TOKEN or run: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"the model has no revision {revision!r}", where=name) from None
    except RepositoryNotFoundError:
        raise InputError(
            "no such file or folder, and no such model on the hub (or it is private)",
            where=name,
            hint="check the spelling; for a private model set HF_TOKEN",
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        pass
    except HfHubHTTPError as error:
        raise InputError(f"the hub answers: {error}", where=name, hint="try again later") from None
    except RequestException:
        pass
    # Unreachable: what is in the cache may do.
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError):
        raise InputError(
            "no such file or folder; the hub cannot be reached and the model is not in its cache",
            where=name,
            hint="give a folder, or try again online (what was fetched so far is kept)",
        ) from None
