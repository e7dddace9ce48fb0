"""Fetches what a reference names into the store: a pack with its base, or a model file of the hub.

    fetched = fetch(parse("hf:org/tiny-GGUF:Q4_K_M"))
    fetched.folder, fetched.version.main

Nothing of it is used before every byte is here and checked: then its name switches to it by one write. What has come
of a fetch that ended early stays, and the next one goes on from it.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from ..console import Advance, note, progress
from ..errors import DamagedError, InputError, SlmEdgeError, UnreachableError
from ..files.aside import folder_beside, require_room
from ..files.atomic import make_folder
from ..files.read import loads_json, sha256_file
from ..files.web import (
    OFFLINE,
    Access,
    DownloadError,
    access_of,
    hub_endpoint,
    hub_token,
    hub_url,
    is_offline,
    read_small,
    request_of,
)
from ..gguf.join import join
from ..hub.listing import HubFile, Listing, list_repository, no_such_file
from ..hub.quants import chosen_files, models_in, parts_of, quant_of
from ..hub.reference import PACK_FILE, Reference
from ..store.store import Store
from ..store.version import Origin, Version, is_inside, is_sha256
from ..trust.gate import SIGNATURE_FILES
from ..written import check_name
from .bring import bring
from .manifest import MAX_PACK_FILE_BYTES, Manifest, parse_manifest
from .pack import Pack
from .pull import pull_base, refused

if TYPE_CHECKING:
    from ..trust.check import Verdict

# Of files that the hub has no sha256 of, and that are read whole
_SMALL_BYTES: Final = 16 << 20
MOST_FILES: Final = 4096


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        is_new: it was not the name's current version before.
    """

    version: Version
    folder: Path
    is_new: bool

    @property
    def path(self) -> Path:
        """What is opened: a pack's folder, or a model's file."""
        return self.folder / self.version.main if self.version.main else self.folder


@dataclass(frozen=True)
class _Place:
    """Where files lie: on a server, or in a repository at a commit."""

    origin: Origin
    access: Access
    url: Callable[[str], str]
    listing: Listing | None = None

    def sizes_bytes(self, path: str) -> int | None:
        """Of a file, where the place says it."""
        file = self.listing.find(path) if self.listing is not None else None
        return None if file is None or file.size_bytes < 0 else file.size_bytes

    def small(self, path: str, most_bytes: int) -> bytes:
        """A small file, checked against what the hub says of it."""
        url = self.url(path)
        data = read_small(url, self.access, most_bytes, hub_token(url))
        file = self.listing.find(path) if self.listing is not None else None
        if file is not None and not _is_file(data, file):
            raise DamagedError("is not the file that the hub lists", where=url)
        return data


def _is_file(data: bytes, file: HubFile) -> bool:
    if is_sha256(file.sha256):
        return hashlib.sha256(data).hexdigest() == file.sha256
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return not file.blob_id or git.hexdigest() == file.blob_id


def fetch(reference: Reference, *, name: str | None = None, insecure: bool = False, with_base: bool = True) -> Fetched:
    """Fetches what a reference on the hub or the web names, and makes it its name's current version.

    Args:
        name: what it is called here; None for its own name.
        insecure: plain http will do.
        with_base: a pack's base too.

    Raises:
        InputError: there is no such thing, it is none that can be used here, or its name is taken.
        DownloadError: it cannot be reached.
        DamagedError: what came is not what was announced.
        DoesNotFitError: the disk is full.
        UnreachableError: its base could not be had.
    """
    store = Store()
    with store.filling():
        if reference.kind == "address":
            folder_url = reference.text.removesuffix(PACK_FILE)
            access = access_of(reference.text, insecure=insecure)
            _check_address(reference.text, access)
            origin = Origin(reference.text, reference.text)
            place = _Place(origin, access, lambda path: folder_url + quote(path))
            return _fetch_pack(store, place, reference, name, insecure, with_base)
        access = access_of(hub_endpoint(), insecure=insecure)
        # Refused here, before the hub's own client sends a token anywhere
        _check_address(hub_endpoint(), access)
        listing = list_repository(reference.repo, reference.revision)
        page = f"{hub_endpoint()}/{reference.repo}"
        origin = Origin(reference.text, page, listing.commit)
        place = _Place(origin, access, lambda path: hub_url(reference.repo, path, listing.commit), listing)
        if reference.file == PACK_FILE or (not reference.file and not reference.quant and listing.find(PACK_FILE)):
            return _fetch_pack(store, place, reference, name, insecure, with_base)
        return _fetch_model(store, place, reference, listing, name)


