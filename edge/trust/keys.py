"""The public keys that this machine trusts, and those that it never will again.

keys/NAME.pub       of minisign, trusted under that name
keys/NAME.pem       ECDSA, for OpenSSF model signing
revoked/ID.pub      a key whose signatures are refused everywhere; .pem likewise
policy.toml         what is asked of which source (`policy.py`)
"""

import base64
import hashlib
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..files.atomic import atomic_file, make_folder
from ..files.cache import trust_folder
from ..files.read import read_text
from ..written import check_name, did_you_mean
from .minisign import PublicKey

MOST_KEY_BYTES: Final = 4096
_PEM: Final = ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----")


@dataclass(frozen=True)
class TrustedKey:
    """A public key of this machine's list.

    Attributes:
        name: given when it was trusted; the id where it is revoked.
        key_id: 16 hex digits of minisign's, or the 64 of an ECDSA key's sha256.
        text: its file's text.
    """

    name: str
    key_id: str
    text: str

    @property
    def is_minisign(self) -> bool:
        """Whether it is minisign's; else ECDSA."""
        return not self.text.startswith(_PEM[0])


def parse_key(text: str) -> tuple[str, str]:
    """A public key's id and its text in the one form that is kept.

    Raises:
        InputError: it is neither minisign's nor a PEM.
    """
    if not text.lstrip().startswith(_PEM[0]):
        key = PublicKey.parse(text)
        return key.key_id, key.text()
    try:
        lines = text.strip().splitlines()
        if lines[0] != _PEM[0] or lines[-1] != _PEM[1]:
            raise ValueError("its first or last line is another")
        raw = base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError as error:
        raise InputError(f"is no public key in PEM ({error})") from None
    body = "\n".join(textwrap.wrap(base64.b64encode(raw).decode("ascii"), 64))
    pem = f"{_PEM[0]}\n{body}\n{_PEM[1]}\n"
    return hashlib.sha256(pem.encode()).hexdigest(), pem


def _kept(kind: str) -> list[TrustedKey]:
    folder = trust_folder() / kind
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".pub", ".pem"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=folder) from None
    keys = []
    for path in paths:
        try:
            keys.append(TrustedKey(path.stem, *parse_key(read_text(path, MOST_KEY_BYTES))))
        except InputError as error:
            raise InputError(error.message, where=path, hint=f"remove it: rm '{path}'") from None
    return keys


def trusted_keys() -> list[TrustedKey]:
    """The trusted keys by name; none that is revoked.

    Raises:
        InputError: a key's file is none.
    """
    gone = {key.key_id for key in revoked_keys()}
    return [key for key in _kept("keys") if key.key_id not in gone]


def revoked_keys() -> list[TrustedKey]:
    """The revoked keys; errors as `trusted_keys`."""
    return _kept("revoked")


def trust_key(text: str, name: str) -> TrustedKey:
    """Trusts a key from now on.

    Args:
        text: of its file, or its one line.

    Raises:
        InputError: it is no key, is revoked, or the name is no name or belongs to another key.
    """
    check_name(name, "a key")
    key_id, text = parse_key(text)
    if key_id in {key.key_id for key in revoked_keys()}:
        raise InputError(
            f"the key {key_id} was revoked",
            hint=f"a new key is safer; to undo it, remove its file from {trust_folder() / 'revoked'}",
        )
    for key in trusted_keys():
        if key.name.lower() == name.lower() and key.key_id != key_id:
            raise InputError(f"the name {name!r} belongs to the key {key.key_id}", hint="choose another name")
        if key.key_id == key_id and key.name != name:
            raise InputError(f"the key {key_id} is trusted already, as {key.name!r}")
    new = TrustedKey(name, key_id, text)
    _write("keys", f"{name}{_suffix(new)}", text)
    return new


def revoke_key(named: str) -> TrustedKey:
    """Revokes a key, trusted or not: its signatures are refused from now on.

    Args:
        named: the name or id of a trusted key, or a public key's text.

    Raises:
        InputError: there is no such key.
    """
    trusted = _kept("keys")
    key = next((key for key in trusted if named.lower() in (key.name.lower(), key.key_id.lower())), None)
    if key is None:
        try:
            key = TrustedKey("", *parse_key(named))
        except InputError:
            there = ", ".join(did_you_mean(named, [key.name for key in trusted])) or "none"
            raise InputError(f"no key {named[:80]!r} is trusted here; there are: {there}") from None
    revoked = TrustedKey(key.key_id, key.key_id, key.text)
    # First it is refused, then it is no longer listed: between the two it is not trusted either.
    _write("revoked", f"{key.key_id}{_suffix(key)}", key.text)
    for one in trusted:
        if one.key_id == key.key_id:
            (trust_folder() / "keys" / f"{one.name}{_suffix(one)}").unlink(missing_ok=True)
    return revoked


def _suffix(key: TrustedKey) -> str:
    return ".pub" if key.is_minisign else ".pem"


def _write(kind: str, name: str, text: str) -> None:
    with atomic_file(make_folder(trust_folder() / kind) / name) as aside:
        aside.write_text(text, encoding="utf-8")


def write_secret(path: Path, text: str) -> None:
    """Writes a secret key's file, readable by its owner alone, whole or not at all; errors as `atomic_file`."""
    with atomic_file(path) as aside:
        aside.touch(0o600)
        aside.write_text(text, encoding="utf-8")
