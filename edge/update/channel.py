"""A channel: a signed list of a pack's releases on any web server, in a folder, or on a stick.

    channel.json            the list, signed: channel.json.minisig
    blobs/SHA256            every file of every release once: pack.json, its signature, adapters, cards, bases

    channel = Channel.parse(data)           # after its signature was checked
    channel.choice(current, ...)            # the release that this machine shall have, or None and why

A release is pinned by the sha256 of its pack.json, so the one signature covers every byte.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from ..errors import DamagedError, InputError, UnsupportedError
from ..files.read import is_text, loads_json
from ..store.version import is_sha256
from ..trust.minisign import version_parts
from ..written import check_name
from .machine import bucket_percent

SCHEMA: Final = 1
CHANNEL_FILE: Final = "channel.json"
MOST_BYTES: Final = 4 << 20
MOST_RELEASES: Final = 1000


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        version: one to four numbers.
        pack: sha256 of its pack.json.
        signature: sha256 of its pack.json.minisig.
        sizes_bytes: of its files, by their sha256.
        min_runtime: the oldest slm-edge that it works with.
        percent: of the machines that shall have it.
        seed: mixed into which machines these are; another one for each release, or the same were always the first.
        withdrawn: nobody shall have it any more; who has it goes to another.
    """

    version: str
    pack: str
    signature: str
    sizes_bytes: Mapping[str, int] = field(default_factory=dict)
    min_runtime: str = "0"
    percent: float = 100.0
    seed: str = ""
    withdrawn: bool = False

    def is_for(self, machine: str) -> bool:
        """Whether a machine is among those that shall have it now."""
        return bucket_percent(self.seed, machine) < self.percent


@dataclass(frozen=True)
class Channel:
    """A channel's list.

    Attributes:
        name: of the pack, here and on the devices.
        sequence: rises with each change; devices refuse a lower one than they saw.
        expires_s: seconds since 1970, after which no update is taken from it; 0 for never.
    """

    name: str
    sequence: int
    releases: tuple[Release, ...] = ()
    expires_s: int = 0

    @classmethod
    def parse(cls, data: bytes) -> "Channel":
        """A channel from the bytes of a channel.json whose signature was checked.

        Raises:
            DamagedError: it is none; all faults are named.
            UnsupportedError: another schema.
        """
        try:
            table = loads_json(data.decode("utf-8"))
        except ValueError as error:
            raise DamagedError(f"is not valid JSON ({error})") from None
        if not isinstance(table, dict) or "schema" not in table:
            raise DamagedError("is not a channel")
        if table["schema"] != SCHEMA:
            raise UnsupportedError(
                f"has the schema {table['schema']!r:.60}; this slm-edge reads {SCHEMA}",
                hint="pip install --upgrade slm-edge",
            )
        faults: list[str] = []
        rows = table.get("releases")
        if set(table) != {"schema", "name", "sequence", "expires_s", "releases"} or not isinstance(rows, list):
            raise DamagedError("is not a channel: keys are missing or unknown")
        if not isinstance(table["name"], str) or not _is_name(table["name"]):
            faults.append("its name is none")
        if not _is_count(table["sequence"], 1 << 29) or not _is_count(table["expires_s"], 1 << 40):
            faults.append("its sequence or end is no number")
        if len(rows) > MOST_RELEASES:
            faults.append(f"it has {len(rows)} releases; {MOST_RELEASES} at most")
        releases = [_release(row, faults) for row in rows[:MOST_RELEASES]]
        if faults:
            raise DamagedError("is not a channel", problems=faults)
        return cls(table["name"], table["sequence"], tuple(row for row in releases if row), table["expires_s"])

    def text(self) -> str:
        """The text of its channel.json."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    def find(self, version: str) -> Release:
        """The release of a version; InputError if there is none."""
        for row in self.releases:
            if version_parts(row.version) == version_parts(version):
                return row
        there = ", ".join(row.version for row in self.releases) or "none"
        raise InputError(f"the channel has no release {version}; there are: {there}")

    def with_release(self, release: Release) -> "Channel":
        """With a release added, or put in place of the one with its version; the sequence rises."""
        parts = version_parts(release.version)
        kept = [row for row in self.releases if version_parts(row.version) != parts]
        rows = sorted([*kept, release], key=lambda row: version_parts(row.version))
        return replace(self, sequence=self.sequence + 1, releases=tuple(rows))

    def choice(
        self,
        digest: str | None,
        version: str | None,
        machine: str,
        runtime: str,
        refused: Mapping[str, str] | None = None,
    ) -> tuple[Release | None, str]:
        """The release to go to, None to stay, and why.

        Args:
            digest, version: what the machine has; None for nothing, or where the version is not known.
            machine: this machine's secret id.
            runtime: the version of slm-edge here.
            refused: digests that are left out on this machine, and why.
        """
        refused = refused or {}
        mine = next((row for row in self.releases if row.pack == digest), None)
        allowed = [row for row in self.releases if not row.withdrawn and row.is_for(machine)]
        able = [row for row in allowed if version_parts(row.min_runtime) <= version_parts(runtime)]
        good = [row for row in able if row.pack not in refused]
        best = max(good, key=lambda row: version_parts(row.version), default=None)
        if digest is None:
            return best, "" if best else f"no release is for this machine yet{_of_those(allowed, able, refused)}"
        if mine is not None and mine.withdrawn:
            words = f"version {mine.version} was withdrawn"
            return (best, words) if best else (None, f"{words}, and there is no other for this machine")
        known = version_parts(version) if version is not None else (-1,)
        if best is not None and best.pack != digest and version_parts(best.version) > known:
            return best, ""
        return None, f"it is the newest for this machine{_of_those(allowed, able, refused)}"


def _of_those(allowed: list[Release], able: list[Release], refused: Mapping[str, str]) -> str:
    """What else there is, and why it is not taken."""
    words = [f"{row.version} needs slm-edge {row.min_runtime}" for row in allowed if row not in able]
    words += [f"{row.version} is left out here: {refused[row.pack][:120]}" for row in able if row.pack in refused]
    return f" ({'; '.join(words)})" if words else ""


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name, "a pack"))
    except InputError:
        return False


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_version(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(version_parts(value))
    except InputError:
        return False


def _release(row: Any, faults: list[str]) -> Release | None:
    keys = {"version", "pack", "signature", "sizes_bytes", "min_runtime", "percent", "seed", "withdrawn"}
    if not isinstance(row, dict) or set(row) != keys:
        faults.append("a release has unknown keys, or lacks some")
        return None
    sizes = row["sizes_bytes"]
    good = {
        "version": _is_version(row["version"]),
        "pack": is_sha256(row["pack"]),
        "signature": is_sha256(row["signature"]),
        "sizes_bytes": isinstance(sizes, dict)
        and all(is_sha256(key) and _is_count(size, 1 << 50) for key, size in sizes.items()),
        "min_runtime": _is_version(row["min_runtime"]),
        "percent": type(row["percent"]) in (int, float) and 0 <= row["percent"] <= 100,
        "seed": is_text(row["seed"]) and len(row["seed"]) <= 200,
        "withdrawn": isinstance(row["withdrawn"], bool),
    }
    faults += [f"the release {row['version']!r:.40}: its {key} is none" for key, fits in good.items() if not fits]
    return Release(**row) if all(good.values()) else None