def _check_address(url: str, access: Access) -> None:
    """Raises InputError for an address that the user gave and that may not be asked."""
    if is_offline():
        raise DownloadError(OFFLINE, where=url)
    try:
        request_of(url, {}, access)
    except DownloadError as error:
        raise InputError(error.message, where=error.where, hint=error.hint) from None


# Packs


def _fetch_pack(
    store: Store, place: _Place, reference: Reference, name: str | None, insecure: bool, with_base: bool
) -> Fetched:
    data = place.small(PACK_FILE, MAX_PACK_FILE_BYTES)
    signatures = _signatures(place)
    verdict = _judged(store, place, data, signatures)
    manifest = parse_manifest(data, Path(PACK_FILE))
    called = _free_name(store, name or _name_of(manifest, reference), place.origin)
    digest = hashlib.sha256(data).hexdigest()
    _check_pack(manifest, place)
    files = {PACK_FILE: store.take_bytes(data), **manifest.files}
    files |= {name: store.take_bytes(text) for name, text in signatures.items()}
    known = {row.file: row.size_bytes for row in manifest.adapters} | {
        manifest.base.file_name: manifest.base.size_bytes
    }
    sizes = {path: known.get(path) or place.sizes_bytes(path) for path in manifest.files}
    with _progress(store, called, files, sizes) as advance:
        for path, sha256 in manifest.files.items():
            bring(store, sha256, place.url(path), place.access, size_bytes=sizes[path], advance=advance)
    carried = manifest.base.file_name in manifest.files
    if with_base and not carried:
        pull_base(manifest.base, origin=place.origin, insecure=insecure)
    version = Version(called, digest, "pack", files, place.origin, base=None if carried else manifest.base.sha256)
    fetched = _add(store, version)
    if verdict.key_name and verdict.key_id and verdict.name and verdict.version:
        from ..trust.seen import record

        key_id, named, number, time_s = verdict.key_id, verdict.name, verdict.version, verdict.time_s
        ref = store.ref(called)
        kept = [one for one in (ref.previous if ref is not None else None, digest) if one is not None]
        record(lambda seen: seen.take(key_id, named, number, time_s, kept))
    note(f"{called}: {verdict.words}")
    return fetched


def _signatures(place: _Place) -> dict[str, bytes]:
    """The signature files that lie beside a pack.json."""
    if place.listing is not None:
        names = [name for name in SIGNATURE_FILES if place.listing.find(name) is not None]
        return {name: place.small(name, _SMALL_BYTES) for name in names}
    found = {}
    for name in SIGNATURE_FILES:
        with contextlib.suppress(DownloadError):
            found[name] = place.small(name, _SMALL_BYTES)
    return found


def _judged(store: Store, place: _Place, data: bytes, signatures: Mapping[str, bytes]) -> "Verdict":
    """What the signature of a pack.json says, before a word of it is read."""
    from ..trust.check import judge

    make_folder(store.folder)
    with folder_beside(store.folder / PACK_FILE) as folder:
        for name, text in signatures.items():
            (folder / name).write_bytes(text)
        try:
            return judge(folder, data, place.origin.reference)
        except SlmEdgeError as error:
            raise type(error)(
                error.message, where=place.url(PACK_FILE), hint=error.hint, problems=error.problems
            ) from None


