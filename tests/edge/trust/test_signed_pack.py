"""Signed packs: what the policy asks for, what a key says, and what is refused, byte by byte."""

import hashlib
import json
import shutil
import time

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_signed import LITTLE_WORK, PASSPHRASE, new_key, sign
from slm_edge.edge.errors import DamagedError, InputError, SlmEdgeError
from slm_edge.edge.files.cache import state_folder, trust_folder
from slm_edge.edge.pack.manifest import render
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.write import NewAdapter, add_adapter, build_pack
from slm_edge.edge.trust.check import judge, judge_bytes
from slm_edge.edge.trust.keys import parse_key, revoke_key, trust_key, trusted_keys
from slm_edge.edge.trust.policy import Rule, read_policy
from slm_edge.edge.trust.seen import Seen, record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base(folder / "base.gguf")
    adapters = [NewAdapter(name, tiny_adapter(folder / f"{name}.gguf", base, seed=n)) for n, name in enumerate("ab")]
    build_pack(folder / "pack", base=base, adapters=adapters[:1], default_adapter="a")
    return folder, adapters[1]


@pytest.fixture
def folder(made, tmp_path):
    """A pack of its own for each test."""
    return shutil.copytree(made[0] / "pack", tmp_path / "pack")


@pytest.fixture
def key(tmp_path):
    return new_key(tmp_path)


def policy(text):
    trust_folder().mkdir(exist_ok=True)
    (trust_folder() / "policy.toml").write_text(text)


def enforce(pattern="**"):
    policy(f'[[trust]]\npattern = "{pattern}"\n')


def test_who_when_and_which_key(folder, key):
    sign(key, folder, "1.4", 1796000000)
    verdict = judge(folder, (folder / "pack.json").read_bytes())
    assert (verdict.key_name, verdict.key_id, verdict.version) == ("maker", key.public.key_id, "1.4")
    assert verdict.words == f"signed by maker (key {key.public.key_id}) on 2026-11-30 00:53 UTC, as pack 1.4"
    enforce()
    assert Pack.open(folder, verify=True).name == "pack"


