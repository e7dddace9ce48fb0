"""Opens and verifies packs: a folder with adapters, their task cards, and a base or where to get it.

    pack = Pack.open("my-pack")             # Pack.open(None) is the starter pack
    pack.adapters["math"].card.system
    pack.base_path()                        # the base, in the pack or in the store

What lies in a pack's folder:

    pack.json           the base, the adapters, the sha256 of every file, and a seal over itself
    adapters/NAME.gguf  the adapters
    adapters/NAME.json  their task cards
    BASE.gguf           the base, when the pack carries it
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import DamagedError, InputError, SlmEdgeError
from ..files.cache import base_cache_path, store_folder
from ..files.read import loads_json, read_bytes, sha256_file
from ..trust.gate import OMS_FILE, admit, signatures_of
from ..written import did_you_mean
from .card import TaskCard
from .manifest import (
    NOT_LISTED,
    PACK_FILE,
    BaseRef,
    Manifest,
    parse_manifest,
    raw_manifest,
    read_manifest,
    render,
)

if TYPE_CHECKING:
    from ..store.version import Origin, Version

ADAPTERS_FOLDER: Final = "adapters"


@dataclass(frozen=True)
class PackedAdapter:
    """One adapter of a pack."""

    name: str
    path: Path
    sha256: str
    size_bytes: int
    card: TaskCard


@dataclass(frozen=True)
class Pack:
    """An open pack.

    Attributes:
        default_adapter: used when none is named; "auto": the router chooses for each prompt; None: the base alone.
        adapters: by name, in the order of pack.json.
        manifest: pack.json as it stands.
    """

    folder: Path
    name: str
    default_adapter: str | None
    base: BaseRef
    adapters: dict[str, PackedAdapter]
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | None, verify: bool = False) -> "Pack":
        """Opens a pack. pack.json and the task cards are checked to the byte, other files by their size at most.

        Args:
            folder: None opens the starter pack.
            verify: check every byte, as `slm-edge pack verify` does.

        Raises:
            InputError: there is no pack, or pack.json or a card is not valid; all faults are named.
            UnsupportedError: it was written by another version of slm-edge that this one cannot read.
            DamagedError: files are missing, or are not as they were written.
        """
        where = starter_folder() if folder is None else Path(folder)
        manifest = read_manifest(where)
        problems = verify_pack(where, manifest) if verify else _quick_check(where, manifest)
        if problems and read_manifest(where) != manifest:
            # It changed meanwhile, and files of before are gone.
            return cls.open(where, verify)
        if problems:
            raise DamagedError("the pack is not as it was built", where=where, problems=problems)
        adapters = {
            row.name: PackedAdapter(
                row.name, where / row.file, row.sha256, row.size_bytes, TaskCard.open(where / row.card)
            )
            for row in manifest.adapters
        }
        return cls(where, manifest.name, manifest.default_adapter, manifest.base, adapters, manifest)

    @property
    def carries_base(self) -> bool:
        """Whether the base lies inside the pack's folder."""
        return self.base.file_name in self.manifest.files

    def base_path(self, allow_pull: bool = False) -> Path:
        """Where the base is: in the pack, else in the store. Its size is checked; `verify` checks its bytes.

        That it is used is noted in the store.

        Args:
            allow_pull: fetch it into the store when it is in neither.

        Raises:
            InputError: it is in neither and `allow_pull` is not set.
            DamagedError: the file there has another size.
        """
        # Before it is looked for: nobody removes it then.
        self._note_use()
        path = self.folder / self.base.file_name if self.carries_base else base_cache_path(self.base.sha256)
        if not self.carries_base and not path.is_file():
            if allow_pull:
                from .pull import pull_base

                return pull_base(self.base, origin=self.origin)
            raise InputError(
                f"the base {self.base.file_name} is neither in the pack nor in the store",
                where=self.folder,
                hint=f"slm-edge pull {self._called()}",
            )
        size_bytes = path.stat().st_size
        if size_bytes != self.base.size_bytes:
            raise DamagedError(
                f"has {size_bytes} bytes, the pack's base has {self.base.size_bytes}",
                where=path,
                hint="copy the pack again" if self.carries_base else "remove it; slm-edge pull fetches it again",
            )
        return path

    @property
    def origin(self) -> "Origin | None":
        """Where it was pulled from; None for a pack that lies outside the store."""
        version = self._version()
        return None if version is None else version.origin

    def _called(self) -> str:
        return "starter" if self.folder == starter_folder() else str(self.folder)

    def _version(self) -> "Version | None":
        """What the store knows of it; None for a pack that lies elsewhere."""
        try:
            inside = store_folder().resolve() in self.folder.resolve().parents
        except InputError:
            # A user without a home has no store.
            inside = False
        if not inside:
            return None
        from ..store.store import Store

        return Store().version_of(self.folder)

    def _note_use(self) -> None:
        version = self._version()
        if self.carries_base and version is None:
            return
        from ..store.uses import mark_use

        if version is not None:
            mark_use(version.digest, version.name)
        if not self.carries_base:
            who = version.name if version is not None else "starter" if self.folder == starter_folder() else None
            mark_use(self.base.sha256, who or str(self.folder.absolute()), self.base.file_name)

    def check_adapter_bytes(self, name: str) -> None:
        """Hashes one adapter's file.

        Raises:
            DamagedError: it is not the file that was packed.
        """
        check_packed(self.adapters[name].path, self.adapters[name].sha256)


def find_adapter(adapters: Mapping[str, PackedAdapter], name: str) -> PackedAdapter:
    """The adapter of that name.

    Raises:
        InputError: there is none; the hint has those that there are, the nearest first.
    """
    packed = adapters.get(name)
    if packed is None:
        known = did_you_mean(name, adapters)
        raise InputError(
            f"there is no adapter {name!r}",
            hint=f"there are: {', '.join([*known, 'none'])}" if known else "there are none",
        )
    return packed


