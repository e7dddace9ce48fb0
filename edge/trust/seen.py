"""What this machine has taken from which key: the newest version of each pack and channel, and the newest signed time.

    seen = Seen.read()
    seen.check_version(key_id, "my-pack", "1.2", sha256)        # InputError where that is older than what was taken
    record(lambda seen: seen.take(key_id, "my-pack", "1.3", time_s, [sha256 of 1.2, sha256 of 1.3]))

Versions are kept for each key apart: a key that got into wrong hands and signed a version 99 locks nobody out once it
is revoked. The file is state, not trust: it lies where no pack is written, and outlives packs that are removed.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import InputError
from ..files.atomic import locked, make_folder, write_json
from ..files.cache import state_folder
from ..files.read import read_table
from .keys import revoked_keys
from .minisign import shown_time, version_parts

SEEN_FILE: Final = "seen.json"
# When this code was written: no clock is before that.
LEAST_TIME_S: Final = 1_790_000_000
# Two good clocks differ by less
CLOCK_SLACK_S: Final = 300


@dataclass
class Seen:
    """What was taken.

    Attributes:
        times_s: key -> the newest time that it signed, of what was accepted.
        newest: "KEY/NAME" -> the newest version.
        kept: "KEY/NAME" -> sha256 of the pack.json that may be old: what runs here, and what was before it.
    """

    times_s: dict[str, int] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Seen":
        """What the file says; empty where there is none.

        Raises:
            InputError: the file is damaged. It is not passed over: without it an old version would be taken.
        """
        path = state_folder() / SEEN_FILE
        if not path.exists():
            return cls()
        data = read_table(path)
        if not _is_seen(data):
            raise InputError("is not what slm-edge wrote", where=path, hint="restore it; without it old versions pass")
        return cls(**data)

    def check_version(self, key_id: str, name: str, version: str, sha256: str) -> None:
        """Raises InputError where a version is older than the newest from this key, and none that was here before."""
        place = f"{key_id}/{name}"
        newest = self.newest.get(place)
        if newest is None or version_parts(version) >= version_parts(newest):
            return
        if sha256 not in self.kept.get(place, []):
            raise InputError(
                f"version {version} of {name!r} is older than {newest}, which this machine had from the key {key_id}",
                hint="an old version may have faults that are known; get the newest",
            )

    def check_clock(self, time_s: int = 0) -> None:
        """Raises InputError where this machine's clock is behind the newest signed time, or behind `time_s`.

        Times of revoked keys do not count. Who boots in the past cannot tell what is new, nor what has expired.
        """
        gone = {key.key_id for key in revoked_keys()}
        newest_s = max([LEAST_TIME_S, time_s, *(at for key_id, at in self.times_s.items() if key_id not in gone)])
        now_s = int(time.time())
        if now_s < newest_s - CLOCK_SLACK_S:
            raise InputError(
                f"the clock says {shown_time(now_s)}, but something was signed at {shown_time(newest_s)}; no update is "
                "taken",
                hint="set the clock (timedatectl set-ntp true); what is here goes on working",
            )

    def check_expiry(self, expires_s: int, where: str) -> None:
        """Raises InputError where something may not be taken any more; 0 for what has no end."""
        if expires_s and time.time() > expires_s:
            raise InputError(
                f"has expired on {shown_time(expires_s)}; no update is taken",
                where=where,
                hint="its maker signs it anew; what is here goes on working",
            )

    def take(self, key_id: str, name: str, version: str, time_s: int | None, kept: Sequence[str]) -> None:
        """Notes that a version was taken.

        Args:
            time_s: when it was signed.
            kept: sha256 of what may be used though it is older: what ran before, and this one.
        """
        place = f"{key_id}/{name}"
        before = self.newest.get(place)
        if before is None or version_parts(version) >= version_parts(before):
            self.newest[place] = version
        self.allow(key_id, name, kept)
        self.times_s[key_id] = max(self.times_s.get(key_id, 0), time_s or 0)

    def allow(self, key_id: str, name: str, kept: Sequence[str]) -> None:
        """Says which versions may be used though they are older; no other may then."""
        self.kept[f"{key_id}/{name}"] = list(dict.fromkeys(kept))


def record(change: Callable[[Seen], object]) -> Seen:
    """Changes the file under its lock; errors as `Seen.read`, and where it cannot be written."""
    folder = make_folder(state_folder())
    with locked(folder / "seen.lock"):
        seen = Seen.read()
        change(seen)
        write_json(folder / SEEN_FILE, dataclasses.asdict(seen))
    return seen


def _is_seen(data: dict[str, Any]) -> bool:
    if set(data) != {"times_s", "newest", "kept"} or not all(isinstance(table, dict) for table in data.values()):
        return False
    lists = [value if isinstance(value, list) else [None] for value in data["kept"].values()]
    texts = [*data["newest"].values(), *(one for entry in lists for one in entry)]
    return all(isinstance(one, str) for one in texts) and all(type(one) is int for one in data["times_s"].values())
