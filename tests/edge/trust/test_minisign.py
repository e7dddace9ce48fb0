"""minisign's files: Debian's program takes ours, we take its, and no byte of a signature can change unseen."""

import base64
import hashlib
import random
import resource
import shutil
import subprocess

import pytest
from build_signed import LITTLE_WORK, PASSPHRASE
from slm_edge.edge.errors import DamagedError, InputError, SlmEdgeError
from slm_edge.edge.trust.minisign import UNTRUSTED, PublicKey, Signature, version_parts
from slm_edge.edge.trust.secret_key import SecretKey

DATA = b"what is signed\n" * 100
# Made by Debian's minisign 0.11 (-G with the passphrase "correct horse", -S), so that no program is needed to compare.
THEIR_PUBLIC = """untrusted comment: minisign public key ED5D8C0BA01EBAD9
RWTZuh6gC4xd7fcbN90oFWOKu9Bzb2YR4dLf2Agr+6soXncc01f+LbYY
"""
THEIR_SIGNATURE = """untrusted comment: signature from minisign secret key
RUTZuh6gC4xd7bX871xwTEgKFlPonbScfVeretHkOEskllzTqRscVqe0F8Bb/OFGhmqvY/w+O8rCm3yMS8g7zG5TW+xPcMUBaAI=
trusted comment: timestamp:1796060000\tfile:hello.txt\thashed
XUwJzuJ5ipfMvhIbf4fZcYgj9EACS2BtH5iLCdN21z0Cc6VrPvCkaQVDYnftlT6Jox+SZIyAjxPLCjvJxls4Dg==
"""


@pytest.fixture(scope="module")
def key():
    return SecretKey.new()


@pytest.fixture
def minisign():
    program = shutil.which("minisign")
    if program is None:
        pytest.skip("the program minisign is not installed (apt-get install minisign)")

    def run(*words, said=""):
        command = [program, *map(str, words)]
        return subprocess.run(
            command, input=said, capture_output=True, text=True, timeout=60, preexec_fn=_with_little_memory
        )

    return run


