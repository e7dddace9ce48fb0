"""Secret keys in minisign's own form, encrypted by a passphrase: `minisign -S -s my.key` takes ours, and we take its.

    secret = SecretKey.new()
    Path("my.key").write_text(secret.text(passphrase))
    SecretKey.parse(text, passphrase).sign(data, {"name": "my-pack", "version": "1.0"})

scrypt and Ed25519 are libsodium's, through PyNaCl. A key without a passphrase is neither written nor taken.
"""

import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import Final

from ..errors import DamagedError, DoesNotFitError, InputError
from .minisign import KEY_ALGORITHM, UNTRUSTED, PublicKey, Signature, comment_of, decoded, encoded, id_bytes, shown_id

KDF: Final = b"Sc"
CHECKSUM: Final = b"B2"
# scrypt's work for a new key: 256 MiB and about a second (N = 2^18, r = 8, p = 1). minisign's own takes 1 GiB.
NEW_WORK: Final = (1 << 23, 1 << 28)
# Of a key file: what minisign writes at most; more would be somebody's way to fill this machine's memory.
MOST_WORK: Final = (1 << 25, 1 << 30)
_KEY_BYTES: Final = 8 + 64 + 32


@dataclass(frozen=True)
class SecretKey:
    """An Ed25519 key pair.

    Attributes:
        public: its public half.
        seed: the 32 secret bytes.
    """

    public: PublicKey
    seed: bytes = field(repr=False)

    @classmethod
    def new(cls) -> "SecretKey":
        """A new random key."""
        from nacl.signing import SigningKey

        seed = os.urandom(32)
        return cls(PublicKey(shown_id(os.urandom(8)), bytes(SigningKey(seed).verify_key)), seed)

    @classmethod
    def parse(cls, text: str, passphrase: str) -> "SecretKey":
        """A key from the text of a secret key's file.

        Raises:
            InputError: it is none, or the passphrase is wrong.
            DoesNotFitError: there is not the memory that its passphrase takes.
            DamagedError: its halves do not belong together.
        """
        from nacl.signing import SigningKey

        lines = text.removesuffix("\n").split("\n")
        try:
            if len(lines) != 2 or not lines[0].startswith(UNTRUSTED):
                raise ValueError("it has not two lines")
            raw = decoded(lines[1].removesuffix("\r"), 54 + _KEY_BYTES)
            if raw[:2] != KEY_ALGORITHM or raw[4:6] != CHECKSUM:
                raise ValueError("it is of another kind")
            work = int.from_bytes(raw[38:46], "little"), int.from_bytes(raw[46:54], "little")
            if raw[2:4] == KDF and (work[0] > MOST_WORK[0] or work[1] > MOST_WORK[1]):
                raise ValueError(f"its passphrase takes {work[1]} bytes of memory; {MOST_WORK[1]} at most")
        except ValueError as error:
            raise InputError(f"is no secret key of minisign ({error})", hint="slm-edge key new makes one") from None
        if raw[2:4] != KDF:
            raise InputError("is a secret key without a passphrase", hint="give it one: minisign -C -s FILE")
        key = _xor(raw[54:], _stream(passphrase, raw[6:38], work))
        key_id, seed, public, checksum = key[:8], key[8:40], key[40:72], key[72:]
        if checksum != _checksum(key_id, seed + public):
            raise InputError("the passphrase is wrong")
        if bytes(SigningKey(seed).verify_key) != public:
            raise DamagedError("the halves of the key do not belong together")
        return cls(PublicKey(shown_id(key_id), public), seed)

    def text(self, passphrase: str, work: tuple[int, int] | None = None) -> str:
        """The text of a secret key's file.

        Args:
            work: scrypt's limits for operations and memory (bytes), in libsodium's sense; None for `NEW_WORK`.

        Raises:
            InputError: the passphrase is empty.
            DoesNotFitError: there is not the memory that it takes.
        """
        if not passphrase:
            raise InputError("the passphrase is empty", hint="a secret key is kept encrypted; choose one")
        work = work or NEW_WORK
        key_id, salt = id_bytes(self.public.key_id), os.urandom(32)
        pair = self.seed + self.public.data
        key = key_id + pair + _checksum(key_id, pair)
        limits = b"".join(value.to_bytes(8, "little") for value in work)
        raw = KEY_ALGORITHM + KDF + CHECKSUM + salt + limits + _xor(key, _stream(passphrase, salt, work))
        return f"{UNTRUSTED}encrypted secret key {self.public.key_id}\n{encoded(raw)}\n"

    def sign(self, data: bytes, facts: dict[str, str], time_s: int | None = None) -> Signature:
        """Signs the bytes of a file.

        Args:
            facts: what the trusted comment says beside the time: `file`, `name`, `version`.
            time_s: None for now.

        Raises:
            InputError: a fact cannot be written into a comment.
        """
        from nacl.signing import SigningKey

        key = SigningKey(self.seed)
        comment = comment_of({"timestamp": str(int(time.time()) if time_s is None else time_s)} | facts)
        signature = key.sign(hashlib.blake2b(data).digest()).signature
        return Signature(self.public.key_id, comment, signature, key.sign(signature + comment.encode()).signature)


def _checksum(key_id: bytes, pair: bytes) -> bytes:
    return hashlib.blake2b(KEY_ALGORITHM + key_id + pair, digest_size=32).digest()


def _xor(data: bytes, stream: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, stream, strict=True))


def _stream(passphrase: str, salt: bytes, work: tuple[int, int]) -> bytes:
    from nacl.pwhash import scrypt

    try:
        return scrypt.kdf(_KEY_BYTES, passphrase.encode(), salt, opslimit=work[0], memlimit=work[1])
    except MemoryError:
        pass
    except Exception as error:  # noqa: BLE001 - PyNaCl raises its own errors, and RuntimeError where memory lacks
        raise DoesNotFitError(f"the passphrase cannot be tried ({error}): it takes {work[1] >> 20} MiB") from None
    raise DoesNotFitError(f"the passphrase cannot be tried: it takes {work[1] >> 20} MiB of memory")
