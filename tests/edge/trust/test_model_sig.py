"""model.sig of OpenSSF model signing: ours and theirs, and what is refused of either."""

import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_signed import PASSPHRASE, new_key, sign
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from slm_edge.edge.errors import DamagedError, InputError, UnsupportedError
from slm_edge.edge.files.cache import trust_folder
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.sign import sign_pack
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.trust.keys import parse_key, trust_key
from slm_edge.edge.trust.oms import ModelSignature, new_ecdsa_key, public_pem, sign_files

# Written by model-signing 1.1.1 (`sign key`) over the files of THEIR_FILES, with a key on each curve.
THEIRS = json.loads((Path(__file__).parent / "model_signing_1_1_1.json").read_text())
FILES = {"pack.json": hashlib.sha256(b"{}").hexdigest(), "adapters/a.gguf": hashlib.sha256(b"a").hexdigest()}


@pytest.fixture(scope="module")
def keys():
    return new_ecdsa_key(PASSPHRASE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base(folder / "base.gguf")
    return build_pack(
        folder / "pack", base=base, adapters=[NewAdapter("a", tiny_adapter(folder / "a.gguf", base))]
    ).folder


@pytest.fixture
def folder(made, keys, tmp_path):
    """A pack with a model.sig of a trusted key, and a policy that asks for one."""
    folder = shutil.copytree(made, tmp_path / "pack")
    name, text, _ = sign_pack(folder, keys[0], PASSPHRASE, None)
    (folder / name).write_text(text)
    trust_key(keys[1], "maker")
    (trust_folder() / "policy.toml").write_text('[[trust]]\npattern = "**"\n')
    return folder


@pytest.mark.parametrize("curve", THEIRS)
def test_theirs_is_taken(curve):
    row = THEIRS[curve]
    signature = ModelSignature.parse(row["model.sig"].encode())
    key_id, pem = parse_key(row["public"])
    assert signature.key_id == key_id
    signature.check(pem)
    assert (
        signature.differences({name: hashlib.sha256(text.encode()).hexdigest() for name, text in row["files"].items()})
        == []
    )
    other = next(THEIRS[name]["public"] for name in THEIRS if name != curve)
    with pytest.raises(DamagedError):
        signature.check(other)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_each_curve(curve):
    key = ec.generate_private_key(curve)
    hidden = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    signature = ModelSignature.parse(sign_files("m", FILES, pem, PASSPHRASE).encode())
    signature.check(public_pem(key.public_key()))
    assert signature.files == FILES


def test_keys_that_are_none(keys):
    key = ec.generate_private_key(ec.SECP256K1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    plain = key.private_bytes(*form, serialization.NoEncryption())
    hidden = key.private_bytes(*form, serialization.BestAvailableEncryption(PASSPHRASE.encode()))
    with pytest.raises(InputError, match="without a passphrase"):
        sign_files("m", FILES, plain, PASSPHRASE)
    with pytest.raises(InputError, match="secp256k1"):
        sign_files("m", FILES, hidden, PASSPHRASE)
    with pytest.raises(InputError, match="passphrase is wrong"):
        sign_files("m", FILES, keys[0].encode(), "wrong")
    with pytest.raises(InputError, match="empty"):
        new_ecdsa_key("")


def test_a_pack_with_a_model_sig(folder, keys):
    Pack.open(folder, verify=True)
    verify_folder(folder)
    (folder / "model.sig").unlink()
    with pytest.raises(InputError, match="not signed"):
        Pack.open(folder)


def test_what_it_does_not_sign_is_refused(folder):
    for path in [path for path in folder.rglob("*") if path.is_file() and path.name != "model.sig"]:
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises((DamagedError, InputError)):
            verify_folder(folder)
        path.write_bytes(good)
    (folder / "extra.txt").write_text("x")
    with pytest.raises(DamagedError) as caught:
        verify_folder(folder)
    assert any("extra.txt" in problem for problem in caught.value.problems)


def test_a_signature_of_other_files_is_refused(folder, keys, made):
    """It is whole and of the right key, but lists what is not there, or lacks what is."""
    sha256 = hashlib.sha256((folder / "pack.json").read_bytes()).hexdigest()
    (folder / "model.sig").write_text(
        sign_files("m", {"pack.json": sha256, "more": "0" * 64}, keys[0].encode(), PASSPHRASE)
    )
    Pack.open(folder)
    with pytest.raises(DamagedError) as caught:
        verify_folder(folder)
    assert {"more: signed, but missing", "adapters/a.gguf: not signed by model.sig"} <= set(caught.value.problems)
    (folder / "model.sig").write_text(sign_files("m", FILES, keys[0].encode(), PASSPHRASE))
    with pytest.raises(DamagedError, match=r"another pack\.json"):
        Pack.open(folder)


def changed(text, change):
    """The bundle with a changed statement, under the old signature."""
    bundle = json.loads(text)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(bundle, statement)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(bundle).encode()


def test_changed_bundles_are_refused(keys):
    text = sign_files("m", FILES, keys[0].encode(), PASSPHRASE)

    def put(*path, value, of=1):
        def change(*both):
            place = both[of]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value

        return change

    unsupported = [
        put("mediaType", value="x", of=0),
        put("verificationMaterial", value={"certificate": {}}, of=0),
        put("predicate", "serialization", "method", value="shards"),
        put("predicate", "serialization", "hash_type", value="blake2"),
        put("predicateType", value="x"),
    ]
    for change in unsupported:
        with pytest.raises(UnsupportedError):
            ModelSignature.parse(changed(text, change))
    damaged = [
        put("dsseEnvelope", "signatures", value=[], of=0),
        put("dsseEnvelope", "payloadType", value="x", of=0),
        put("predicate", "resources", 0, "digest", value="0" * 64),
        put("predicate", "resources", 0, "algorithm", value="md5"),
        put("subject", value=[]),
        put("predicate", value=3),
    ]
    for change in damaged:
        with pytest.raises(DamagedError):
            ModelSignature.parse(changed(text, change))
    for data in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(DamagedError):
            ModelSignature.parse(data)
    # Well formed, but not what was signed
    same = ModelSignature.parse(changed(text, put("subject", 0, "name", value="n")))
    with pytest.raises(DamagedError, match="does not fit"):
        same.check(keys[1])


def test_without_cryptography_it_cannot_be_checked(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(InputError, match="cannot be checked here"):
        Pack.open(folder)
    sign(new_key(tmp_path, "second"), folder)
    Pack.open(folder)


def test_from_the_command_line(slm_edge, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made, tmp_path / "pack")
    monkeypatch.setenv("SLM_EDGE_PASSPHRASE", PASSPHRASE)
    assert slm_edge("key", "new", "maker", "--ecdsa", "-o", tmp_path)[0] == 0
    code, _, err = slm_edge("pack", "sign", folder, "--key", tmp_path / "maker.key", "--version", "1.0")
    assert code == 2 and "no place for a version" in err
    assert slm_edge("pack", "sign", folder, "--key", tmp_path / "maker.key")[0] == 0
    assert slm_edge("key", "trust", tmp_path / "maker.pub")[0] == 0
    assert "signed by maker (ECDSA key" in slm_edge("pack", "verify", folder)[1]