def _with_little_memory():
    """The program then makes keys whose passphrase takes less than its usual GiB and ten seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (100 << 20, 100 << 20))


def test_a_signature_of_the_program_is_taken():
    signature, public = Signature.parse(THEIR_SIGNATURE.encode()), PublicKey.parse(THEIR_PUBLIC)
    signature.check(b"hello\n", public)
    assert signature.facts["file"] == "hello.txt" and signature.time_s == 1796060000
    assert public.line in THEIR_PUBLIC and f"public key {public.key_id}" in THEIR_PUBLIC
    with pytest.raises(DamagedError):
        signature.check(b"hellp\n", public)


def test_the_program_takes_our_signature(key, minisign, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    (tmp_path / "k.pub").write_text(key.public.text())
    (tmp_path / "f.minisig").write_text(key.sign(DATA, {"name": "größe", "version": "1.2"}).text())
    for named in (["-p", tmp_path / "k.pub"], ["-P", key.public.line]):
        done = minisign("-Vm", tmp_path / "f", *named)
        assert done.returncode == 0 and "name:größe\tversion:1.2" in done.stdout, done.stderr
    (tmp_path / "f").write_bytes(DATA + b"!")
    assert minisign("-Vm", tmp_path / "f", "-p", tmp_path / "k.pub").returncode != 0


def test_the_program_signs_with_our_secret_key(key, minisign, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    (tmp_path / "k.key").write_text(key.text(PASSPHRASE, LITTLE_WORK))
    done = minisign("-Sm", tmp_path / "f", "-s", tmp_path / "k.key", said=PASSPHRASE + "\n")
    assert done.returncode == 0, done.stderr
    Signature.parse((tmp_path / "f.minisig").read_bytes()).check(DATA, key.public)
    assert minisign("-Sm", tmp_path / "f", "-s", tmp_path / "k.key", said="wrong\n").returncode != 0


def test_we_sign_with_the_programs_secret_key(minisign, tmp_path):
    asked = f"{PASSPHRASE}\n{PASSPHRASE}\n"
    done = minisign("-G", "-p", tmp_path / "k.pub", "-s", tmp_path / "k.key", said=asked)
    assert done.returncode == 0, done.stderr
    key = SecretKey.parse((tmp_path / "k.key").read_text(), PASSPHRASE)
    assert key.public == PublicKey.parse((tmp_path / "k.pub").read_text())
    (tmp_path / "f").write_bytes(DATA)
    (tmp_path / "f.minisig").write_text(key.sign(DATA, {}).text())
    assert minisign("-Vm", tmp_path / "f", "-p", tmp_path / "k.pub").returncode == 0


def test_its_older_kinds_are_refused(key, minisign, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    (tmp_path / "k.key").write_text(key.text(PASSPHRASE, LITTLE_WORK))
    done = minisign("-l", "-Sm", tmp_path / "f", "-s", tmp_path / "k.key", said=PASSPHRASE + "\n")
    assert done.returncode == 0, done.stderr
    with pytest.raises(DamagedError, match="BLAKE2b"):
        Signature.parse((tmp_path / "f.minisig").read_bytes())
    assert minisign("-G", "-W", "-p", tmp_path / "w.pub", "-s", tmp_path / "w.key").returncode == 0
    with pytest.raises(InputError, match="without a passphrase"):
        SecretKey.parse((tmp_path / "w.key").read_text(), "")


def test_every_flipped_bit_of_a_signature_is_refused(key):
    text = key.sign(DATA, {"name": "a", "version": "1.0"}, 1796000000).text().encode()
    began = text.index(b"\n")
    for at in range(began, len(text) - 1):
        for bit in range(8):
            changed = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
            # A key's id may become another's: then there is no key to check with.
            with pytest.raises(DamagedError):
                signature = Signature.parse(changed)
                signature.check(DATA, key.public)
    # The first line is not signed, which is why nothing of it is ever shown.
    other = UNTRUSTED.encode() + b"something else" + text[began:]
    Signature.parse(other).check(DATA, key.public)


def test_random_bytes_are_refused(key):
    rng = random.Random(1)
    text = key.sign(DATA, {}).text().encode()
    for _ in range(500):
        at, n = rng.randrange(len(text)), rng.randrange(1, 40)
        changed = text[:at] + rng.randbytes(rng.randrange(20)) + text[at + n :]
        if changed.partition(b"\n")[2] != text.partition(b"\n")[2]:
            with pytest.raises(DamagedError):
                Signature.parse(changed).check(DATA, key.public)


def test_a_signature_of_another_key_or_file_is_refused(key):
    other = SecretKey.new()
    for signer, data in ((other, DATA), (key, DATA + b"x")):
        with pytest.raises(DamagedError, match="does not fit"):
            signer.sign(data, {}).check(DATA, key.public)
    # Another key under the same id
    posing = SecretKey(PublicKey(key.public.key_id, other.public.data), other.seed)
    with pytest.raises(DamagedError, match="does not fit"):
        posing.sign(DATA, {}).check(DATA, key.public)
    # The comment of one signature beside the rest of another
    one, two = key.sign(DATA, {"version": "1"}), key.sign(DATA, {"version": "2"})
    mixed = Signature(one.key_id, two.comment, one.signature, one.whole)
    with pytest.raises(DamagedError, match="does not fit"):
        mixed.check(DATA, key.public)


def test_secret_keys(key):
    text = key.text(PASSPHRASE, LITTLE_WORK)
    assert SecretKey.parse(text, PASSPHRASE) == key
    assert key.seed.hex() not in repr(key)
    with pytest.raises(InputError, match="passphrase is wrong"):
        SecretKey.parse(text, "wrong")
    with pytest.raises(InputError, match="empty"):
        key.text("")
    raw = text.splitlines()[1]
    # All but the letters that hold scrypt's limits, of which small changes mean the same work
    for at in [*range(0, 50, 7), *range(73, len(raw), 7)]:
        changed = raw[:at] + ("A" if raw[at] != "A" else "B") + raw[at + 1 :]
        with pytest.raises(SlmEdgeError):
            SecretKey.parse(f"{UNTRUSTED}x\n{changed}\n", PASSPHRASE)


def test_a_key_file_may_not_take_all_memory(key):
    text = key.text(PASSPHRASE, LITTLE_WORK)
    raw = bytearray(base64.b64decode(text.splitlines()[1]))
    raw[46:54] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(InputError, match="memory"):
        SecretKey.parse(f"{UNTRUSTED}x\n{base64.b64encode(raw).decode()}\n", PASSPHRASE)


@pytest.mark.parametrize(
    "text", ["", "x", "1.", ".1", "01", "1.2.3.4.5", "1.2-rc1", "v1", "1 ", "1\n", "-1", "٣", "1" * 10]
)
def test_what_is_no_version(text):
    with pytest.raises(InputError):
        version_parts(text)


def test_versions_are_compared_by_number():
    assert version_parts("1.10") > version_parts("1.9.9") > version_parts("1.9") == version_parts("1.9.0.0")


def test_comments_are_one_line(key):
    for value in ("a\nb", "a\tversion:9", "\x1b[2J"):
        with pytest.raises(InputError, match="do not print"):
            key.sign(DATA, {"name": value})
    with pytest.raises(InputError, match="longer"):
        key.sign(DATA, {"name": "x" * 9000})


def test_the_digest_is_blake2b():
    """The prehash of minisign is libsodium's generichash of 64 bytes, which hashlib has too."""
    from nacl.bindings import crypto_generichash_blake2b_salt_personal as generichash

    assert hashlib.blake2b(DATA).digest() == generichash(DATA, 64)
