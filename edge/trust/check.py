"""Judges a pack's signature over the raw bytes of its pack.json, before anything in them is read.

    verdict = judge(folder, (folder / "pack.json").read_bytes())
    verdict.key_name, verdict.time_s, verdict.version

A signature that does not fit is refused whatever the policy says, and so is one of a revoked key. Whether there must be
one, and of which keys, is the policy's to say (`policy.py`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import DamagedError, InputError, SlmEdgeError
from ..extras import extra_hint
from ..files.read import read_bytes
from ..store.store import Store
from .gate import MINISIG_FILE, OMS_FILE, signatures_of
from .keys import TrustedKey, revoked_keys, trusted_keys
from .minisign import MOST_BYTES, PublicKey, Signature, shown_time
from .policy import Rule, rule_for
from .seen import Seen


@dataclass(frozen=True)
class Verdict:
    """What a pack's signature says. Without a trusted key nothing but `words` and `key_id` is given.

    Attributes:
        key_id: of the key that signed, or is said to have.
        key_name: under which it is trusted; None: it is not, or nobody signed.
        time_s: when it was signed, by the signer's clock.
        name, version: what the signer called the pack.
        words: all of it in a sentence.
        asked: whether the policy asked for a signature: then `words` without a `key_name` are worth a warning.
    """

    words: str
    key_id: str | None = None
    key_name: str | None = None
    time_s: int | None = None
    name: str | None = None
    version: str | None = None
    asked: bool = False


def judge(folder: Path, data: bytes, *places: str) -> Verdict:
    """Judges the signature of a pack.

    Args:
        folder: the pack's.
        data: the bytes of its pack.json, unread.
        places: where it comes from, for the policy's patterns, beside where it is and what the store knows of it.

    Raises:
        DamagedError: a signature is none, or does not fit.
        InputError: the policy asks for a signature that is not there; the key is revoked; the version is older than one
            that was taken from that key.
    """
    version = Store().version_of(folder)
    pulled_from = [version.origin.reference] if version is not None else []
    rule = rule_for(folder.absolute().as_posix(), *pulled_from, *places)
    if rule.mode == "off":
        return Verdict("the policy does not ask for a signature here")
    keys = trusted_keys()
    verdicts = []
    for path in signatures_of(folder):
        try:
            verdicts.append(_minisign(path, data, keys) if path.name == MINISIG_FILE else _oms(path, data, keys))
        except SlmEdgeError as error:
            raise type(error)(error.message, where=path, hint=error.hint, problems=error.problems) from None
    return _weigh(folder, rule, keys, verdicts)


def judge_bytes(data: bytes, signature: bytes, where: str, *places: str) -> tuple[Verdict, Signature]:
    """Judges minisign's signature of any file, such as a channel: it must be there and of a trusted key.

    Args:
        where: what to call the file in messages.
        places: where it comes from, for the policy's patterns.

    Raises:
        DamagedError, InputError: as `judge`; also where the key is not trusted, whatever the policy says.
    """
    rule, keys = rule_for(where, *places), trusted_keys()
    parsed = Signature.parse(signature)
    key = _trusted(parsed.key_id, keys)
    if key is None or not rule.takes(key):
        raise InputError(f"is signed by the key {parsed.key_id}, which is not trusted for it", where=where, hint=_HINT)
    parsed.check(data, PublicKey.parse(key.text))
    return _verdict(parsed, key), parsed


_HINT: Final = "slm-edge key list shows the trusted keys, slm-edge key trust adds one"


def _trusted(key_id: str, keys: list[TrustedKey]) -> TrustedKey | None:
    """The trusted key of that id; None if it is unknown.

    Raises:
        InputError: it is revoked.
    """
    if any(key.key_id == key_id for key in revoked_keys()):
        raise InputError(f"is of the key {key_id}, which was revoked here", hint="get the pack anew from its maker")
    return next((key for key in keys if key.key_id == key_id), None)


def _minisign(path: Path, data: bytes, keys: list[TrustedKey]) -> Verdict:
    signature = Signature.parse(read_bytes(path, MOST_BYTES))
    key = _trusted(signature.key_id, keys)
    if key is None:
        return Verdict(f"signed by the key {signature.key_id}, which is not trusted here", signature.key_id)
    signature.check(data, PublicKey.parse(key.text))
    verdict = _verdict(signature, key)
    if verdict.name and verdict.version:
        Seen.read().check_version(key.key_id, verdict.name, verdict.version, hashlib.sha256(data).hexdigest())
    return verdict


def _verdict(signature: Signature, key: TrustedKey) -> Verdict:
    name, version = signature.facts.get("name"), signature.facts.get("version")
    when = f" on {shown_time(signature.time_s)}" if signature.time_s is not None else ""
    what = f", as {name} {version}" if name and version else ""
    words = f"signed by {key.name} (key {key.key_id}){when}{what}"
    return Verdict(words, key.key_id, key.name, signature.time_s, name, version)


def _oms(path: Path, data: bytes, keys: list[TrustedKey]) -> Verdict:
    from .oms import MOST_BYTES as MOST_OMS_BYTES
    from .oms import ModelSignature

    signature = ModelSignature.parse(read_bytes(path, MOST_OMS_BYTES))
    key = _trusted(signature.key_id, keys)
    if key is None:
        return Verdict(f"signed by the key {signature.key_id[:16]}…, which is not trusted here", signature.key_id)
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return Verdict(f"signed by a {OMS_FILE}, which cannot be checked here: {extra_hint('oms')}", key.key_id)
    signature.check(key.text)
    if signature.files.get("pack.json") != hashlib.sha256(data).hexdigest():
        raise DamagedError("the signature is of another pack.json")
    return Verdict(f"signed by {key.name} (ECDSA key {key.key_id[:16]}…)", key.key_id, key.name)


def _weigh(folder: Path, rule: Rule, keys: list[TrustedKey], verdicts: list[Verdict]) -> Verdict:
    """The verdict that counts: of a key that the rule takes, minisign's first."""
    by_id = {key.key_id: key for key in keys}
    good = [verdict for verdict in verdicts if verdict.key_name is not None and verdict.key_id is not None]
    for verdict in good:
        if rule.takes(by_id[verdict.key_id or ""]):
            return verdict
    if good:
        words = f"{good[0].words}, a key that the policy does not take for it"
    else:
        words = verdicts[0].words if verdicts else "not signed"
    if rule.mode == "enforce":
        raise InputError(
            f"is {words}; the policy {rule.pattern!r} asks for a signature of a trusted key",
            where=folder,
            hint=f"{_HINT}; slm-edge pack sign signs a pack",
        )
    return Verdict(words, verdicts[0].key_id if verdicts else None, asked=rule.mode == "warn")