def _check_pack(manifest: Manifest, place: _Place) -> None:
    """Refuses what could not be used in the end, before anything large is fetched."""
    faults = [f"{path!r} would leave the pack's folder" for path in manifest.files if not is_inside(path)]
    if len(manifest.files) > MOST_FILES:
        faults.append(f"it has {len(manifest.files)} files; {MOST_FILES} at most make sense")
    if faults:
        raise InputError("the pack is not taken", where=place.url(PACK_FILE), problems=faults)
    base, store = manifest.base, Store()
    sources = [refused(source, place.origin) for source in base.sources]
    if base.file_name in manifest.files or store.blob(base.sha256).is_file() or None in sources:
        return
    raise UnreachableError(
        f"the pack's base {base.file_name} cannot be had",
        where=place.url(PACK_FILE),
        problems=[f"{source['kind']}: {reason}" for source, reason in zip(base.sources, sources, strict=True) if reason]
        or ["the pack names no source"],
        hint=f"fetch the file with the sha256 {base.sha256} yourself, and give it with --file",
    )


def _name_of(manifest: Manifest, reference: Reference) -> str:
    """What a pack is called here: as its maker calls it, else as its place is."""
    with contextlib.suppress(InputError):
        return check_name(manifest.name, "a pack")
    last = reference.repo.split("/")[-1] if reference.repo else reference.text.split("/")[-2]
    with contextlib.suppress(InputError):
        return check_name(last, "a pack")
    raise InputError(f"{manifest.name[:80]!r} is no name here", where=reference.text, hint="give one: --as NAME")


def _free_name(store: Store, name: str, origin: Origin) -> str:
    """The name, if nothing from elsewhere has it."""
    found = store.find(name)
    if found is not None and _place_of(found[0].origin.reference) != _place_of(origin.reference):
        raise InputError(
            f"{name!r} is here already, from {found[0].origin.reference}",
            where=origin.reference,
            hint="take another name for it: --as NAME; or remove the one that is here: slm-edge rm " + name,
        )
    return name


def _place_of(reference: str) -> str:
    """A repository, or an address: the same place may give another version."""
    return "/".join(re.split("[/:@]", reference)[1:3]) if reference.startswith("hf:") else reference


# Models


def _fetch_model(store: Store, place: _Place, reference: Reference, listing: Listing, name: str | None) -> Fetched:
    files = _model_files(listing, reference, place)
    rows = [row for path in files if (row := listing.find(path)) is not None]
    called = _free_name(store, name or _model_name(reference, listing, files), place.origin)
    unsafe = [row.path for row in rows if not is_inside(row.path.rpartition("/")[2])]
    if unsafe:
        raise InputError("a file's name would leave its folder", where=reference.text, problems=unsafe)
    main = rows[0].path.rpartition("/")[2]
    if len(rows) > 1:
        main = next(key for key, paths in models_in(listing).items() if paths == files).rpartition("/")[2]
        for before in store.versions(called):
            if (before.origin.reference, before.origin.commit) == (reference.text, listing.commit):
                return _add(store, before)
    sizes: dict[str, int | None] = {row.path: row.size_bytes for row in rows}
    with _progress(store, called, {row.path: row.sha256 or "" for row in rows}, sizes) as advance:
        blobs = [_bring_row(store, place, row, advance) for row in rows]
    sha256 = blobs[0] if len(blobs) == 1 else _joined(store, blobs, sum(row.size_bytes for row in rows))
    return _add(store, Version(called, sha256, "model", {main: sha256}, place.origin, main=main))


def _bring_row(store: Store, place: _Place, row: HubFile, advance: Advance) -> str:
    """The sha256 of a file, which is a blob then."""
    if row.sha256 is not None and is_sha256(row.sha256):
        bring(store, row.sha256, place.url(row.path), place.access, size_bytes=row.size_bytes, advance=advance)
        return row.sha256
    if not 0 <= row.size_bytes <= _SMALL_BYTES or not row.blob_id:
        raise InputError(
            "the hub gives no sha256 of it", where=place.url(row.path), hint="download it, then: slm-edge run FILE.gguf"
        )
    data = place.small(row.path, _SMALL_BYTES)
    advance(len(data))
    return store.take_bytes(data)


