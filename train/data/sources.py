"""Where data and base come from: a local file or folder, or a name on the Hugging Face hub, by the same words.

gsm8k/train.jsonl                               a local file
databricks/databricks-dolly-15k                 the one data file of a hub data set, or those named train
openai/gsm8k:main/train-*.parquet               those files of it
openai/gsm8k@e53f048:main/train-*.parquet       at a commit, tag or branch

meta-llama/Llama-3.2-1B-Instruct                a hub checkpoint as a base
some-one/some-base-GGUF:base-Q4_K_M.gguf        a GGUF file of a hub repository
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...edge.errors import InputError
from ...edge.files.hub import Kind, hub_files, is_hub_name

DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_CHECKPOINT = ("*.json", "model*.safetensors", "tokenizer.model", "chat_template.jinja")


@dataclass(frozen=True)
class Source:
    """A file or folder, and what records call it: its own name, or that on the hub."""

    path: Path
    name: str


def find_data(text: str, folder: Path | None = None) -> list[Source]:
    """The data files that `text` means.

    Args:
        text: see above.
        folder: where relative paths begin; None: the working folder.

    Raises:
        InputError: no such file or data set, or it isn't clear which of a data set's files are meant.
    """
    local = (folder or Path()) / text
    if local.is_file():
        return [Source(local, local.name)]
    if local.is_dir():
        raise InputError("is a folder; name its data files", where=local)
    return _from_hub(text, local, "dataset", lambda names: _data_files(text, names))


def find_base(text: str, folder: Path | None = None) -> Source:
    """The GGUF file or the checkpoint folder that `text` means.

    Raises:
        InputError: no such file, folder or model.
    """
    local = (folder or Path()) / text
    if local.exists():
        return Source(local, str(local) if local.is_dir() else local.name)

    def checkpoint(names: list[str]) -> list[str]:
        top = [name for name in names if "/" not in name]
        files = [name for name in top if any(fnmatch.fnmatchcase(name, part) for part in _CHECKPOINT)]
        if not any(name.endswith(".safetensors") for name in files):
            raise InputError("the model has no safetensors on the hub", where=text)
        return files

    name, _, pattern = text.partition(":")
    if not pattern:
        return Source(_from_hub(text, local, "model", checkpoint)[0].path.parent, name.partition("@")[0])
    found = _from_hub(text, local, "model", lambda names: _matching(text, names))
    if len(found) != 1 or found[0].path.suffix != ".gguf":
        raise InputError("must be one GGUF file", where=text, problems=[source.name for source in found])
    return Source(found[0].path, found[0].path.name)


def _from_hub(text: str, local: Path, kind: Kind, wanted: Callable[[list[str]], list[str]]) -> list[Source]:
    name, _, _ = text.partition(":")
    name, _, revision = name.partition("@")
    looks_local = ":" not in text and text.endswith((*DATA_SUFFIXES, ".gguf", ".txt", ".csv"))
    if looks_local or not is_hub_name(Path(name)):
        raise InputError("no such file, and not a name on the hub (organisation/name)", where=local)
    found = hub_files(name, wanted, kind=kind, revision=revision or None)
    return [Source(path, f"{name}@{found.commit}:{path.relative_to(found.folder).as_posix()}") for path in found.files]


def _matching(text: str, names: list[str]) -> list[str]:
    pattern = text.partition(":")[2]
    files = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not files:
        raise InputError(f"no file fits {pattern!r}", where=text, problems=names)
    return files


def _data_files(text: str, names: list[str]) -> list[str]:
    """The files of a data set that are meant; without a pattern those of its one training split."""
    if ":" in text:
        return _matching(text, names)
    data = [name for name in names if name.endswith(DATA_SUFFIXES) and name != "dataset_infos.json"]
    files = [name for name in data if "train" in PurePosixPath(name).name] or data
    if len(files) == 1 or (files and len({PurePosixPath(name).parent for name in files}) == 1 and files != data):
        return files
    raise InputError(
        "it isn't clear which of its files to train on" if files else "has no data files",
        where=text,
        problems=files or names,
        hint=f"name them: {text}:PATTERN, as {text}:{files[0] if files else 'data/train-*.parquet'}",
    )
