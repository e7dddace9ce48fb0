"""minisign's public keys and signatures, read and written: Debian's `minisign` takes ours, and we take its.

    signature = Signature.parse(text)
    signature.check(data, public_key)       # DamagedError unless every byte is as it was signed

A signature has four lines: a comment that nobody signed, "ED" with the key's id and an Ed25519 signature over
BLAKE2b-512 of the file, a comment that is signed, and a signature over the first one and that comment. What is not
written as minisign writes it is refused, so that one signature has one form; "Ed", over the file unhashed, is too.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ..errors import DamagedError, InputError

ALGORITHM: Final = b"ED"
KEY_ALGORITHM: Final = b"Ed"
UNTRUSTED: Final = "untrusted comment: "
TRUSTED: Final = "trusted comment: "
MOST_BYTES: Final = 16 << 10
MOST_COMMENT_BYTES: Final = 8191
_VERSION: Final = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){0,3}")


def shown_id(key_id: bytes) -> str:
    """A key's id of 8 bytes as minisign shows it: 16 hex digits."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def version_parts(version: str) -> tuple[int, ...]:
    """A version of one to four numbers, "1.4.0", as it is compared: (1, 4, 0, 0).

    Raises:
        InputError: it is no such version.
    """
    if not _VERSION.fullmatch(version):
        raise InputError(f"{version[:80]!r} is no version", hint="one to four numbers with dots, such as 1.4.0")
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key.

    Attributes:
        key_id: as minisign shows it.
        data: the 32 bytes.
    """

    key_id: str
    data: bytes

    @classmethod
    def parse(cls, text: str) -> "PublicKey":
        """A key from the text of a `.pub` file, or from its second line alone.

        Raises:
            InputError: it is none.
        """
        lines = text.removesuffix("\n").split("\n")
        try:
            if len(lines) == 2 and not lines[0].startswith(UNTRUSTED):
                raise ValueError("its first line is no comment")
            if len(lines) > 2:
                raise ValueError(f"it has {len(lines)} lines")
            raw = decoded(lines[-1].removesuffix("\r"), 42)
            if raw[:2] != KEY_ALGORITHM:
                raise ValueError("it is of another kind")
        except ValueError as error:
            raise InputError(f"is no public key of minisign ({error})", hint="slm-edge key new makes one") from None
        return cls(shown_id(raw[2:10]), raw[10:])

    @property
    def line(self) -> str:
        """The key in one line, as `minisign -P` takes it."""
        return encoded(KEY_ALGORITHM + id_bytes(self.key_id) + self.data)

    def text(self, comment: str = "") -> str:
        """The text of a `.pub` file."""
        return f"{UNTRUSTED}{comment or 'minisign public key ' + self.key_id}\n{self.line}\n"


@dataclass(frozen=True)
class Signature:
    """A detached signature; nothing in it is true before `check`.

    Attributes:
        key_id: of the key that it says it was made with.
        comment: the trusted comment.
        signature: over BLAKE2b-512 of the file, 64 bytes.
        whole: over `signature` and `comment`, 64 bytes.
    """

    key_id: str
    comment: str
    signature: bytes
    whole: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Signature":
        """A signature from the bytes of a `.minisig` file.

        Raises:
            DamagedError: it is none, or not written as minisign writes it.
        """
        try:
            lines = data.decode("utf-8").removesuffix("\n").split("\n")
            lines = [line.removesuffix("\r") for line in lines]
            if len(data) > MOST_BYTES or len(lines) != 4:
                raise ValueError(f"{len(lines)} lines, {len(data)} bytes")
            if not lines[0].startswith(UNTRUSTED) or not lines[2].startswith(TRUSTED):
                raise ValueError("a comment is missing")
            raw, whole = decoded(lines[1], 74), decoded(lines[3], 64)
            if raw[:2] != ALGORITHM:
                raise ValueError("it is not of the kind 'ED', over BLAKE2b-512; minisign before 0.10 wants -H for it")
        except ValueError as error:
            raise DamagedError(f"is no signature of minisign ({error})") from None
        return cls(shown_id(raw[2:10]), lines[2].removeprefix(TRUSTED), raw[10:], whole)

    def check(self, data: bytes, key: PublicKey) -> None:
        """Checks both signatures.

        Args:
            data: the bytes of the signed file.

        Raises:
            DamagedError: the file, the comment or the signature is not as it was when it was signed with that key.
        """
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey

        try:
            if key.key_id != self.key_id:
                raise BadSignatureError
            public = VerifyKey(key.data)
            public.verify(hashlib.blake2b(data).digest(), self.signature)
            public.verify(self.signature + self.comment.encode(), self.whole)
        except (BadSignatureError, ValueError):
            raise DamagedError(f"the signature of the key {key.key_id} does not fit its bytes") from None

    @property
    def facts(self) -> dict[str, str]:
        """What the comment says, by key: minisign's own `timestamp` and `file`, our `name` and `version`."""
        pairs = (part.partition(":") for part in self.comment.split("\t"))
        return {key: value for key, colon, value in pairs if colon}

    @property
    def time_s(self) -> int | None:
        """When it was made, by the signer's clock: seconds since 1970; None where it does not say."""
        text = self.facts.get("timestamp", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 11 else None

    def text(self, comment: str = "signature from slm-edge") -> str:
        """The text of a `.minisig` file."""
        line = encoded(ALGORITHM + id_bytes(self.key_id) + self.signature)
        return f"{UNTRUSTED}{comment}\n{line}\n{TRUSTED}{self.comment}\n{encoded(self.whole)}\n"


def shown_time(time_s: int) -> str:
    """Seconds since 1970 for people, in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def comment_of(facts: dict[str, str]) -> str:
    """A trusted comment of keys and values.

    Raises:
        InputError: a value has a line break or a tab, or all are too long.
    """
    for key, value in facts.items():
        if not value.isprintable():
            raise InputError(f"the {key} {value[:80]!r} cannot be signed: it has letters that do not print")
    comment = "\t".join([*(f"{key}:{value}" for key, value in facts.items()), "hashed"])
    if len(comment.encode()) > MOST_COMMENT_BYTES:
        raise InputError(f"the comment to be signed is longer than {MOST_COMMENT_BYTES} bytes")
    return comment


def id_bytes(key_id: str) -> bytes:
    """The 8 bytes of a key's id."""
    return int(key_id, 16).to_bytes(8, "little")


def encoded(raw: bytes) -> str:
    """Base64."""
    return base64.b64encode(raw).decode("ascii")


def decoded(text: str, n_bytes: int) -> bytes:
    """The bytes of a base64 text in the one form that encoding gives; ValueError for any other."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a line is no base64") from None
    if len(raw) != n_bytes or encoded(raw) != text:
        raise ValueError(f"a line holds {len(raw)} bytes, not {n_bytes}, or is written in another form")
    return raw