def _joined(store: Store, blobs: list[str], size_bytes: int) -> str:
    """The sha256 of the whole model of these parts; llama.cpp finds parts by their names, which blobs have not."""
    require_room(store.folder, size_bytes, "to join the parts of the model")
    with folder_beside(store.folder / "joined.gguf") as folder:
        whole = folder / "joined.gguf"
        with progress("joining the parts", size_bytes, "bytes") as advance:
            join([store.blob(sha256) for sha256 in blobs], whole, advance)
        sha256 = sha256_file(whole)
        store.take_file(whole, sha256, ours=True)
    for part in blobs:
        store.blob(part).unlink(missing_ok=True)
    return sha256


def _model_files(listing: Listing, reference: Reference, place: _Place) -> list[str]:
    """The GGUF files that are meant; else what to do with what is there."""
    if reference.file is not None:
        if listing.find(reference.file) is None:
            raise no_such_file(listing, reference.file)
        if not reference.file.lower().endswith(".gguf"):
            raise InputError("is no GGUF file and no pack.json", where=reference.text)
        return parts_of(listing, reference.file)
    if models_in(listing):
        return chosen_files(listing, reference.quant)
    repo, where = reference.repo, reference.text
    if listing.find("adapter_config.json"):
        raise InputError(
            f"is a PEFT adapter{_of_base(place)}; it is turned into a GGUF file once, on a machine with [export]",
            where=where,
            hint=f"hf download {repo} --local-dir peft; slm-edge export lora peft --base BASE.gguf -o adapter.gguf; "
            "slm-edge run BASE.gguf --lora adapter.gguf",
        )
    if listing.names(".safetensors") or listing.find("config.json"):
        raise InputError(
            "is a checkpoint and holds no GGUF file",
            where=where,
            hint=f"slm-edge export base {repo} -o model.gguf makes one, on a machine with [export]",
        )
    raise InputError("holds no GGUF file and no pack.json", where=where)


def _of_base(place: _Place) -> str:
    """Which base a PEFT adapter says that it is for."""
    with contextlib.suppress(DownloadError, DamagedError, ValueError, UnicodeDecodeError):
        config = loads_json(place.small("adapter_config.json", 1 << 20).decode())
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        return f" of {base[:100]}" if isinstance(base, str) and base else ""
    return ""


def _model_name(reference: Reference, listing: Listing, files: list[str]) -> str:
    """As one types it for Ollama or llama.cpp: hf.co/OWNER/REPO:QUANT."""
    quant = reference.quant or (quant_of(files[0]) if reference.file is None else None)
    where = (
        f"{listing.repo}/{reference.file}" if reference.file else f"{listing.repo}:{quant}" if quant else listing.repo
    )
    return f"hf.co/{where}" + (f"@{reference.revision}" if reference.revision else "")


# Both


@contextlib.contextmanager
def _progress(store: Store, called: str, files: dict[str, str], sizes: dict[str, int | None]) -> Iterator[Advance]:
    """One line for all files, and a look at the disk before the first."""
    missing_bytes = sum(size or 0 for path, size in sizes.items() if not store.blob(files[path] or "-").is_file())
    make_folder(store.folder)
    require_room(store.folder, missing_bytes, f"for {called}", "make room, or set SLM_EDGE_HOME to another disk")
    # Of a pack on a web server, sizes of small files are not known before they are asked for.
    total = sum(size or 0 for size in sizes.values())
    with progress(f"pulling {called}", total, "bytes") as advance:
        yield advance


def _add(store: Store, version: Version) -> Fetched:
    """Puts a version in place, tries it, and makes it the one that its name stands for."""
    folder = store.add(version)
    if version.kind == "pack":
        try:
            Pack.open(folder)
        except SlmEdgeError:
            store.remove_version(version.name, version.digest)
            raise
    before = store.ref(version.name)
    ref = store.switch(version.name, lambda ref: ref.moved_to(version.digest))
    is_new = before is None or before.current != ref.current
    if before is not None and before.pinned and is_new:
        note(f"{version.name} is pinned; it was pulled by hand and is another version now")
    return Fetched(version, folder, is_new)
