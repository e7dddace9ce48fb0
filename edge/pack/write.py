"""Builds and changes packs. Everything is checked before anything is written, and nothing half-written is ever seen.

build_pack("my-pack", base=Path("base.gguf"), adapters=[NewAdapter("math", Path("math.gguf"))])
add_adapter(Path("my-pack"), NewAdapter("code", Path("code.gguf")))
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..console import Advance, note, progress
from ..errors import DoesNotFitError, InputError, SlmEdgeError
from ..files.atomic import atomic_file, atomic_folder, copy_file, write_json
from ..files.read import sha256_file
from ..gguf.adapter import AdapterInfo, check_adapter
from ..gguf.base import BaseInfo
from ..gguf.chat_template import OTHER_TEMPLATE, ChatTemplate
from ..trust.gate import signatures_of
from ..written import check_name, did_you_mean, human_bytes
from .card import TaskCard, own_card
from .leftovers import changing, remove_pack_leftovers
from .manifest import (
    NOT_LISTED,
    PACK_FILE,
    ROUTER_FILE,
    AdapterRow,
    BaseRef,
    Manifest,
    check_source,
    is_safe_path,
    read_manifest,
    render,
)
from .pack import ADAPTERS_FOLDER, Pack

_SPARE_BYTES = 1 << 20
# Where the ONNX forms of adapters lie (`onnx/in_pack.py`); they go with their adapter.
ONNX_ADAPTERS = "onnx/adapters"


@dataclass(frozen=True)
class NewAdapter:
    """An adapter to be packed.

    Attributes:
        name: what it is called in the pack.
        file: the GGUF LoRA.
        card: None takes task name and prompt prefix from the file.
        card_changes: values of the card that are put in place of its own.
    """

    name: str
    file: str | os.PathLike[str]
    card: TaskCard | None = None
    card_changes: Mapping[str, Any] = field(default_factory=dict)

    def final_card(self, info: AdapterInfo) -> TaskCard:
        """The card that goes into the pack; InputError if its grammar or schema cannot be used."""
        card = dataclasses.replace(self.card or own_card(info, self.name), **self.card_changes)
        card.rules()
        return card


def build_pack(
    dest: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    adapters: Sequence[NewAdapter] = (),
    name: str | None = None,
    default_adapter: str | None = None,
    copy_base: bool = True,
    sources: Sequence[Mapping[str, str]] = (),
    include: Sequence[str | os.PathLike[str]] = (),
    router: str | os.PathLike[str] | None = None,
    replace: bool = False,
) -> Pack:
    """Builds a pack in a new folder.

    Args:
        dest: must not exist, or be an empty folder.
        replace: `dest` may be a pack; it stays until the new one is whole. Any other folder is refused.
        base: the GGUF that the adapters are for.
        name: the folder's name by default.
        default_adapter: a name among `adapters`, "auto" with a router, or None for the base alone.
        copy_base: put the base into the pack. Without it `sources` say where it can be had; its own path if none.
        include: further files and folders, such as licences; copied to the pack's top.
        router: the file that `--adapter auto` chooses by, already checked.

    Raises:
        InputError: the base or any adapter does not pass its checks, names clash, or `dest` exists; all are named.
        DoesNotFitError: the disk has no room for it.
        DamagedError, UnsupportedError: as `GgufFile.open` raises them.
    """
    dest, base = Path(dest), Path(base)
    faults = [fault for source in sources for fault in check_source(source)]
    faults += _name_faults([adapter.name for adapter in adapters])
    known = [adapter.name for adapter in adapters] + ["auto"] * (router is not None)
    if default_adapter is not None and default_adapter not in known:
        faults.append(f"the default adapter {default_adapter!r} is not among the adapters")
    if not is_safe_path(base.name) or not base.name.endswith(".gguf"):
        faults.append(f"the base's file name {base.name!r} is not a plain name that ends in .gguf")
    own_names = (*NOT_LISTED, ADAPTERS_FOLDER, ROUTER_FILE, base.name)
    if base.name in own_names[:-1] or any(Path(path).name in own_names for path in include):
        faults.append(f"{', '.join(own_names[:-1])} and {base.name} are the pack's own names")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())) and not (replace and (dest / PACK_FILE).is_file()):
        faults.append(
            "something that is not a pack is already there"
            if replace
            else "something is already there; --force replaces a pack"
        )
    if faults:
        raise InputError("the pack cannot be built", where=dest, problems=faults)
    info = BaseInfo.open(base)
    checked = _check_all(adapters, info)
    cards = [adapter.final_card(adapter_info) for adapter, adapter_info in checked]
    _check_template(info, cards)
    extras = _included([Path(path) for path in include])
    if not copy_base and not sources:
        sources = ({"kind": "path", "path": str(base.absolute())},)
    size_bytes = info.file.size_bytes
    copies = [(Path(adapter.file), adapter_path(adapter.name)) for adapter in adapters]
    copies += [(path, inside) for inside, path in extras.items()]
    copies += [(Path(router), ROUTER_FILE)] if router else []
    total_bytes = size_bytes + sum(path.stat().st_size for path, _ in copies)
    written_bytes = total_bytes - (0 if copy_base else size_bytes)
    _check_room(dest.absolute().parent, written_bytes)
    with progress("building the pack", total_bytes, "bytes") as advance, atomic_folder(dest, replace=replace) as folder:
        files: dict[str, str] = {}
        for path, inside in copies:
            files[inside] = _copy(path, folder / inside, advance)
        if copy_base:
            files[base.name] = base_sha256 = _copy(base, folder / base.name, advance)
        else:
            base_sha256 = sha256_file(base, advance)
        rows = []
        for (adapter, adapter_info), card in zip(checked, cards, strict=True):
            row = _row(adapter.name, files, adapter_info.size_bytes)
            write_json(folder / row.card, card.as_dict())
            files[row.card] = sha256_file(folder / row.card)
            rows.append(row)
        ref = BaseRef(base.name, base_sha256, size_bytes, info.fingerprint, tuple(sources))
        manifest = Manifest(name or dest.absolute().name, default_adapter, ref, tuple(rows), files)
        _write_manifest(folder, manifest)
        Pack.open(folder)
    return Pack.open(dest)


def _check_template(info: BaseInfo, cards: Sequence[TaskCard]) -> None:
    """Raises InputError where no conversation could be had with a base: better here than on the device."""
    try:
        template = ChatTemplate.of(info.file)
        template.check()
        for card in cards:
            if card.template:
                template.check_arguments(card.template)
                template.check(card.template)
    except InputError as error:
        raise InputError(error.message, where=info.file.path, hint=error.hint or OTHER_TEMPLATE) from None


def add_adapter(folder: Path, new: NewAdapter, make_default: bool = False, replace: bool = False) -> Pack:
    """Adds an adapter to a pack; a pack without adapters takes it as its default.

    Args:
        replace: the pack's adapter of that name may go for it, with its ONNX form; its place and, without a new one,
            its card stay. Who opens the pack meanwhile finds the old adapter or the new one.

    Raises:
        InputError: the name is taken, or the adapter does not pass its checks or belongs to another base.
        DamagedError: the pack, or the adapter's file, is damaged.
    """
    with changing(folder):
        pack = Pack.open(folder)
        old = next((row for row in pack.manifest.adapters if replace and row.name == new.name), None)
        others = [row.name for row in pack.manifest.adapters if row is not old]
        if faults := [f"it has a {new.name!r} already"] if new.name in others else _name_faults([*others, new.name]):
            hint = "--replace puts this one in its place" if new.name in others else None
            raise InputError("the adapter cannot be added", where=folder, problems=faults, hint=hint)
        if old is not None and new.card is None:
            new = dataclasses.replace(new, card=pack.adapters[old.name].card)
        info = BaseInfo.open(pack.base_path())
        adapter_info = check_adapter(new.file, info)
        card = new.final_card(adapter_info)
        if card.template:
            _check_template(info, [card])
        _check_room(folder, adapter_info.size_bytes)
        row = _row(new.name, {}, adapter_info.size_bytes, _free_stem(new.name, pack.manifest.files))
        gone = [] if old is None else _files_of(pack.manifest, old)
        files = {path: sha256 for path, sha256 in pack.manifest.files.items() if path not in gone}
        (folder / ADAPTERS_FOLDER).mkdir(exist_ok=True)
        try:
            with progress(f"adding {new.name}", adapter_info.size_bytes, "bytes") as advance:
                with atomic_file(folder / row.file) as aside:
                    files[row.file] = _copy(Path(new.file), aside, advance)
                write_json(folder / row.card, card.as_dict())
            files[row.card] = sha256_file(folder / row.card)
            default = new.name if make_default or not pack.adapters else pack.default_adapter
            row, before = dataclasses.replace(row, sha256=files[row.file]), pack.manifest.adapters
            rows = (*before, row) if old is None else tuple(row if other is old else other for other in before)
            changed = dataclasses.replace(pack.manifest, default_adapter=default, adapters=rows, files=files)
            _write_manifest(folder, changed)
        except BaseException:
            _tidy(folder)
            raise
        _remove(folder, gone)
        return Pack.open(folder)


def add_files(folder: Path, files: Mapping[str, Path], remove: Callable[[str], bool] = lambda name: False) -> Pack:
    """Puts further files into a pack: its ONNX form, proofs, notices. Files of the same names are replaced.

    Args:
        files: path inside the pack -> file to copy.
        remove: whether a path of before goes; asked of those that are not among `files`.

    Raises:
        InputError: a path that a pack may not name.
        DoesNotFitError: the disk has no room.
        DamagedError: the pack is damaged.
    """
    wrong = [name for name in files if not is_safe_path(name) or name in NOT_LISTED]
    if wrong:
        raise InputError(
            "files cannot be added", where=folder, problems=[f"{name!r}: no path for a pack" for name in wrong]
        )
    with changing(folder):
        pack = Pack.open(folder)
        size_bytes = sum(path.stat().st_size for path in files.values())
        _check_room(folder, size_bytes)
        gone = [name for name in pack.manifest.files if name not in files and remove(name)]
        kept = {name: sha256 for name, sha256 in pack.manifest.files.items() if name not in (*gone, *files)}
        if len(kept) < len(pack.manifest.files):
            # The pack forgets first what will be replaced: whatever happens between, it opens.
            _write_manifest(folder, dataclasses.replace(pack.manifest, files=kept))
        try:
            with progress("adding", size_bytes, "bytes") as advance:
                for name, path in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with atomic_file(folder / name) as aside:
                        kept[name] = _copy(path, aside, advance)
            _write_manifest(folder, dataclasses.replace(pack.manifest, files=kept))
        except BaseException:
            _tidy(folder)
            raise
        _remove(folder, gone)
        return Pack.open(folder)


def _remove(folder: Path, gone: Sequence[str]) -> None:
    """Removes files that the pack forgot, and the folders on the way to them where nothing else is in them."""
    for name in gone:
        (folder / name).unlink(missing_ok=True)
        for parent in (folder / name).parents:
            if parent == folder:
                break
            with contextlib.suppress(OSError):
                parent.rmdir()


def remove_adapter(folder: Path, name: str) -> Pack:
    """Removes an adapter from a pack. When it was the default, the first one left is, or none.

    Raises:
        InputError: there is no adapter of that name.
        DamagedError: the pack is damaged.
    """
    with changing(folder):
        pack = Pack.open(folder)
        if name not in pack.adapters:
            there = ", ".join(did_you_mean(name, pack.adapters)) or "none"
            raise InputError(f"the pack has no adapter {name!r}; it has {there}", where=folder)
        gone = next(row for row in pack.manifest.adapters if row.name == name)
        rows = tuple(row for row in pack.manifest.adapters if row.name != name)
        default = pack.default_adapter
        if default == name:
            default = rows[0].name if rows else None
        unused = _files_of(pack.manifest, gone)
        files = {path: sha256 for path, sha256 in pack.manifest.files.items() if path not in unused}
        # First the pack forgets the files, then they go: whatever happens between, the pack opens.
        _write_manifest(folder, dataclasses.replace(pack.manifest, default_adapter=default, adapters=rows, files=files))
        _remove(folder, unused)
        return Pack.open(folder)


def adapter_path(name: str) -> str:
    """Where a pack keeps the adapter of that name."""
    return f"{ADAPTERS_FOLDER}/{name}.gguf"


def _tidy(folder: Path) -> None:
    """After a change that failed: pack.json is written last, and what it does not name is nobody's.

    Nothing raised here may hide the reason of the failure.
    """
    with contextlib.suppress(OSError, SlmEdgeError):
        remove_pack_leftovers(folder, read_manifest(folder).files)


def _name_faults(names: Sequence[str]) -> list[str]:
    faults = []
    for name in names:
        try:
            check_name(name, "an adapter")
        except InputError as error:
            faults.append(f"{error.message}: {error.hint}")
    lower = [name.lower() for name in names]
    twice = sorted({name for name in names if lower.count(name.lower()) > 1})
    if twice:
        faults.append(f"there are two adapters of one name: {', '.join(twice)} (capitals do not tell them apart)")
    return faults


def _check_all(adapters: Sequence[NewAdapter], base: BaseInfo) -> list[tuple[NewAdapter, AdapterInfo]]:
    """Checks every adapter; one that fails is raised as it is, several together."""
    checked, errors = [], []
    for adapter in adapters:
        try:
            checked.append((adapter, check_adapter(adapter.file, base)))
        except SlmEdgeError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError("several adapters cannot be packed", problems=[str(error) for error in errors])
    return checked


def _included(include: Sequence[Path]) -> dict[str, Path]:
    """Path inside the pack -> file, for every file and every file of every folder."""
    found: dict[str, Path] = {}
    faults = [f"{top}: no such file or folder" for top in include if not top.exists()]
    for top in include:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            inside = path.relative_to(top.parent).as_posix()
            if path.is_dir() and not path.is_symlink():
                continue
            if path.is_symlink() or not path.is_file() or not is_safe_path(inside):
                faults.append(f"{path}: a link, no plain file, or a name that a pack does not take")
            elif inside in found:
                faults.append(f"{path}: there are two files {inside}")
            found[inside] = path
    if faults:
        raise InputError("files cannot be included", problems=faults)
    return found


def _check_room(folder: Path, needed_bytes: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise DoesNotFitError(
            f"the disk has {human_bytes(free_bytes)} free, {human_bytes(needed_bytes)} are needed", where=folder
        )


def _copy(source: Path, dest: Path, advance: Advance) -> str:
    """Copies a file and gives the sha256 of what was written."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    copy_file(source, dest, advance)
    return sha256_file(dest)


