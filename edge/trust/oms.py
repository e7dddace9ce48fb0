"""`model.sig` of OpenSSF model signing 1.0 with a key: written and read; needs the package cryptography (`[oms]`).

    text = sign_files("my-pack", {"pack.json": sha256, …}, private_pem, passphrase)
    signature = ModelSignature.parse(data)
    signature.check(public_pem)             # DamagedError unless it fits
    signature.files                         # path -> sha256 of every signed file

It is a sigstore bundle 0.3 with a DSSE envelope around an in-toto statement, which lists the sha256 of each file. Keys
are ECDSA on P-256, P-384 or P-521. What `model_signing verify key` takes of ours, and ours takes of `model_signing sign
key`, is compared by `python -m slm_edge.benchmarks.delivery.model_signing`.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import DamagedError, InputError, UnsupportedError
from ..files.read import loads_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://model_signing/signature/v1.0"
MOST_BYTES: Final = 16 << 20
# What is not signed: the signatures themselves.
IGNORED: Final = ("model.sig", "pack.json.minisig")
CURVES: Final = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


@dataclass(frozen=True)
class ModelSignature:
    """A signature as it was read; nothing in it is true before `check`.

    Attributes:
        key_id: sha256 of the key's PEM, which the bundle gives as a hint.
        files: path -> sha256.
    """

    key_id: str
    files: dict[str, str]
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> "ModelSignature":
        """A signature from the bytes of a `model.sig`.

        Raises:
            DamagedError: it is none.
            UnsupportedError: it is of another kind: without a key, by shards, by other hashes.
        """
        try:
            bundle = loads_json(data.decode("utf-8"))
            if bundle["mediaType"] != BUNDLE:
                raise UnsupportedError(f"is a bundle of the kind {bundle['mediaType']!r:.80}", hint=f"{BUNDLE} is read")
            hint = bundle["verificationMaterial"].get("publicKey", {}).get("hint")
            if not isinstance(hint, str):
                raise UnsupportedError("is not signed with a plain key", hint="sign it with: model_signing sign key")
            envelope = bundle["dsseEnvelope"]
            (signed,) = envelope["signatures"]
            if envelope["payloadType"] != PAYLOAD:
                raise ValueError("its payload is of another kind")
            payload = base64.b64decode(envelope["payload"], validate=True)
            files = _files(loads_json(payload.decode("utf-8")))
            return cls(hint, files, payload, base64.b64decode(signed["sig"], validate=True))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"is no signature of OpenSSF model signing ({error})") from None

    def check(self, public_pem: str) -> None:
        """Checks the signature.

        Raises:
            DamagedError: it was not made with that key, or was changed.
            InputError: the key is none of ECDSA on P-256, P-384, P-521.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(public_pem.encode())
        except ValueError as error:
            raise InputError(f"is no public key ({error})") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise InputError("is no ECDSA key")
        try:
            key.verify(self.signature, _enveloped(self.payload), ec.ECDSA(_hash_of(key)))
        except InvalidSignature:
            raise DamagedError(f"the signature of the key {self.key_id[:16]}… does not fit its bytes") from None

    def differences(self, files: Mapping[str, str]) -> list[str]:
        """What of a folder is not as it was signed.

        Args:
            files: path -> sha256 of everything there but the signatures.
        """
        here = {name: sha256 for name, sha256 in files.items() if name not in IGNORED}
        signed = {name: sha256 for name, sha256 in self.files.items() if name not in IGNORED}
        faults = [f"{name}: signed, but missing" for name in sorted(signed.keys() - here.keys())]
        faults += [f"{name}: not signed by model.sig" for name in sorted(here.keys() - signed.keys())]
        both = sorted(signed.keys() & here.keys())
        return faults + [f"{name}: not as model.sig signed it" for name in both if signed[name] != here[name]]


def sign_files(name: str, files: Mapping[str, str], private_pem: bytes, passphrase: str) -> str:
    """The text of a `model.sig`.

    Args:
        name: of the model.
        files: path -> sha256 of every file but the signatures.
        private_pem: an ECDSA private key, encrypted.

    Raises:
        InputError: it is no such key, or the passphrase is wrong.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _private(private_pem, passphrase)
    resources = [
        {"name": path, "algorithm": "sha256", "digest": files[path]} for path in sorted(files) if path not in IGNORED
    ]
    payload = json.dumps(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
            "predicateType": PREDICATE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": list(IGNORED),
                },
                "resources": resources,
            },
        },
        indent=2,
    ).encode()
    signature = key.sign(_enveloped(payload), ec.ECDSA(_hash_of(key.public_key())))
    public = public_pem(key.public_key())
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public.encode()).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode("ascii"),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
        },
    }
    return json.dumps(bundle) + "\n"


def new_ecdsa_key(passphrase: str) -> tuple[str, str]:
    """A new key on P-256: the encrypted private PEM and the public one.

    Raises:
        InputError: the passphrase is empty.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not passphrase:
        raise InputError("the passphrase is empty", hint="a secret key is kept encrypted; choose one")
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )
    return private.decode("ascii"), public_pem(key.public_key())


def public_pem(key: "ec.EllipticCurvePublicKey") -> str:
    """A public key's PEM."""
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def _private(pem: bytes, passphrase: str) -> "ec.EllipticCurvePrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, passphrase.encode())
    except TypeError:
        raise InputError(
            "is a private key without a passphrase", hint="openssl pkcs8 -topk8 -in FILE encrypts it"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("is no private key in PEM, or the passphrase is wrong") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError("is no ECDSA key", hint="slm-edge key new --ecdsa makes one")
    return key


def _hash_of(key: "ec.EllipticCurvePublicKey") -> "HashAlgorithm":
    from cryptography.hazmat.primitives import hashes

    if key.curve.name not in CURVES:
        raise InputError(f"is a key on the curve {key.curve.name}", hint="P-256, P-384 and P-521 are taken")
    found: HashAlgorithm = getattr(hashes, CURVES[key.curve.name])()
    return found


def _enveloped(payload: bytes) -> bytes:
    """What DSSE signs: the payload with its type and lengths."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _root(resources: list[dict[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(row["digest"]) for row in resources)).hexdigest()


def _files(statement: Any) -> dict[str, str]:
    if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
        raise UnsupportedError(f"signs a statement of the kind {statement['predicateType']!r:.80}")
    predicate = statement["predicate"]
    how, rows = predicate["serialization"], predicate["resources"]
    if how["method"] != "files" or how["hash_type"] != "sha256":
        raise UnsupportedError(
            f"signs by {how['method']!r:.20} and {how['hash_type']!r:.20}; files and sha256 are read"
        )
    (subject,) = statement["subject"]
    if any(row["algorithm"] != "sha256" or len(row["digest"]) != 64 for row in rows):
        raise ValueError("a file's hash is not a sha256")
    if subject["digest"]["sha256"] != _root(rows):
        raise ValueError("its files and its subject differ")
    files: dict[str, str] = {row["name"]: row["digest"] for row in rows}
    if len(files) < len(rows):
        raise ValueError("a file is listed twice")
    return files
