"""What the store knows of one version of something pulled, and which versions a name stands for.

    packs/NAME/DIGEST/          a version's files: links to blobs
    packs/NAME/DIGEST.json      its `Version`: where it came from, and the sha256 of each file
    refs/NAME.json              its `Ref`: current, previous, trial, channel, pinned

A name may be that of a place on a hub (`hf.co/owner/repo:Q4_K_M`); on the disk it is percent-encoded.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from ..errors import DamagedError, InputError
from ..files.read import is_text

Kind = Literal["pack", "model"]
KINDS: Final = ("pack", "model")
SCHEMA: Final = 1
_SHA256: Final = re.compile("[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*([/:][A-Za-z0-9][A-Za-z0-9._@-]*)*")
# File systems hold 255 bytes; what is written aside adds to them.
_MOST_NAME_BYTES: Final = 180


@dataclass(frozen=True)
class Origin:
    """Where a version came from.

    Attributes:
        reference: what was pulled, as one would type it again: `hf:owner/repo`, `https://…/pack.json`, a folder.
        address: where its first file was read, without anything secret.
        commit: of the hub's repository.
        fetched: when, in UTC, as ISO 8601.
        elsewhere: it came over a network: what it names is not believed to be of this machine.
    """

    reference: str
    address: str = ""
    commit: str | None = None
    fetched: str = field(default_factory=lambda: now())
    elsewhere: bool = True


@dataclass(frozen=True)
class Version:
    """One version of something in the store.

    Attributes:
        digest: of a pack the sha256 of its pack.json, of a model that of its file, or of its files' names and sums.
        files: path inside its folder -> sha256.
        base: sha256 of the base that a pack needs and does not carry.
        main: the file of a model that is opened; None for a pack.
    """

    name: str
    digest: str
    kind: Kind
    files: Mapping[str, str]
    origin: Origin
    base: str | None = None
    main: str | None = None

    @property
    def blobs(self) -> set[str]:
        """The sha256 of every file that it needs."""
        return {*self.files.values(), *([self.base] if self.base else [])}


@dataclass(frozen=True)
class Ref:
    """Which versions a name stands for.

    Attributes:
        current: the digest that is used; None after all was taken back.
        previous: the one before it, to go back to.
        trial: one that is being tried.
        channel: the address of its update channel.
        pinned: updates leave it as it is.
    """

    name: str
    current: str | None = None
    previous: str | None = None
    trial: str | None = None
    channel: str | None = None
    pinned: bool = False

    @property
    def kept(self) -> set[str]:
        """The digests that must stay."""
        return {digest for digest in (self.current, self.previous, self.trial) if digest is not None}

    def moved_to(self, digest: str) -> "Ref":
        """With `digest` as the current one, and what was current as the previous."""
        if digest == self.current:
            return self
        return dataclasses.replace(self, current=digest, previous=self.current, trial=None)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_stored_name(name: str) -> str:
    """Returns a name that things in the store may have.

    Raises:
        InputError: it is empty, too long, or has letters that are not of names or places on a hub.
    """
    if not _NAME.fullmatch(name) or len(encoded(name)) > _MOST_NAME_BYTES or name.lower() in ("starter", "none"):
        raise InputError(
            f"{name[:200]!r} cannot be a name in the store",
            hint="use letters, digits and . _ -, a letter or digit first: slm-edge pull REF --as NAME",
        )
    return name


def encoded(name: str) -> str:
    """A name as a file's name."""
    return quote(name, safe="")


def decoded(file_name: str) -> str:
    """The name whose encoded form this is."""
    return unquote(file_name)


def is_sha256(value: Any) -> bool:
    """Whether a value is a sha256 in hex."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def is_inside(path: Any) -> bool:
    """Whether a path, `/` between its parts, stays inside the folder that it is put into, on every system."""
    if not is_text(path) or not path or any(letter in path for letter in "\\\0:") or not path.isprintable():
        return False
    parts = path.split("/")
    return len(parts) <= 8 and all(
        part not in ("", ".", "..") and not part.endswith((".", " ")) and len(part.encode()) <= 200 for part in parts
    )


def as_table(value: Version | Ref) -> dict[str, Any]:
    """The JSON of a version or ref."""
    return {"schema": SCHEMA, **dataclasses.asdict(value)}


def read_version(data: Mapping[str, Any], where: Path) -> Version:
    """A version from its JSON.

    Raises:
        DamagedError: it is none.
    """
    try:
        rest = {key: value for key, value in data.items() if key not in ("schema", "origin")}
        version = Version(**rest, origin=Origin(**data["origin"]))
        good = (
            data["schema"] == SCHEMA
            and version.kind in KINDS
            and is_sha256(version.digest)
            and all(is_inside(path) and is_sha256(sha256) for path, sha256 in version.files.items())
            and (version.base is None or is_sha256(version.base))
            and (version.main is None or version.main in version.files)
        )
        check_stored_name(version.name)
    except (KeyError, TypeError, AttributeError, InputError):
        good = False
    if not good:
        raise DamagedError("is not what the store writes of a version", where=where, hint="pull it again")
    return version


def read_ref(data: Mapping[str, Any], where: Path) -> Ref:
    """A ref from its JSON.

    Raises:
        DamagedError: it is none.
    """
    try:
        ref = Ref(**{key: value for key, value in data.items() if key != "schema"})
        good = data["schema"] == SCHEMA and isinstance(ref.pinned, bool) and all(map(is_sha256, ref.kept))
        check_stored_name(ref.name)
    except (KeyError, TypeError, InputError):
        good = False
    if not good:
        raise DamagedError("is not what the store writes of a name", where=where, hint="pull it again")
    return ref
