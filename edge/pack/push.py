"""Puts a pack where others pull it from: a folder for any web server, or a repository of the hub.

    push(Pack.open("my-pack"), "hf:owner/my-pack")
    push(Pack.open("my-pack"), "/srv/www/packs/my-pack", with_base=True)

What is put there opens for others: its base is in it, or is named by a source on the web.
"""

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..console import note, progress
from ..errors import InputError, UnsupportedError
from ..files.aside import folder_beside
from ..files.atomic import atomic_folder, copy_file, make_folder
from ..files.hub import hub_errors
from ..files.read import sha256_file
from ..files.web import hub_endpoint, is_offline
from ..hub.reference import parse
from ..store.blobs import place
from ..store.store import Store
from ..trust.gate import signatures_of
from .manifest import PACK_FILE, Manifest, render
from .model_card import model_card
from .pack import Pack, verify_folder

CARD_FILE: Final = "README.md"
_WEB: Final = ("hub", "url")


@dataclass(frozen=True)
class Pushed:
    """What was put where.

    Attributes:
        reference: how others pull it; None for a folder, which has no address yet.
        files: paths that were put there.
    """

    place: str
    reference: str | None
    files: list[str]
    size_bytes: int


def push(pack: Pack, to: str, *, with_base: bool = False, private: bool = False, replace: bool = False) -> Pushed:
    """Puts a pack into a folder or a repository of the hub, which is made if it is not there.

    Args:
        to: a folder, or `hf:OWNER/REPO`.
        with_base: the base too; else it must be named by a source that others can use.
        private: of a new repository.
        replace: a pack that is in the folder already.

    Raises:
        DamagedError: the pack is not as it was built.
        InputError: others could not use it; the place is none, or is taken; the hub refuses.
        UnsupportedError: it is signed, and would have to be changed.
    """
    verify_folder(pack.folder)
    reference = parse(to)
    is_hub = reference.kind == "hub"
    if is_hub and (reference.file or reference.quant or reference.revision):
        raise InputError(f"{to!r} names more than a repository", hint="hf:OWNER/REPO")
    if reference.kind == "address":
        raise InputError(
            f"{to!r} cannot be written to",
            hint="push to a folder, and let your web server serve it; or to hf:OWNER/REPO",
        )
    manifest = _manifest(pack, with_base)
    card = model_card(pack, reference.text if is_hub else "https://…/pack.json")
    with ExitStack() as stack:
        if is_hub:
            make_folder(Store().folder)
            folder = stack.enter_context(folder_beside(Store().folder / "push"))
        else:
            folder = stack.enter_context(atomic_folder(to, replace=replace and (Path(to) / PACK_FILE).is_file()))
        files = _fill(folder, pack, manifest, card, listed=not is_hub)
        size_bytes = sum((folder / name).stat().st_size for name in files)
        if is_hub:
            _upload(reference.repo, folder, files, pack, private)
        else:
            verify_folder(folder)
    where = f"{hub_endpoint()}/{reference.repo}" if is_hub else str(Path(to).absolute())
    return Pushed(where, reference.text if is_hub else None, files, size_bytes)


def _manifest(pack: Pack, with_base: bool) -> Manifest:
    """What pack.json will say there: the pack's own, with or without the base."""
    manifest, base = pack.manifest, pack.base
    if not with_base and not any(source["kind"] in _WEB for source in base.sources):
        raise InputError(
            "others could not use it: no source of its base is on the web",
            where=pack.folder,
            hint="--with-base puts the base in; or build it again with --source hub:OWNER/REPO/FILE",
        )
    if pack.carries_base == with_base:
        return manifest
    if signatures_of(pack.folder):
        change = "take the base in" if with_base else "leave the base out"
        raise UnsupportedError(
            f"is signed as it is; to {change} would change it",
            where=pack.folder,
            hint="leave --with-base out"
            if with_base
            else "push it --with-base, or build it without its base and sign that",
        )
    files = {path: sha256 for path, sha256 in manifest.files.items() if path != base.file_name}
    if with_base:
        files[base.file_name] = base.sha256
    return dataclasses.replace(manifest, files=dict(sorted(files.items())))


def _fill(folder: Path, pack: Pack, manifest: Manifest, card: str, *, listed: bool) -> list[str]:
    """Puts the files into a folder; returns their paths.

    Args:
        listed: the page becomes a file of the pack, as all in a folder are; on the hub it lies beside it.
    """
    signatures = signatures_of(pack.folder)
    for path in manifest.files:
        source = pack.base_path() if path == pack.base.file_name else pack.folder / path
        _put(source, folder / path, copied=listed)
    names = list(manifest.files)
    if not listed or (not signatures and CARD_FILE not in names):
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        names.append(CARD_FILE)
        if listed:
            files = {**manifest.files, CARD_FILE: sha256_file(folder / CARD_FILE)}
            manifest = dataclasses.replace(manifest, files=dict(sorted(files.items())))
    if signatures:
        for file in (pack.folder / PACK_FILE, *signatures):
            _put(file, folder / file.name, copied=True)
        names += [file.name for file in signatures]
    else:
        (folder / PACK_FILE).write_text(render(manifest.as_dict()), encoding="utf-8")
    return sorted({*names, PACK_FILE})


def _put(source: Path, dest: Path, *, copied: bool) -> None:
    """Links for a moment, or copies: who changes the pack later must not change what was pushed."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if copied:
        copy_file(source, dest)
    else:
        place(source, dest)


def _upload(repo: str, folder: Path, files: list[str], pack: Pack, private: bool) -> None:
    """One commit with all files, and none of an earlier version beside them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if is_offline():
        raise InputError("offline mode is on (HF_HUB_OFFLINE)", where=repo)
    if get_token() is None:
        raise InputError("the hub takes nothing without a token", where=repo, hint="set HF_TOKEN, or: hf auth login")
    disable_progress_bars()
    api = HfApi(endpoint=hub_endpoint())
    total = sum((folder / name).stat().st_size for name in files)
    with hub_errors(repo), progress(f"pushing to {repo}", total, "bytes") as advance:
        api.create_repo(repo, private=private, exist_ok=True)
        info: Any = api.model_info(repo)
        there = {str(entry.rfilename) for entry in info.siblings or []}
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in files]
        gone = [name for name in sorted(there - set(files)) if name.startswith("adapters/")]
        operations += [CommitOperationDelete(name) for name in gone]
        api.create_commit(repo, operations, commit_message=f"{pack.name}: {len(pack.adapters)} adapters")
        advance(total)
    if gone:
        note(f"removed there: {', '.join(gone)}")
