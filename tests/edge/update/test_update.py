"""Updates: what moves, what is refused, what is tried first, and how a machine goes back."""

import hashlib
import json
import shutil
import time
from dataclasses import replace

import pytest
from build_channel import NAME, current, serving_folder, tried, version
from build_signed import PASSPHRASE, new_key, sign
from slm_edge.edge.engines import open_session
from slm_edge.edge.errors import DamagedError, DoesNotFitError, InputError
from slm_edge.edge.files.web import DownloadError
from slm_edge.edge.pack.manifest import render
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.store.store import Store
from slm_edge.edge.update.channel import Channel
from slm_edge.edge.update.place import Place
from slm_edge.edge.update.publish import change, publish
from slm_edge.edge.update.update import read_channel, rollback, update


def test_an_update_moves_what_is_new_and_nothing_else(maker):
    """Installed over the web, rehearsed for real, and then an adapter's update: the base stays where it is."""
    maker.release("1.0")
    with serving_folder(maker.site) as server:
        first = update(NAME, server.url)
        assert (first.state, first.version) == ("updated", "1.0")
        assert "signed by maker" in first.words
        verify_folder(current())
        with open_session(current()) as session:
            before = session.ask("hello").token_ids
        assert update(NAME).state == "current"
        maker.release("1.1", seed=2)
        server.asked.clear()
        assert update(NAME, check_only=True).offered == "1.1"
        assert version() == "1.0"
        second = update(NAME)
        # pack.json, its signature, the adapter and its card
        blobs = {path for path in server.asked if path.startswith("blobs/")}
        adapter_bytes = (current() / "adapters" / "a.gguf").stat().st_size
        assert len(blobs) == 4 and adapter_bytes < second.fetched_bytes < adapter_bytes + 10_000
    with open_session(current()) as session:
        assert session.ask("hello").token_ids != before
    base = Store().ref(NAME).previous
    links = [folder / "base.gguf" for folder in (current(), Store().place(NAME, base))]
    assert links[0].samefile(links[1])


def test_a_channel_on_a_stick(maker):
    maker.release("1.0", rehearsed=True)
    assert update(NAME, str(maker.site)).version == "1.0"
    maker.release("1.1", rehearsed=True)
    assert update(NAME).version == "1.1"
    shutil.rmtree(maker.site)
    with pytest.raises(InputError, match="no channel"):
        update(NAME)
    Pack.open(current(), verify=True)


def test_a_version_whose_golden_prompts_fail_is_not_used(maker):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    maker.release("1.1", golden=[{"prompt": "hello", "contains": "what it never says"}])
    failed = update(NAME)
    assert failed.state == "failed" and "'hello' gives" in failed.words
    assert version() == "1.0"
    # It is not tried again by itself, and what is newer is.
    again = update(NAME)
    assert (again.state, version()) == ("current", "1.0") and "1.1 is left out here: the rehearsal fails" in again.words
    with open_session(current()) as session:
        text = session.ask("hello", temperature=0.0).text
    golden = [{"prompt": "hello", "equals": text}]
    assert maker.release("1.2", seed=1, golden=golden) and update(NAME).version == "1.2"


def test_a_version_that_does_not_load_is_not_used(maker):
    """The channel's maker signed what llama.cpp cannot open."""
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    folder = maker.pack("1.1")
    data = bytearray((folder / "base.gguf").read_bytes())
    data[4] = 99
    (folder / "base.gguf").write_bytes(data)
    resealed(folder)
    sign(maker.key, folder, "1.1", name=NAME)
    publish(maker.site, folder, maker.key)
    assert update(NAME).state == "failed"
    assert version() == "1.0"


