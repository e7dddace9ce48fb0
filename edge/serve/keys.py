"""Keys: who may use the server, and for what. The file holds their hashes, one key a line; a key itself is shown once.

    # name   hash of the key                    what it is for
    alice    sha256:9f86d081884c7d659a2feaa0…   models:*
    sensors  sha256:60303ae22b998861bce3b28f…   models:math,auto
    grafana  sha256:fd61a03af4f77d870fc21e05…   metrics

A key is 32 random bytes, so that its plain hash gives nothing away and no slow one is needed.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..files.atomic import atomic_file
from ..files.read import read_text

PREFIX: Final = "slm-"
# Where systemd puts what `LoadCredential=slm-edge-keys:…` names
CREDENTIAL: Final = "slm-edge-keys"
MOST_KEYS: Final = 1000
ALL: Final = "*"
_LINE: Final = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._@-]{0,63})\s+sha256:(?P<hash>[0-9a-f]{64})(?P<scopes>.*)")
_MODELS: Final = re.compile(r"models:(\*|[A-Za-z0-9][\w.-]*(,[A-Za-z0-9][\w.-]*)*)", re.ASCII)


@dataclass(frozen=True)
class Key:
    """One who may use the server.

    Attributes:
        models: ids that it may ask; None for all.
        admin: may load and remove adapters and see everyone's requests.
        metrics: may read /metrics.
    """

    name: str
    models: frozenset[str] | None = None
    admin: bool = False
    metrics: bool = False

    def may_ask(self, model: str) -> bool:
        """Whether it may ask the model with this id."""
        return self.models is None or model in self.models


# Who asks where no keys are set: this machine's users alone can reach the server then.
ANYONE: Final = Key("", admin=False, metrics=True)


class Keys:
    """The keys of a file.

    Args:
        rows: hash of a key -> whose it is.
    """

    def __init__(self, rows: Sequence[tuple[bytes, Key]]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> list[str]:
        """Whose keys there are."""
        return [key.name for _, key in self._rows]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Keys":
        """Reads a file of keys.

        Raises:
            InputError: it cannot be read, others may read or change it, or a line is not as above; all are named.
        """
        path = Path(path)
        text = read_text(path)
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise InputError("can be read or changed by others", where=path, hint=f"chmod 600 {path}")
        rows, problems = [], []
        for number, line in enumerate(text.splitlines(), 1):
            if not (line := line.partition("#")[0].strip()):
                continue
            try:
                rows.append(_row(line))
            except InputError as error:
                problems.append(f"line {number}: {error.message}")
        names = [key.name for _, key in rows]
        problems += [f"the name {name!r} stands twice" for name in sorted({n for n in names if names.count(n) > 1})]
        if problems:
            raise InputError("is not a valid file of keys", where=path, problems=problems[:20])
        if not rows or len(rows) > MOST_KEYS:
            raise InputError(
                f"holds {len(rows)} keys; 1 to {MOST_KEYS} are possible",
                where=path,
                hint=f"slm-edge serve --keys {path} --new-key NAME makes one",
            )
        return cls(rows)

    def find(self, secret: str) -> Key | None:
        """Whose key this is; every one is compared, so that the time says nothing."""
        given = _hash(secret)
        found = None
        for known, key in self._rows:
            if hmac.compare_digest(known, given):
                found = key
        return found


def new_key(path: str | os.PathLike[str], name: str, scopes: Sequence[str] = ()) -> str:
    """Makes a key, adds its hash to the file, which is made where there is none, and returns it.

    Args:
        scopes: as in the file; all models where none are given.

    Raises:
        InputError: the name or a scope is not valid, the name is taken, or the file is not valid or cannot be written.
    """
    path = Path(path)
    secret = PREFIX + secrets.token_urlsafe(32)
    line = f"{name}  sha256:{_hash(secret).hex()}  {' '.join(scopes or ('models:*',))}"
    _row(line)
    before = ""
    if path.exists():
        if name in Keys.open(path).names:
            raise InputError(f"there is a key named {name!r}", where=path, hint="delete its line first")
        before = read_text(path).rstrip("\n") + "\n"
    with atomic_file(path) as aside:
        aside.touch(0o600)
        aside.write_text(f"{before}{line}\n", encoding="utf-8")
    return secret


def credential() -> Path | None:
    """The file of keys that systemd hands over; None where there is none."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / CREDENTIAL if folder else None
    return path if path is not None and path.is_file() else None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _row(line: str) -> tuple[bytes, Key]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise InputError("is not NAME sha256:HASH SCOPES")
    models: frozenset[str] | None = frozenset()
    admin = metrics = False
    for scope in found["scopes"].split():
        if scope == "admin":
            admin = True
        elif scope == "metrics":
            metrics = True
        elif _MODELS.fullmatch(scope):
            names = scope.removeprefix("models:")
            models = None if names == ALL or models is None else models | set(names.split(","))
        else:
            raise InputError(f"{scope!r} is no scope; there are models:*, models:NAME,NAME, metrics and admin")
    return bytes.fromhex(found["hash"]), Key(found["name"], models, admin, metrics)
