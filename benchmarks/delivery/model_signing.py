"""Our model.sig and that of the package model-signing, each checked by the other, on P-256, P-384 and P-521.

    python -m venv theirs && theirs/bin/pip install model-signing pyOpenSSL
    python -m slm_edge.benchmarks.delivery.model_signing theirs/bin/model_signing

model-signing lives in an environment of its own: it brings 36 MiB of packages that nothing here needs. Each side signs
a copy of the starter pack, the other side must take it, and refuse it once a byte of any file, or of the signed
statement, is another, or a file is added. Prints one JSON document; exits with 1 where the two differ.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...edge.errors import SlmEdgeError
from ...edge.files.read import sha256_file
from ...edge.pack.pack import starter_folder
from ...edge.pack.sign import sign_pack
from ...edge.trust.gate import OMS_FILE
from ...edge.trust.oms import ModelSignature, public_pem

PASSPHRASE = "proof"


def files_of(folder: Path) -> dict[str, str]:
    """Path -> sha256 of all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def we_take(folder: Path, public: str) -> bool:
    """Whether our reader takes a folder's model.sig and all files of the folder."""
    try:
        signature = ModelSignature.parse((folder / OMS_FILE).read_bytes())
        if signature.key_id != hashlib.sha256(public.encode()).hexdigest():
            return False
        signature.check(public)
    except SlmEdgeError:
        return False
    return not signature.differences(files_of(folder))


def changes(folder: Path) -> Iterator[str]:
    """Changes one thing of a folder, waits, and undoes it, for each file and for the signature."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != OMS_FILE):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        yield f"a byte of {path.relative_to(folder)}"
        path.write_bytes(good)
        moved = path.with_name("moved")
        path.rename(moved)
        yield f"{path.relative_to(folder)} renamed"
        moved.rename(path)
    (folder / "extra.txt").write_text("x")
    yield "a file more"
    (folder / "extra.txt").unlink()
    text = (folder / OMS_FILE).read_text()
    bundle = json.loads(text)
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"]).replace(b'"name": "', b'"name": "x', 1)
    envelope["payload"] = base64.b64encode(payload).decode()
    (folder / OMS_FILE).write_text(json.dumps(bundle))
    yield "another statement under the same signature"
    (folder / OMS_FILE).write_text(text)


@click.command()
@click.argument("program", type=click.Path(path_type=Path, exists=True))
def main(program: Path) -> None:
    """Compares with PROGRAM, the command `model_signing` of an environment of its own."""

    def they_take(folder: Path, public: Path) -> bool:
        words = ["verify", "key", folder, "--signature", folder / OMS_FILE, "--public_key", public]
        return subprocess.run([program, *map(str, words)], capture_output=True).returncode == 0

    rows, differ = [], 0
    with tempfile.TemporaryDirectory() as place:
        folder, private_file, public_file = Path(place) / "pack", Path(place) / "private", Path(place) / "public"
        shutil.copytree(starter_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
        for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
            key = ec.generate_private_key(curve)
            form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
            hidden = key.private_bytes(*form, serialization.BestAvailableEncryption(PASSPHRASE.encode()))
            public = public_pem(key.public_key())
            public_file.write_text(public)
            private_file.write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
            for signer in ("slm-edge", "model-signing"):
                (folder / OMS_FILE).unlink(missing_ok=True)
                if signer == "slm-edge":
                    (folder / OMS_FILE).write_text(sign_pack(folder, hidden.decode(), PASSPHRASE, None)[1])
                else:
                    words = ["sign", "key", folder, "--private_key", private_file, "--signature", folder / OMS_FILE]
                    subprocess.run([program, *map(str, words)], check=True, capture_output=True)
                verdicts = [("as signed", we_take(folder, public), they_take(folder, public_file), True)]
                # Each start of theirs takes a second: all changes with one key, one with the others.
                for n, what in enumerate(changes(folder)):
                    if n < 1 or curve.name == "secp256r1":
                        verdicts.append((what, we_take(folder, public), they_take(folder, public_file), False))
                wrong = [what for what, ours, theirs, right in verdicts if not ours == theirs == right]
                differ += len(wrong)
                rows.append({"curve": curve.name, "signer": signer, "n_cases": len(verdicts), "wrong": wrong})
                print(f"{curve.name} {signer}: {len(verdicts)} cases, wrong: {wrong or 'none'}", file=sys.stderr)  # noqa: T201
    print(json.dumps({"rows": rows, "agree": not differ}, indent=2))  # noqa: T201
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