def check_packed(path: Path, sha256: str) -> None:
    """Hashes a file of a pack; DamagedError if it is not the one that was packed."""
    if sha256_file(path) != sha256:
        raise DamagedError("its bytes changed since it was packed", where=path, hint="copy the pack again")


def starter_folder() -> Path:
    """The pack that ships with slm-edge."""
    return Path(__file__).parent.parent / "starter"


def _link_on_the_way(folder: Path, name: str) -> bool:
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            return True
    return False


def _quick_check(folder: Path, manifest: Manifest) -> list[str]:
    """Missing files, links, wrong sizes of adapters, changed cards: what can be told at once."""
    problems: list[str] = []
    for name in manifest.files:
        if _link_on_the_way(folder, name):
            problems.append(f"{name}: goes through a symbolic link; a pack holds its files itself")
        elif not (folder / name).is_file():
            problems.append(f"{name}: missing")
    if problems:
        return problems
    for row in manifest.adapters:
        size_bytes = (folder / row.file).stat().st_size
        if size_bytes != row.size_bytes:
            problems.append(f"{row.file}: has {size_bytes} bytes, not {row.size_bytes}")
        if sha256_file(folder / row.card) != manifest.files[row.card]:
            problems.append(f"{row.card}: changed")
    return problems


def verify_pack(folder: Path, manifest: Manifest, on_bytes: Callable[[int], object] | None = None) -> list[str]:
    """Everything that differs from what pack.json says: changed, missing and additional files, folders and links.

    What a killed change left behind (`leftovers.py`) is no fault, unless the pack is signed: a change removes the
    signature first.
    The base is checked where it is, in the pack or the cache; a base that is in neither is no fault of the pack.

    Args:
        on_bytes: told of each chunk that was hashed.
    """
    problems: list[str] = []
    text = (folder / PACK_FILE).read_bytes()
    if text != render(loads_json(text.decode("utf-8"))).encode():
        problems.append(f"{PACK_FILE}: changed since it was written")
    present: set[str] = set()
    from .leftovers import find_leftovers, is_leftover

    signed = bool(signatures_of(folder))
    leftovers = [] if signed else find_leftovers(folder, manifest.files)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        left = not signed and is_leftover(name, manifest.files)
        if left or any(leftover.startswith(f"{name}/") for leftover in leftovers):
            continue
        if path.is_symlink():
            problems.append(f"{name}: a symbolic link; a pack holds its files itself")
        elif path.is_file():
            present.add(name)
        elif not path.is_dir():
            problems.append(f"{name}: neither a file nor a folder")
        elif not any(file.startswith(f"{name}/") for file in manifest.files):
            problems.append(f"{name}/: a folder that is not in {PACK_FILE}")
    problems += [f"{name}: not in {PACK_FILE}" for name in sorted(present - {*manifest.files, *NOT_LISTED})]
    for name, sha256 in manifest.files.items():
        if name not in present:
            problems.append(f"{name}: missing")
        elif sha256_file(folder / name, on_bytes) != sha256:
            problems.append(f"{name}: changed")
    for row in manifest.adapters:
        if row.file in present and (folder / row.file).stat().st_size != row.size_bytes:
            problems.append(f"{row.file}: {PACK_FILE} gives another size, {row.size_bytes} bytes")
    if (folder / OMS_FILE).is_file():
        problems += _unlike_model_sig(folder, manifest, text)
    cached = base_cache_path(manifest.base.sha256)
    carried = manifest.base.file_name in manifest.files
    if not carried and cached.is_file() and sha256_file(cached, on_bytes) != manifest.base.sha256:
        problems.append(f"{cached}: the base in the cache is damaged; remove it, slm-edge pull fetches it again")
    return problems


def _unlike_model_sig(folder: Path, manifest: Manifest, raw: bytes) -> list[str]:
    """What model.sig says other than pack.json; whether it fits its key, `judge` says."""
    from ..trust.oms import MOST_BYTES, ModelSignature

    try:
        signature = ModelSignature.parse(read_bytes(folder / OMS_FILE, MOST_BYTES))
    except SlmEdgeError as error:
        return [f"{OMS_FILE}: {error.message}"]
    return signature.differences({**manifest.files, PACK_FILE: hashlib.sha256(raw).hexdigest()})


def verify_folder(
    folder: Path, on_bytes: Callable[[int], object] | None = None, *, any_signer: bool = False
) -> Manifest:
    """Verifies a pack that may be damaged anywhere, pack.json and signatures included.

    Args:
        any_signer: leave out who signed it.

    Raises:
        InputError: there is no pack, or the trust policy refuses it.
        UnsupportedError: its schema version is not known.
        DamagedError: anything is not as it was built; `problems` has all of it.
    """
    raw = raw_manifest(folder)
    if not any_signer:
        admit(folder, raw)
    try:
        manifest = parse_manifest(raw, folder / PACK_FILE)
    except InputError as error:
        raise DamagedError(
            "the pack is not as it was built",
            where=folder,
            problems=[f"{PACK_FILE}: {error.message}", *error.problems],
            hint="copy the pack again",
        ) from None
    problems = verify_pack(folder, manifest, on_bytes)
    if not problems:
        for row in manifest.adapters:
            try:
                TaskCard.open(folder / row.card)
            except SlmEdgeError as error:
                problems += [f"{row.card}: {error.message}", *error.problems]
    if problems:
        raise DamagedError(
            "the pack is not as it was built", where=folder, problems=problems, hint="copy the pack again"
        )
    return manifest
