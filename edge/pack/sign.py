"""Signs a pack that is as it was built.

name, text, facts = sign_pack(Path("my-pack"), Path("maker.key").read_text(), passphrase, "1.4.0")
"""

import hashlib
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..trust.gate import MINISIG_FILE, OMS_FILE
from ..trust.minisign import shown_time, version_parts
from .manifest import PACK_FILE, raw_manifest
from .pack import verify_folder


def sign_pack(folder: Path, secret: str, passphrase: str, version: str | None) -> tuple[str, str, dict[str, Any]]:
    """The signature of a pack: the name of its file, its text, and what it says.

    Args:
        secret: the text of a secret key's file: minisign's, or an ECDSA key in PEM.
        version: put into minisign's signed comment; None for none.

    Raises:
        InputError: the key is none, the passphrase is wrong, or the version is none; a version with an ECDSA key.
        DamagedError: the pack is not as it was built, which nobody should sign.
    """
    if version is not None:
        version_parts(version)
    manifest = verify_folder(folder, any_signer=True)
    raw = raw_manifest(folder)
    if secret.lstrip().startswith("-----BEGIN"):
        if version is not None:
            raise InputError(
                "model.sig has no place for a version", hint="leave --version out, or sign with minisign's key"
            )
        from ..trust.oms import ModelSignature, sign_files

        files = {**manifest.files, PACK_FILE: hashlib.sha256(raw).hexdigest()}
        text = sign_files(manifest.name, files, secret.encode(), passphrase)
        key_id = ModelSignature.parse(text.encode()).key_id
        return OMS_FILE, text, {"key": key_id, "words": f"signed with the ECDSA key {key_id[:16]}…"}
    from ..trust.secret_key import SecretKey

    key = SecretKey.parse(secret, passphrase)
    facts = {"file": PACK_FILE, "name": manifest.name} | ({"version": version} if version is not None else {})
    signature = key.sign(raw, facts)
    when = shown_time(signature.time_s or 0)
    words = f"{manifest.name}{f' {version}' if version else ''}, signed with the key {signature.key_id} on {when}"
    return MINISIG_FILE, signature.text(), {"key": signature.key_id, "version": version, "words": words}
