"""Fetches a checkpoint from the Hugging Face hub: only what an export needs (`edge.files.hub` does the fetching).

folder = hub_checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct")
"""

import fnmatch
from pathlib import Path
from typing import Final

from ...edge.errors import InputError
from ...edge.files.hub import hub_files

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


def hub_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, fetched where it is not in the cache yet.

    Args:
        name: "organisation/model".
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        InputError: there is no such model, it is gated, it has no safetensors, or the hub cannot be reached.
    """

    def wanted(names: list[str]) -> list[str]:
        files = [file for file in names if any(fnmatch.fnmatchcase(file, pattern) for pattern in _WANTED)]
        if not any(file.endswith(".safetensors") for file in files):
            raise InputError("the model has no safetensors on the hub", where=name)
        return files

    return hub_files(name, wanted, revision=revision).folder
