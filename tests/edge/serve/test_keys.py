"""Keys: what the file may hold, who may read it, and that a key is nowhere but where it was shown."""

import hashlib
import os

import pytest
from slm_edge.edge.errors import InputError
from slm_edge.edge.serve.keys import Keys, credential, new_key

HASH = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.txt"


def test_a_new_key_is_found_by_its_hash_alone(path):
    secret = new_key(path, "alice")
    other = new_key(path, "sensors", ["models:math,auto", "metrics"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text() and hashlib.sha256(secret.encode()).hexdigest() in path.read_text()
    keys = Keys.open(path)
    alice, sensors = keys.find(secret), keys.find(other)
    assert alice.name == "alice" and alice.may_ask("anything") and not alice.admin and not alice.metrics
    assert sensors.may_ask("math") and not sensors.may_ask("code") and sensors.metrics and not sensors.admin
    assert keys.find(secret[:-1]) is None and keys.find("") is None and keys.find("ü\udcff") is None


def test_a_name_is_given_once_and_comments_stay(path):
    new_key(path, "alice")
    path.write_text(f"# who is who\n{path.read_text()}\n")
    path.chmod(0o600)
    with pytest.raises(InputError, match="there is a key named 'alice'"):
        new_key(path, "alice")
    new_key(path, "bob")
    assert path.read_text().startswith("# who is who\n") and len(Keys.open(path)) == 2


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620])
def test_a_file_that_others_may_read_is_refused(path, mode):
    new_key(path, "alice")
    path.chmod(mode)
    with pytest.raises(InputError, match="can be read or changed by others") as refused:
        Keys.open(path)
    assert refused.value.hint == f"chmod 600 {path}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("alice", "line 1: is not NAME"),
        (f"alice sha256:{HASH[:-1]}", "line 1: is not NAME"),
        (f"alice sha256:{HASH.upper()}", "line 1: is not NAME"),
        (f"../alice sha256:{HASH}", "line 1: is not NAME"),
        (f"alice sha256:{HASH} everything", "'everything' is no scope"),
        (f"alice sha256:{HASH} models:", "'models:' is no scope"),
        (f"alice sha256:{HASH} models:../x", "'models:../x' is no scope"),
        (f"a sha256:{HASH}\na sha256:{HASH}", "'a' stands twice"),
        ("# nobody", "holds 0 keys"),
    ],
)
def test_lines_that_say_nothing_clear_are_refused(path, line, said):
    path.write_text(line)
    path.chmod(0o600)
    with pytest.raises(InputError) as refused:
        Keys.open(path)
    assert said in str(refused.value)


def test_a_key_without_a_scope_may_ask_nothing(path):
    path.write_text(f"nobody sha256:{HASH}\n")
    path.chmod(0o600)
    assert not Keys.open(path).find("secret").may_ask("base")


def test_systemds_credential_is_found(path, monkeypatch):
    assert credential() is None
    new_key(path.parent / "slm-edge-keys", "alice")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", os.fspath(path.parent))
    assert Keys.open(credential()).names == ["alice"]
