"""Checks what is in the store to the byte, without a network.

for result in verify_all(Store(), on_bytes): result.name, result.problems
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DamagedError, SlmEdgeError
from ..files.read import sha256_file
from ..store.store import Store
from ..store.version import Version, is_sha256
from ..trust.check import judge
from .manifest import raw_manifest, read_manifest
from .pack import starter_folder, verify_folder

OnBytes = Callable[[int], object]


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        digest: of the version; "" for the starter pack.
        problems: none where every byte is as it was.
        signed: what its signature says, of packs.
    """

    name: str
    kind: str
    digest: str
    problems: list[str] = field(default_factory=list)
    signed: str = ""
    key_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def verify_all(store: Store, on_bytes: OnBytes) -> Iterator[Checked]:
    """Every version that is kept, the starter pack, and every blob."""
    yield check_pack("starter", on_bytes)
    for name in store.names():
        yield from verify_name(store, name, on_bytes)
    read = _read_already(store)
    for blob in sorted((store.folder / "blobs" / "sha256").glob("*")):
        if is_sha256(blob.name) and _inode(blob) not in read:
            yield _blob(blob, on_bytes)


def _read_already(store: Store) -> set[tuple[int, int]]:
    """The inodes of what is read with the packs and models: their files, where these are links, and packs' bases."""
    bases = {read_manifest(starter_folder()).base.sha256}
    files: list[Path] = []
    for name in store.names():
        with contextlib.suppress(SlmEdgeError):
            ref = store.ref(name)
            for digest in ref.kept if ref is not None else ():
                version = store.version(name, digest)
                if version is not None:
                    files += [store.place(name, digest) / path for path in version.files]
                    bases |= {version.base} if version.base is not None else set()
    return {_inode(path) for path in (*files, *map(store.blob, bases)) if path.is_file()}


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def check_pack(name: str, on_bytes: OnBytes) -> Checked:
    """A pack that lies outside the store: "starter" or a folder."""
    return _pack(name, "", starter_folder() if name == "starter" else Path(name), on_bytes)


def verify_name(store: Store, name: str, on_bytes: OnBytes) -> Iterator[Checked]:
    """Every version that a name keeps."""
    try:
        ref = store.ref(name)
    except SlmEdgeError as error:
        yield Checked(name, "name", "", [str(error)])
        return
    for digest in sorted(ref.kept) if ref is not None else []:
        try:
            version = store.version(name, digest)
        except SlmEdgeError as error:
            yield Checked(name, "version", digest, [str(error)])
            continue
        folder = store.place(name, digest)
        if version is None:
            yield Checked(name, "version", digest, ["is not here whole; slm-edge pull fetches it again"])
        elif version.kind == "pack":
            yield _pack(name, digest, folder, on_bytes)
        else:
            yield _model(version, folder, on_bytes)


def _pack(name: str, digest: str, folder: Path, on_bytes: OnBytes) -> Checked:
    try:
        verify_folder(folder, on_bytes)
        verdict = judge(folder, raw_manifest(folder))
        return Checked(name, "pack", digest, [], verdict.words, verdict.key_id)
    except DamagedError as error:
        return Checked(name, "pack", digest, list(error.problems) or [error.message])
    except (SlmEdgeError, OSError) as error:
        return Checked(name, "pack", digest, [str(error)])


def _model(version: Version, folder: Path, on_bytes: OnBytes) -> Checked:
    problems = []
    for path, sha256 in version.files.items():
        file = folder / path
        if not file.is_file():
            problems.append(f"{path}: missing")
        elif sha256_file(file, on_bytes) != sha256:
            problems.append(f"{path}: changed")
    return Checked(version.name, "model", version.digest, problems)


def _blob(blob: Path, on_bytes: OnBytes) -> Checked:
    whole = sha256_file(blob, on_bytes) == blob.name
    return Checked(
        blob.name[:12], "file", blob.name, [] if whole else [f"{blob}: changed; slm-edge pull fetches it again"]
    )