def _row(name: str, files: Mapping[str, str], size_bytes: int, stem: str | None = None) -> AdapterRow:
    file = adapter_path(stem or name)
    return AdapterRow(name, file, files.get(file, ""), size_bytes, f"{ADAPTERS_FOLDER}/{stem or name}.json")


def _free_stem(name: str, taken: Iterable[str]) -> str:
    """How an adapter's files are called: as it is, or with a number where the pack has those (in any capitals)."""
    lower = {path.lower() for path in taken}
    stems = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(2)))
    return next(stem for stem in stems if adapter_path(stem).lower() not in lower)


def _files_of(manifest: Manifest, adapter: AdapterRow) -> list[str]:
    """The files that a pack has for an adapter alone: file, card and ONNX form."""
    kept = {path for row in manifest.adapters if row is not adapter for path in (row.file, row.card)}
    forms = [path for path in manifest.files if path.startswith(f"{ONNX_ADAPTERS}/{adapter.name}.onnx_adapter")]
    return [path for path in (adapter.file, adapter.card, *forms) if path not in kept]


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    manifest = dataclasses.replace(manifest, files=dict(sorted(manifest.files.items())))
    if manifest.default_adapter == "auto" and ROUTER_FILE not in manifest.files:
        # Nothing is left to choose by, for a moment or for good.
        first = next((row.name for row in manifest.adapters), None)
        manifest = dataclasses.replace(manifest, default_adapter=first)
    # What was signed is another text than what follows: without its signature the pack is unsigned, not damaged.
    for path in signatures_of(folder):
        path.unlink()
        note(f"the pack changes: its signature {path.name} is removed; slm-edge pack sign signs it again")
    with atomic_file(folder / PACK_FILE) as aside:
        aside.write_bytes(render(manifest.as_dict()).encode())
