"""Fetching by reference: packs and models of a server that speaks the hub's protocol, over real HTTP."""

import hashlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_hub import SHA, serving
from build_signed import new_key, sign
from build_split import split
from slm_edge.edge.errors import DamagedError, DoesNotFitError, EngineError, InputError
from slm_edge.edge.files.cache import trust_folder
from slm_edge.edge.files.web import DownloadError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.hub.reference import parse
from slm_edge.edge.pack.fetch import fetch
from slm_edge.edge.pack.located import located, pulled
from slm_edge.edge.pack.manifest import render
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.write import NewAdapter, add_adapter, build_pack
from slm_edge.edge.store.store import Store
from slm_edge.edge.trust.seen import Seen


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders to serve: org/pack (no base in it), org/base, org/tiny-GGUF (several), org/peft."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("base", "tiny", "peft"):
        (folder / name).mkdir()
    base = tiny_base(folder / "base" / "base.gguf", n_embd=128, n_ff=256)
    adapters = [
        NewAdapter(name, tiny_adapter(folder / f"{name}.gguf", base, seed=seed)) for seed, name in enumerate("ab")
    ]
    source = {"kind": "hub", "repo": "org/base", "file": "base.gguf"}
    build_pack(folder / "pack", base=base, adapters=adapters, copy_base=False, sources=[source], name="house")
    shutil.copy(base, folder / "tiny" / "tiny-Q4_K_M.gguf")
    tiny_base(folder / "tiny" / "tiny-Q8_0.gguf", seed=3)
    (folder / "peft" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/big"}))
    (folder / "peft" / "adapter_model.safetensors").write_bytes(b"x")
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """No other program's cache but those of the test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "LLAMA_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def repositories(made):
    return {
        "org/pack": made / "pack",
        "org/base": made / "base",
        "org/tiny-GGUF": made / "tiny",
        "org/peft": made / "peft",
    }


@pytest.fixture
def hub(made, request, monkeypatch):
    with serving(repositories(made), large=getattr(request, "param", "xet")) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_a_pack_of_the_hub_with_its_base(hub, made):
    fetched = fetch(parse("hf:org/pack"))
    version = fetched.version
    assert (version.name, version.kind, version.digest) == ("house", "pack", sha256_of(made / "pack" / "pack.json"))
    assert (version.origin.reference, version.origin.commit) == ("hf:org/pack", SHA)
    verify_folder(fetched.folder)
    pack = Pack.open(fetched.folder, verify=True)
    assert sha256_of(pack.base_path()) == sha256_of(made / "base" / "base.gguf") == version.base
    before = len(hub.fetched)
    again = fetch(parse("hf:org/pack"))
    assert not again.is_new and fetched.is_new
    assert [name for _, name in hub.fetched[before:]] == ["pack.json"]


def test_a_model_and_what_it_is_called(hub, made):
    fetched = fetch(parse("hf.co/org/tiny-GGUF:Q8_0"))
    assert fetched.version.name == "hf.co/org/tiny-GGUF:Q8_0"
    assert fetched.path.name == "tiny-Q8_0.gguf" and sha256_of(fetched.path) == sha256_of(
        made / "tiny" / "tiny-Q8_0.gguf"
    )
    # None named: the usual one
    assert fetch(parse("hf.co/org/tiny-GGUF")).version.name == "hf.co/org/tiny-GGUF:Q4_K_M"
    named = fetch(parse("https://huggingface.co/org/tiny-GGUF/blob/main/tiny-Q8_0.gguf"), name="small")
    assert named.version.name == "small" and named.version.digest == fetched.version.digest
    assert hub.sent_bytes["tiny-Q8_0.gguf"] == fetched.path.stat().st_size, "fetched once"
    hub.shutdown()
    for text in ("hf.co/org/tiny-GGUF:Q8_0", "hf:org/tiny-GGUF:q8_0", "hf:org/tiny-GGUF", "small"):
        assert located(text).path.is_file()


def test_a_split_model_is_joined(hub, made, tmp_path):
    (tmp_path / "parts").mkdir()
    hub.repositories["org/split"] = tmp_path / "parts"
    split(made / "base" / "base.gguf", tmp_path / "parts", 5)
    fetched = fetch(parse("hf:org/split"))
    assert fetched.path.name == "part.gguf"
    assert BaseInfo.open(fetched.path).fingerprint == BaseInfo.open(made / "base" / "base.gguf").fingerprint
    before = len(hub.fetched)
    assert not fetch(parse("hf:org/split")).is_new and len(hub.fetched) == before
    assert len(list(Store().blob("x").parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:org/none", "no such model on the hub"),
        ("hf:org/tiny-GGUF@v9", "no revision 'v9'"),
        ("hf:org/tiny-GGUF:Q2_K", "holds no GGUF file of Q2_K"),
        ("hf:org/tiny-GGUF/gone.gguf", "holds no file 'gone.gguf'"),
        ("hf:org/peft", "is a PEFT adapter of org/big"),
    ],
)
def test_what_is_not_there_is_said(hub, text, words):
    with pytest.raises(InputError, match=words) as caught:
        fetch(parse(text))
    assert text != "hf:org/peft" or "slm-edge export lora peft" in caught.value.hint
    assert not Store().names()


def test_a_gated_repository_names_its_page(made, monkeypatch):
    with serving(repositories(made), gated="org/tiny-GGUF") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(InputError, match="gated") as caught:
            fetch(parse("hf:org/tiny-GGUF"))
        assert "accept them at" in caught.value.hint


def test_a_private_repository_and_where_its_token_goes(made, monkeypatch):
    with serving(repositories(made), token="hf_secret", large="xet") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(InputError, match="or it is private"):
            fetch(parse("hf:org/pack"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.asked.clear()
        assert fetch(parse("hf:org/pack")).version.name == "house"
        hosts = {(host.partition(":")[0], authorization) for host, _, authorization, _ in hub.asked}
        assert hosts == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


def test_no_token_for_another_server(made, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(repositories(made)) as hub, serving({"org/pack": made / "pack"}) as other:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        fetch(parse(other.file_url("org/pack", "pack.json")))
        assert {authorization for _, _, authorization, _ in other.asked} == {None}
        assert "Bearer hf_secret" in {authorization for _, _, authorization, _ in hub.asked}, "for the base"


def test_no_token_goes_along_when_the_hubs_metadata_lies_elsewhere(hub, made, monkeypatch):
    """huggingface_hub follows redirects by itself."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(repositories(made)) as other:
        there = f"{other.url.replace('127.0.0.1', 'localhost')}/api/models/org/tiny-GGUF?blobs=true"
        hub.script["/api/models/org/tiny-GGUF"] = [(307, {"Location": there})]
        fetch(parse("hf:org/tiny-GGUF:Q8_0"))
        assert {authorization for _, _, authorization, _ in other.asked} == {None}
        assert len(other.asked) == 1


def test_the_hub_asks_to_wait(hub, monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", lambda seconds: pauses.append(seconds) if seconds > 0.1 else None)
    wait = (429, {"Retry-After": "3"})
    hub.script["/org/tiny-GGUF"] = [wait]
    hub.script["/tiny-Q8_0.gguf"] = [wait, (503, {}), "reset", "cut"]
    fetched = fetch(parse("hf:org/tiny-GGUF:Q8_0"))
    assert fetched.path.is_file() and pauses.count(3.0) == 2
    hub.script["/org/tiny-GGUF"] = [(429, {"Retry-After": "3600"})]
    with pytest.raises(EngineError, match="asked too often"):
        fetch(parse("hf:org/tiny-GGUF:Q4_K_M"))
    # What is here goes on working.
    assert located("hf:org/tiny-GGUF:Q8_0").path == fetched.path


def test_offline_everything_that_was_pulled_works(hub, monkeypatch):
    fetch(parse("hf:org/pack"))
    hub.shutdown()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pack = Pack.open(located("house").path, verify=True)
    assert pack.base_path().is_file() and located("hf:org/pack").path == pack.folder
    # huggingface_hub looks at this when it is imported.
    command = [sys.executable, "-m", "slm_edge.edge", "pull", "hf:org/tiny-GGUF"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 8
    assert "offline mode is on" in done.stderr


@pytest.mark.parametrize("what", ["hf", "ollama"])
def test_what_other_programs_have_is_linked_and_not_written(hub, made, tmp_path, what):
    base = made / "base" / "base.gguf"
    name = (
        f"hf/hub/models--x--y/blobs/{sha256_of(base)}"
        if what == "hf"
        else f"home/.ollama/models/blobs/sha256-{sha256_of(base)}"
    )
    theirs = tmp_path / name
    theirs.parent.mkdir(parents=True)
    shutil.copy(base, theirs)
    theirs.chmod(0o644)
    before = (theirs.stat().st_mtime_ns, theirs.stat().st_mode, sorted(theirs.parent.iterdir()))
    fetch(parse("hf:org/pack"))
    assert hub.sent_bytes["base.gguf"] == 0
    assert before == (theirs.stat().st_mtime_ns, theirs.stat().st_mode, sorted(theirs.parent.iterdir()))
    theirs.unlink()
    assert sha256_of(Store().blob(sha256_of(base))) == sha256_of(base)


def test_a_damaged_copy_of_another_program_is_not_taken(hub, made, tmp_path):
    theirs = tmp_path / "hf/hub/models--x--y/blobs" / sha256_of(made / "base" / "base.gguf")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"not it")
    fetch(parse("hf:org/pack"))
    assert hub.sent_bytes["base.gguf"] == (made / "base" / "base.gguf").stat().st_size


# What a pack from elsewhere may not do


def served(made, tmp_path, change):
    """The pack, changed, with a right seal."""
    folder = tmp_path / "changed"
    shutil.copytree(made / "pack", folder)
    data = json.loads((folder / "pack.json").read_text())
    data.pop("seal")
    change(data, folder)
    (folder / "pack.json").write_text(render(data))
    return folder


def sources(*rows):
    def change(data, folder):
        data["base"]["sources"] = list(rows)

    return change


def escape(data, folder):
    data["files"]["../../out.txt"] = "a" * 64


def other_bytes(data, folder):
    (folder / "adapters" / "b.gguf").write_bytes(b"GGUF" + b"x" * 2000)


WHEEL = {"kind": "pypi-wheel", "package": "evil", "version": "1", "member": "x.gguf"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (sources(WHEEL), EngineError, "only sources on the web are asked"),
        (sources({"kind": "path", "path": "/etc/passwd"}, WHEEL), EngineError, "only sources on the web are asked"),
        (escape, InputError, "is not a path that a pack may name"),
        (other_bytes, (DamagedError, DownloadError), "sha256|bytes, not"),
    ],
)
def test_a_pack_from_elsewhere_is_refused(made, tmp_path, monkeypatch, change, error, words):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    folder = served(made, tmp_path, change)
    with serving({"org/pack": folder}) as server, pytest.raises(error, match=words):
        fetch(parse(server.file_url("org/pack", "pack.json")))
    store = Store()
    assert not store.names() and not list((store.folder / "packs").glob("*/*"))
    assert not (tmp_path / "out.txt").exists()


def test_a_refused_source_is_passed_over_where_another_is_good(hub, made, tmp_path):
    folder = served(made, tmp_path, sources(WHEEL, {"kind": "hub", "repo": "org/base", "file": "base.gguf"}))
    hub.repositories["org/changed"] = folder
    assert fetch(parse("hf:org/changed")).version.base == sha256_of(made / "base" / "base.gguf")


def test_later_runs_do_not_ask_refused_sources_either(hub, made, tmp_path):
    folder = served(made, tmp_path, sources(WHEEL, {"kind": "hub", "repo": "org/base", "file": "base.gguf"}))
    hub.repositories["org/changed"] = folder
    fetched = fetch(parse("hf:org/changed"), with_base=False)
    hub.repositories.pop("org/base")
    with pytest.raises(EngineError) as caught:
        Pack.open(fetched.folder).base_path(allow_pull=True)
    assert "pypi-wheel evil: the pack came from hf:org/changed" in str(caught.value)


def test_a_name_that_is_taken(hub, made):
    fetch(parse("hf:org/pack"))
    with serving({"org/pack": made / "pack"}) as other:
        reference = parse(other.file_url("org/pack", "pack.json"))
        with pytest.raises(InputError, match="'house' is here already, from hf:org/pack"):
            fetch(reference)
        assert fetch(reference, name="other").version.name == "other"
    assert Store().names() == ["house", "other"]


def test_a_new_version_takes_the_name_and_the_old_one_stays(hub, made, tmp_path):
    hub.repositories["org/pack"] = folder = tmp_path / "pack"
    shutil.copytree(made / "pack", folder)
    first = fetch(parse("hf:org/pack"))
    (tmp_path / "own").mkdir()
    add_adapter(folder, NewAdapter("c", tiny_adapter(tmp_path / "own" / "c.gguf", made / "base" / "base.gguf", seed=9)))
    before = hub.sent_bytes.copy()
    second = fetch(parse("hf:org/pack"))
    ref = Store().ref("house")
    assert (ref.current, ref.previous) == (second.version.digest, first.version.digest)
    moved = {name for name, n_bytes in hub.sent_bytes.items() if n_bytes != before.get(name)}
    assert moved == {"pack.json", "c.gguf"}, "only what is new is fetched"
    assert list(Pack.open(first.folder, verify=True).adapters) == ["a", "b"]
    assert pulled(parse("house")).path == second.folder


def test_a_mirror_that_tells_no_sums(hub, monkeypatch):
    """Small files have git's id; a large one could be anything."""
    hub.sums = False
    small = fetch(parse("hf:org/tiny-GGUF:Q8_0"))
    assert small.version.digest == sha256_of(small.path)
    monkeypatch.setattr("slm_edge.edge.pack.fetch._SMALL_BYTES", 1000)
    with pytest.raises(InputError, match="the hub gives no sha256 of it"):
        fetch(parse("hf:org/tiny-GGUF:Q4_K_M"))


def test_a_disk_without_room_is_told_before_anything_comes(hub, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFitError, match=r"are needed for hf\.co/org/tiny-GGUF:Q8_0"):
        fetch(parse("hf:org/tiny-GGUF:Q8_0"))
    assert hub.sent_bytes["tiny-Q8_0.gguf"] == 0


def test_a_damaged_file_of_the_store_is_mended_by_pulling_again(hub, made):
    fetched = fetch(parse("hf:org/pack"))
    file = fetched.folder / "adapters" / "a.gguf"
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.seek(3000)
        stream.write(b"rot")
    with pytest.raises(DamagedError):
        verify_folder(fetched.folder)
    fetch(parse("hf:org/pack"))
    verify_folder(fetched.folder)


def test_a_signature_comes_with_the_pack_and_the_policy_knows_where_from(hub, made, tmp_path):
    hub.repositories["org/pack"] = folder = tmp_path / "pack"
    shutil.copytree(made / "pack", folder)
    trust_folder().mkdir(exist_ok=True)
    (trust_folder() / "policy.toml").write_text('[[trust]]\npattern = "hf:org/**"\n')
    with pytest.raises(InputError, match="is not signed; the policy 'hf:org/"):
        fetch(parse("hf:org/pack"))
    key = new_key(tmp_path)
    sign(key, folder, "1.4")
    fetched = fetch(parse("hf:org/pack"))
    assert (fetched.folder / "pack.json.minisig").is_file()
    verify_folder(fetched.folder)
    assert Seen.read().newest == {f"{key.public.key_id}/pack": "1.4"}
    old = (folder / "pack.json.minisig").read_bytes()
    (folder / "pack.json.minisig").write_bytes(old[:-20] + b"A" + old[-19:])
    with pytest.raises(DamagedError):
        fetch(parse("hf:org/pack"))
    (folder / "pack.json.minisig").unlink()
    # Another pack with an older number is refused, by the same key.
    add_adapter(folder, NewAdapter("c", made / "a.gguf"))
    sign(key, folder, "1.3")
    with pytest.raises(InputError, match=r"version 1\.3 of 'pack' is older than 1\.4"):
        fetch(parse("hf:org/pack"))
    assert Store().ref("house").current == fetched.version.digest
