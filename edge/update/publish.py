"""Makes channels: a folder of static files, which any web server or stick carries to the devices.

    publish(Path("site"), Path("my-pack"), secret, percent=25)
    change(Path("site"), secret, lambda channel: channel.with_release(replace(channel.find("1.1"), withdrawn=True)))

Blobs come first, the channel's signature and list last: a server that hands out the folder meanwhile shows the old list
or the new one. Between the two writes the signature is of the other one, which devices refuse, and try again later.
"""

import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..files.atomic import atomic_file, copy_file, make_folder
from ..files.read import read_bytes, sha256_file
from ..pack.manifest import PACK_FILE, raw_manifest
from ..pack.pack import Pack, verify_folder
from ..trust.gate import MINISIG_FILE
from ..trust.minisign import MOST_BYTES as MOST_SIGNATURE_BYTES
from ..trust.minisign import PublicKey, Signature
from ..trust.secret_key import SecretKey
from ..written import check_name
from .channel import CHANNEL_FILE, MOST_BYTES, Channel, Release

SIGNED_BY: Final = f"{CHANNEL_FILE}.minisig"


def publish(
    site: Path,
    folder: Path,
    secret: SecretKey,
    *,
    percent: float = 100.0,
    min_runtime: str = "0",
    with_base: bool = False,
    expires_s: int | None = None,
) -> Channel:
    """Adds a signed pack to a channel, or changes how many machines shall have it; makes the channel if there is none.

    Args:
        site: the channel's folder.
        percent: of the machines that shall have it.
        with_base: put a base that the pack does not carry there too; else devices take it from the pack's sources.
        expires_s: of the channel; None leaves it.

    Raises:
        InputError: the pack is not signed with that key and a version, or is of another name than the channel.
        DamagedError: the pack is not as it was built, or its signature does not fit.
    """
    manifest = verify_folder(folder, any_signer=True)
    check_name(manifest.name, "a pack")
    raw = raw_manifest(folder)
    signature = _own_signature(folder, raw, secret.public)
    version = signature.facts.get("version")
    if version is None:
        raise InputError("is signed without a version", where=folder, hint="slm-edge pack sign --version VERSION")
    files = {PACK_FILE: folder / PACK_FILE, MINISIG_FILE: folder / MINISIG_FILE}
    files |= {name: folder / name for name in manifest.files}
    if with_base:
        files[manifest.base.file_name] = Pack.open(folder).base_path()
    sizes: dict[str, int] = {}
    digests: dict[str, str] = {}
    make_folder(site / "blobs")
    for name, path in files.items():
        digests[name] = sha256 = sha256_file(path)
        sizes[sha256] = path.stat().st_size
        blob = site / "blobs" / sha256
        if not blob.is_file() or blob.stat().st_size != sizes[sha256]:
            with atomic_file(blob) as aside:
                copy_file(path, aside)
    release = Release(
        version,
        digests[PACK_FILE],
        digests[MINISIG_FILE],
        sizes,
        min_runtime=min_runtime,
        percent=percent,
        seed=secrets.token_hex(8),
    )

    def added(channel: Channel) -> Channel:
        before = [row for row in channel.releases if row.version == version]
        if before and before[0].pack != release.pack:
            raise InputError(
                f"the channel has another pack as version {version}", where=site, hint="take a new version"
            )
        # Those that have it already stay the ones that have it.
        row = replace(release, seed=before[0].seed) if before else release
        return replace(channel.with_release(row), expires_s=channel.expires_s if expires_s is None else expires_s)

    return change(site, secret, added, name=manifest.name)


def change(site: Path, secret: SecretKey, changed: Callable[[Channel], Channel], *, name: str | None = None) -> Channel:
    """Changes a channel's list and signs it.

    Args:
        name: of the pack, where the channel may be new.

    Raises:
        InputError: there is no channel, or it is of another pack.
        DamagedError: it is not as this key signed it.
    """
    path = site / CHANNEL_FILE
    if path.is_file():
        data = read_bytes(path, MOST_BYTES)
        Signature.parse(read_bytes(site / SIGNED_BY, MOST_SIGNATURE_BYTES)).check(data, secret.public)
        before = Channel.parse(data)
    elif name is not None:
        before = Channel(name, 0)
    else:
        raise InputError("there is no channel", where=site, hint="slm-edge channel release makes one")
    if name is not None and before.name != name:
        raise InputError(f"is the channel of {before.name!r}, not of {name!r}", where=site)
    after = changed(before)
    text = after.text()
    signature = secret.sign(
        text.encode(), {"file": CHANNEL_FILE, "name": f"channel:{after.name}", "version": str(after.sequence)}
    )
    with atomic_file(site / SIGNED_BY) as aside:
        aside.write_text(signature.text(), encoding="utf-8")
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return after


def _own_signature(folder: Path, raw: bytes, key: PublicKey) -> Signature:
    if not (folder / MINISIG_FILE).is_file():
        raise InputError("is not signed", where=folder, hint="slm-edge pack sign --key KEY --version VERSION")
    signature = Signature.parse(read_bytes(folder / MINISIG_FILE, MOST_SIGNATURE_BYTES))
    if signature.key_id != key.key_id:
        raise InputError(f"is signed with the key {signature.key_id}, the channel with {key.key_id}", where=folder)
    signature.check(raw, key)
    return signature
