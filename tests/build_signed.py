"""A key that signs tiny packs quickly: its passphrase takes little memory, as no real key's should."""

from slm_edge.edge.trust.keys import trust_key
from slm_edge.edge.trust.secret_key import SecretKey

PASSPHRASE = "correct horse"
LITTLE_WORK = (1 << 15, 1 << 20)


def new_key(folder, name="maker", trusted=True):
    """Writes NAME.key and NAME.pub, and trusts it here; gives the key."""
    key = SecretKey.new()
    (folder / f"{name}.key").write_text(key.text(PASSPHRASE, LITTLE_WORK))
    (folder / f"{name}.pub").write_text(key.public.text())
    if trusted:
        trust_key(key.public.text(), name)
    return key


def sign(key, folder, version=None, time_s=None, name="pack"):
    """Signs a pack's pack.json as it is."""
    facts = {"file": "pack.json", "name": name} | ({"version": version} if version else {})
    signature = key.sign((folder / "pack.json").read_bytes(), facts, time_s)
    (folder / "pack.json.minisig").write_text(signature.text())
    return signature