def resealed(folder):
    """Writes pack.json anew, as its files are."""
    data = json.loads((folder / "pack.json").read_text())
    for name in data["files"]:
        data["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    data["base"]["sha256"] = data["files"]["base.gguf"]
    (folder / "pack.json").write_text(render(data))


def test_what_is_withdrawn_is_left(maker):
    for number in ("1.0", "1.1"):
        maker.release(number)
        tried(*maker.digests.values())
        update(NAME, str(maker.site))
    tried(*maker.digests.values())
    maker.change(lambda channel: channel.with_release(replace(channel.find("1.1"), withdrawn=True)))
    back = update(NAME)
    assert (back.version, version()) == ("1.0", "1.0") and "withdrawn" in back.words
    assert Store().ref(NAME).previous is None
    Pack.open(current())
    assert update(NAME).state == "current"
    # A machine that had nothing gets the old one too, though it saw that there was a newer.
    maker.change(lambda channel: channel.with_release(replace(channel.find("1.0"), percent=0)))
    assert update(NAME).state == "current"
    maker.change(lambda channel: channel.with_release(replace(channel.find("1.0"), withdrawn=True)))
    left = update(NAME)
    assert left.state == "current" and "no other" in left.words and version() == "1.0"


def test_back_by_hand(maker):
    with pytest.raises(InputError, match="no such pack"):
        rollback(NAME)
    for number in ("1.0", "1.1"):
        maker.release(number, rehearsed=True)
        update(NAME, str(maker.site))
    assert rollback(NAME).words == "1.1 -> 1.0"
    assert version() == "1.0"
    assert update(NAME).state == "current"
    with pytest.raises(InputError, match="no version before"):
        rollback(NAME)
    tried(*maker.digests.values())
    assert update(NAME, again=True).version == "1.1"


def test_versions_before_the_one_before_go(maker):
    for number in ("1.0", "1.1", "1.2"):
        maker.release(number, rehearsed=True, seed=len(maker.digests) + 1)
        update(NAME, str(maker.site))
    store = Store()
    assert {found.digest for found in store.versions(NAME)} == {maker.digests["1.1"], maker.digests["1.2"]}
    gone = json.loads((maker.folder / "pack-1.0" / "pack.json").read_text())
    assert not store.blob(maker.digests["1.0"]).exists() and not store.blob(gone["adapters"][0]["sha256"]).exists()
    assert store.blob(gone["base"]["sha256"]).exists()
    rollback(NAME)
    verify_folder(current())


def test_a_pinned_pack_stays(maker):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    Store().switch(NAME, lambda ref: replace(ref, pinned=True))
    maker.release("1.1", rehearsed=True)
    assert update(NAME).state == "held" and version() == "1.0"


def changed_byte(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_refused_channels(maker, tmp_path, monkeypatch):
    maker.release("1.0", rehearsed=True)
    update(NAME, str(maker.site))
    site, texts = maker.site, {path.name: path.read_bytes() for path in maker.site.iterdir() if path.is_file()}

    def put_back():
        for name, data in texts.items():
            (site / name).write_bytes(data)

    for name in texts:
        changed_byte(site / name)
        with pytest.raises(DamagedError):
            update(NAME)
        put_back()
    (site / "channel.json.minisig").unlink()
    with pytest.raises(InputError, match="no such file"):
        update(NAME)
    put_back()
    stranger = new_key(tmp_path, "stranger", trusted=False)
    text = Channel.parse(texts["channel.json"])
    (site / "channel.json").unlink()
    change(site, stranger, lambda _: text, name=NAME)
    with pytest.raises(InputError, match="not trusted"):
        update(NAME)
    put_back()
    with pytest.raises(InputError, match="channel of 'tiny', not of 'other'"):
        update("other", str(site))
    # An old list, which would hide what was withdrawn since
    maker.release("1.1", rehearsed=True)
    update(NAME)
    put_back()
    with pytest.raises(InputError, match="older than"):
        update(NAME)
    assert version() == "1.1"
    put_back()


class Between(Place):
    """A place whose maker is between its two files when it is first looked at."""

    def small(self, path, most_bytes):
        data = super().small(path, most_bytes)
        if path.endswith(".minisig") and not self.folder.with_name("looked").exists():
            self.folder.with_name("looked").touch()
            return self.folder.with_name("next").read_bytes()
        return data


def test_a_list_beside_the_signature_of_the_next(maker):
    maker.release("1.0")
    texts = [(maker.site / name).read_bytes() for name in ("channel.json", "channel.json.minisig")]
    maker.release("1.1")
    shutil.copy(maker.site / "channel.json.minisig", maker.site.with_name("next"))
    for name, data in zip(("channel.json", "channel.json.minisig"), texts, strict=True):
        (maker.site / name).write_bytes(data)
    assert read_channel(Between("channel", maker.site), NAME).sequence == 1
    assert maker.site.with_name("looked").exists()


def test_an_expired_channel_and_a_clock_that_is_behind(maker):
    publish(maker.site, maker.pack("1.0"), maker.key, expires_s=int(time.time()) - 5)
    with pytest.raises(InputError, match="has expired"):
        update(NAME, str(maker.site))
    maker.change(lambda channel: replace(channel.with_release(channel.find("1.0")), expires_s=0))
    tried(Channel.parse((maker.site / "channel.json").read_bytes()).find("1.0").pack)
    update(NAME, str(maker.site))
    signature = maker.key.sign(
        (maker.site / "channel.json").read_bytes(), {"version": "2"}, time_s=int(time.time()) + 86400
    )
    (maker.site / "channel.json.minisig").write_text(signature.text())
    with pytest.raises(InputError, match="the clock says"):
        update(NAME)
    Pack.open(current())


def test_bytes_that_are_not_the_promised_ones(maker):
    maker.release("1.0", rehearsed=True)
    adapter = json.loads((maker.folder / "pack-1.0" / "pack.json").read_text())["adapters"][0]["sha256"]
    changed_byte(maker.site / "blobs" / adapter)
    with serving_folder(maker.site) as server:
        for address in (server.url, str(maker.site)):
            with pytest.raises(DamagedError):
                update(NAME, address)
            assert current() is None
        (maker.site / "blobs" / adapter).unlink()
        with pytest.raises(DownloadError, match="404"):
            update(NAME, server.url)
    assert not list((Store().folder / "packs").glob("*/*"))


def test_a_release_must_be_signed_as_what_it_is(maker, tmp_path):
    folder = maker.pack("1.0")
    publish(maker.site, folder, maker.key)
    sign(maker.key, folder, "0.9", name=NAME)
    with pytest.raises(InputError, match="is signed with the key"):
        stranger = new_key(tmp_path, "stranger", trusted=False)
        publish(maker.site, folder, stranger)
    other = (folder / "pack.json.minisig").read_bytes()
    channel = Channel.parse((maker.site / "channel.json").read_bytes())
    sha256 = hashlib.sha256(other).hexdigest()
    (maker.site / "blobs" / sha256).write_bytes(other)
    row = channel.find("1.0")
    maker.change(
        lambda channel: channel.with_release(
            replace(row, signature=sha256, sizes_bytes={**row.sizes_bytes, sha256: len(other)})
        )
    )
    with pytest.raises(InputError, match=r"release 1\.0 is signed as 0\.9"):
        update(NAME, str(maker.site))


def test_what_does_not_fit_on_the_disk_is_not_begun(maker):
    channel = maker.release("1.0", rehearsed=True)
    row = channel.find("1.0")
    huge = {sha256: size if size < 5000 else 1 << 49 for sha256, size in row.sizes_bytes.items()}
    maker.change(lambda channel: channel.with_release(replace(row, sizes_bytes=huge)))
    with pytest.raises(DoesNotFitError, match="are free"):
        update(NAME, str(maker.site))


def test_publishing(maker):
    maker.release("1.0")
    shutil.rmtree(maker.folder / "pack-1.0")
    with pytest.raises(InputError, match=r"another pack as version 1\.0"):
        maker.release("1.0", seed=3)
    folder = maker.pack("1.1")
    (folder / "pack.json.minisig").unlink()
    with pytest.raises(InputError, match="is not signed"):
        publish(maker.site, folder, maker.key)
    sign(maker.key, folder, None, name=NAME)
    with pytest.raises(InputError, match="without a version"):
        publish(maker.site, folder, maker.key)
    # The same version again changes how many have it, not who.
    sign(maker.key, folder, "1.1", name=NAME)
    first = publish(maker.site, folder, maker.key, percent=10).find("1.1")
    second = publish(maker.site, folder, maker.key, percent=50).find("1.1")
    assert (first.seed, first.percent, second.percent) == (second.seed, 10, 50)


def test_from_the_command_line(slm_edge, maker, monkeypatch):
    monkeypatch.setenv("SLM_EDGE_PASSPHRASE", PASSPHRASE)
    key = ("--key", maker.folder / "maker.key")
    folder = maker.pack("1.0")
    assert slm_edge("channel", "release", maker.site, folder, *key, "--percent", 0)[0] == 0
    code, out, _ = slm_edge("update", NAME, "--channel", maker.site)
    assert code == 0 and "no release is for this machine yet" in out
    assert "100 % of the machines" in slm_edge("channel", "rollout", maker.site, "1.0", 100, *key)[1]
    code, out, _ = slm_edge("update", "--json")
    (row,) = json.loads(out)["packs"]
    assert (code, row["state"], row["version"]) == (0, "updated", "1.0")
    golden = [{"prompt": "hello", "contains": "what it never says"}]
    assert slm_edge("channel", "release", maker.site, maker.pack("1.1", golden=golden), *key)[0] == 0
    code, out, _ = slm_edge("update")
    assert code == 5 and "version 1.1 is not used" in out
    assert "withdrawn" in slm_edge("channel", "withdraw", maker.site, "1.1", *key)[1]
    assert slm_edge("update")[0] == 0
    code, _, err = slm_edge("rollback", NAME)
    assert code == 2 and "no version before" in err
    code, _, err = slm_edge("channel", "rollout", maker.site, "3.0", 5, *key)
    assert code == 2 and "there are: 1.0, 1.1" in err