def test_every_flipped_byte_of_a_signed_pack_is_refused(folder, key):
    """pack.json and the signature byte by byte, all other files at some places."""
    sign(key, folder, "1.0")
    enforce()
    verify_folder(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        good = path.read_bytes()
        first = good.index(b"\n") if path.suffix == ".minisig" else 0
        step = 1 if path.suffix == ".minisig" else max(1, len(good) // 60)
        for at in range(first, len(good) - 1, step):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises((DamagedError, InputError)):
                verify_folder(folder)
        path.write_bytes(good)
    verify_folder(folder)


def test_nothing_of_pack_json_is_read_before_its_signature(folder, key):
    """Bytes that no parser should see get the signature's message, also where no policy asks for one."""
    sign(key, folder, "1.0")
    for text in (b'{"schema": ', b"[" * 100_000, b"\xff\xfe", b"", b'{"schema": 99}'):
        (folder / "pack.json").write_bytes(text)
        with pytest.raises(DamagedError, match="does not fit"):
            Pack.open(folder)


def test_a_swapped_signature_is_refused(folder, made, key, tmp_path):
    other = build_pack(tmp_path / "other", base=made[0] / "base.gguf", adapters=[made[1]]).folder
    sign(key, other, "1.0")
    shutil.copy(other / "pack.json.minisig", folder)
    with pytest.raises(DamagedError, match="does not fit"):
        Pack.open(folder)
    with pytest.raises(DamagedError, match="does not fit"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["evil.py", "adapters/evil.gguf", "adapters/evil.json", "onnx/x", "router.npz", "a/b"])
def test_an_unsigned_extra_file_is_refused(folder, key, name):
    sign(key, folder, "1.0")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(DamagedError) as caught:
        verify_folder(folder)
    assert any(problem.startswith(name) for problem in caught.value.problems)


def test_an_old_version_is_refused(folder, key, tmp_path):
    old, oldest = (shutil.copytree(folder, tmp_path / name) for name in ("old", "oldest"))
    kept = []
    for place, version in ((oldest, "1.2"), (old, "1.9"), (folder, "1.10")):
        # Other bytes each, as new versions have
        data = json.loads((place / "pack.json").read_text())
        data["name"] = f"pack {version}"
        (place / "pack.json").write_text(render(data))
        sign(key, place, version)
        sha256 = hashlib.sha256((place / "pack.json").read_bytes()).hexdigest()
        kept = [*kept, sha256][-2:]
        record(lambda seen, version=version, kept=kept: seen.take(key.public.key_id, "pack", version, 5, kept))
    Pack.open(folder)
    # What ran before this one may come back, what was before that may not, nor may what never ran here.
    Pack.open(old)
    with pytest.raises(InputError, match=r"version 1.2 of 'pack' is older than 1.10"):
        Pack.open(oldest)
    with pytest.raises(InputError, match="older"):
        verify_folder(oldest)
    # Each key has its own: the next one may begin anew.
    sign(new_key(tmp_path, "next"), oldest, "0.1")
    Pack.open(oldest)


def test_policies(folder, key, tmp_path, capsys):
    other = new_key(tmp_path, "other")
    stranger = new_key(tmp_path, "stranger", trusted=False)
    Pack.open(folder)
    enforce(f"{folder.parent.as_posix()}/*")
    with pytest.raises(InputError, match="not signed; the policy"):
        Pack.open(folder)
    with pytest.raises(InputError, match="not signed; the policy"):
        verify_folder(folder)
    sign(stranger, folder)
    with pytest.raises(InputError, match=f"{stranger.public.key_id}, which is not trusted here"):
        Pack.open(folder)
    sign(other, folder)
    Pack.open(folder)
    policy('[[trust]]\npattern = "**"\nkeys = ["Maker"]\nmode = "enforce"\n')
    with pytest.raises(InputError, match="does not take"):
        Pack.open(folder)
    sign(key, folder)
    Pack.open(folder)
    capsys.readouterr()
    first = '[[trust]]\npattern = "/elsewhere/**"\n'
    policy(f'{first}[[trust]]\npattern = "**"\nkeys = ["{other.public.key_id}"]\nmode = "warn"\n')
    Pack.open(folder)
    Pack.open(folder)
    assert capsys.readouterr().err.count("does not take") == 1
    policy('[[trust]]\npattern = "**"\nmode = "off"\n')
    (folder / "pack.json.minisig").write_text("no signature")
    Pack.open(folder)


def test_the_starter_may_have_a_rule_of_its_own():
    policy('[[trust]]\npattern = "**/starter"\nmode = "off"\n[[trust]]\npattern = "**"\n')
    Pack.open(None)
    enforce()
    with pytest.raises(InputError, match="not signed"):
        Pack.open(None)


@pytest.mark.parametrize(
    ("pattern", "place", "matches"),
    [
        ("hf:org/**", "hf:org/a/b", True),
        ("hf:org/*", "hf:org/a/b", False),
        ("hf:org/*", "hf:organ/a", False),
        ("https://a.b/c", "https://a-b/c", False),
        ("**", "/any\nthing", True),
        ("/packs/v?", "/packs/v1", True),
        ("/packs/[a-z]", "/packs/b", False),
    ],
)
def test_patterns(pattern, place, matches):
    assert Rule(pattern).matches(place) == matches


def test_a_policy_that_is_none_refuses_all(folder):
    policy('[[trust]]\nmode = "enforced"\nkey = "a"\n[[trust]]\npattern = 3\nkeys = "maker"\n[more]\n')
    with pytest.raises(InputError) as caught:
        Pack.open(folder)
    assert len(caught.value.problems) == 6, caught.value.problems
    for text in ("[[trust]", "trust = 3", "[trust]\npattern = 1"):
        policy(text)
        with pytest.raises(InputError):
            read_policy()


def test_a_revoked_key_is_refused_whatever_the_policy(folder, key):
    sign(key, folder, "1.0")
    Pack.open(folder)
    revoke_key("maker")
    assert trusted_keys() == []
    with pytest.raises(InputError, match="was revoked here"):
        Pack.open(folder)
    with pytest.raises(InputError, match="was revoked"):
        trust_key(key.public.text(), "again")


def test_trusting_keys(key, tmp_path):
    trust_key(key.public.line, "maker")
    with pytest.raises(InputError, match="trusted already, as 'maker'"):
        trust_key(key.public.text(), "another")
    with pytest.raises(InputError, match="belongs to"):
        trust_key(new_key(tmp_path, "x", trusted=False).public.text(), "Maker")
    for text in (
        "",
        "nonsense",
        (tmp_path / "maker.key").read_text(),
        "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO4=",
    ):
        with pytest.raises(InputError):
            parse_key(text)
    with pytest.raises(InputError, match="no key 'mkaer'"):
        revoke_key("mkaer")
    (trust_folder() / "keys" / "bad.pub").write_text("x")
    with pytest.raises(InputError, match="no public key"):
        trusted_keys()


def test_a_change_of_a_signed_pack_removes_its_signature(folder, made, key, capsys):
    sign(key, folder, "1.0")
    add_adapter(folder, made[1])
    assert not (folder / "pack.json.minisig").exists()
    assert "signs it again" in capsys.readouterr().err
    verify_folder(folder)


def test_signatures_are_no_files_of_a_pack(made, tmp_path):
    for name in ("pack.json.minisig", "model.sig"):
        (tmp_path / name).write_text("x")
        with pytest.raises(InputError, match="cannot be built"):
            build_pack(tmp_path / "pack", base=made[0] / "base.gguf", include=[tmp_path / name])


def test_other_signed_files(key, tmp_path):
    signature = key.sign(b"data", {"name": "channel", "version": "3"}).text().encode()
    assert judge_bytes(b"data", signature, "https://a/channel.json")[0].version == "3"
    with pytest.raises(DamagedError):
        judge_bytes(b"date", signature, "https://a/channel.json")
    stranger = new_key(tmp_path, "stranger", trusted=False)
    with pytest.raises(InputError, match="not trusted"):
        judge_bytes(b"data", stranger.sign(b"data", {}).text().encode(), "https://a/channel.json")


def test_clocks(key, tmp_path):
    Seen().check_clock()
    ahead_s = int(time.time()) + 3600
    seen = record(lambda seen: seen.take(key.public.key_id, "pack", "1", ahead_s, []))
    with pytest.raises(InputError, match="no update is taken"):
        seen.check_clock()
    # Whoever stole a key cannot stop the clock for longer than the key is trusted.
    revoke_key("maker")
    seen.check_clock()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"times_s": {"a": "b"}, "newest": {}, "kept": {}}', '{"newest": 1}'])
def test_a_damaged_memory_of_versions_is_not_passed_over(folder, key, text):
    sign(key, folder, "1.0")
    state_folder().mkdir(parents=True, exist_ok=True)
    (state_folder() / "seen.json").write_text(text)
    with pytest.raises(SlmEdgeError):
        Pack.open(folder)


def test_signing_from_the_command_line(slm_edge, folder, tmp_path, monkeypatch):
    (tmp_path / "words").write_text(PASSPHRASE + "\n")
    monkeypatch.setattr("slm_edge.edge.trust.secret_key.NEW_WORK", LITTLE_WORK)
    code, out, _ = slm_edge("key", "new", "maker", "-o", tmp_path, "--passphrase-file", tmp_path / "words", "--json")
    made = json.loads(out)
    assert code == 0 and (tmp_path / "maker.key").stat().st_mode & 0o777 == 0o600
    assert slm_edge("key", "new", "maker", "-o", tmp_path, "--passphrase-file", tmp_path / "words")[0] == 2
    monkeypatch.setenv("SLM_EDGE_PASSPHRASE", "wrong")
    code, _, err = slm_edge("pack", "sign", folder, "--key", tmp_path / "maker.key")
    assert code == 2 and "maker.key: the passphrase is wrong" in err
    monkeypatch.setenv("SLM_EDGE_PASSPHRASE", PASSPHRASE)
    code, out, _ = slm_edge("pack", "sign", folder, "--key", tmp_path / "maker.key", "--version", "2.0")
    assert code == 0 and "pack 2.0, signed with the key" in out
    code, out, _ = slm_edge("pack", "verify", folder)
    assert code == 0 and f"the key {made['key']}, which is not trusted here" in out
    assert slm_edge("key", "trust", tmp_path / "maker.pub")[0] == 0
    signature = json.loads(slm_edge("pack", "verify", folder, "--json")[1])["signature"]
    assert (signature["key_name"], signature["key_id"], signature["version"]) == ("maker", made["key"], "2.0")
    assert "trusted   maker" in slm_edge("key", "list")[1]
    (folder / "adapters" / "a.json").write_text("{}")
    code, _, err = slm_edge("pack", "sign", folder, "--key", tmp_path / "maker.key")
    assert code == 5 and "adapters/a.json: changed" in err
    assert slm_edge("key", "revoke", made["key"])[0] == 0
    code, _, err = slm_edge("pack", "verify", folder)
    assert code == 2 and "revoked" in err


def test_without_a_terminal_nobody_is_asked(slm_edge, tmp_path, monkeypatch):
    monkeypatch.delenv("SLM_EDGE_PASSPHRASE", raising=False)
    code, _, err = slm_edge("key", "new", "maker", "-o", tmp_path)
    assert code == 2 and "--passphrase-file" in err and not list(tmp_path.iterdir())
