"""Where a download may lead: real servers, real redirects, and a namespace of its own with a public address in it."""

import hashlib
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading

import pytest
from build_hub import serving
from slm_edge.edge.errors import DamagedError
from slm_edge.edge.files.download import download
from slm_edge.edge.files.web import (
    Access,
    DownloadError,
    access_of,
    hub_token,
    is_private,
    opened,
    read_small,
    request_of,
)

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
HERE = Access(private=True)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.gguf").write_bytes(DATA)
    with serving({"org/x": tmp_path / "served"}) as running:
        yield running


def got(url, folder, access=HERE, **more):
    options = {"sha256": SHA256, "size_bytes": len(DATA)} | more
    download(url, folder / "out", part=folder / "out.part", access=access, advance=lambda *a, **b: None, **options)
    return (folder / "out").read_bytes()


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("out"))


def moved(server, location, code=302):
    server.script["/a.gguf"] = [(code, {"Location": location})]
    return server.file_url("org/x", "a.gguf")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_and_the_token_stays(server, tmp_path, code):
    with serving({"org/x": tmp_path / "served"}) as other:
        url = moved(server, other.file_url("org/x", "a.gguf"), code)
        assert got(url, tmp_path, token="secret") == DATA
        assert [authorization for _, _, authorization, _ in other.asked] == [None]
        # To another place of the same host it goes on.
        url = moved(server, "/org/x/resolve/v1/a.gguf", code)
        (tmp_path / "out").unlink()
        assert got(url, tmp_path, token="secret") == DATA
        assert {authorization for _, _, authorization, _ in server.asked} == {"Bearer secret"}


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/a.gguf", "gopher://x/", "http://[::1", "data:,x", "http://x:99999/"],
)
def test_redirects_to_what_is_no_web_address(server, tmp_path, location):
    with pytest.raises(DownloadError):
        got(moved(server, location), tmp_path)
    assert left(tmp_path) == []


def test_redirects_without_an_end(server, tmp_path):
    server.script["/a.gguf"] = [(302, {"Location": server.file_url("org/x", "a.gguf")})] * 20
    with pytest.raises(DownloadError, match=r"302|redirect"):
        got(server.file_url("org/x", "a.gguf"), tmp_path)


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd"])
def test_only_https_unless_it_is_said(url):
    with pytest.raises(DownloadError, match=r"not https|is no address"):
        request_of(url, {}, Access())
    assert request_of("https://example.org/a", {}, Access()).full_url == "https://example.org/a"
    assert request_of("http://example.org/a", {}, Access(insecure=True))


PRIVATE = "127.0.0.1 10.1.2.3 192.168.0.1 169.254.169.254 100.64.0.1 0.0.0.0 ::1 fe80::1%eth0 fd00::1 ::ffff:10.0.0.1"


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_of_networks_that_are_not_the_internet(address):
    assert is_private(address)
    host = f"[{address.partition('%')[0]}]" if ":" in address else address
    with pytest.raises(DownloadError, match="private network"):
        request_of(f"https://{host}/a", {}, Access())


def test_what_the_user_named_may_be_private_and_lead_there():
    assert access_of("http://127.0.0.1:9/x").private and access_of("http://localhost/x").private
    assert not is_private("1.1.1.1") and not is_private("2606:4700::1111")


def test_the_token_is_the_hubs(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_token("https://huggingface.co/a/b/resolve/main/c") == "secret"
    for url in (
        "http://huggingface.co/a",
        "https://huggingface.co:444/a",
        "https://huggingface.co.evil.org/resolve/a",
        "https://evil.org/huggingface.co/resolve/a",
        "https://huggingface.co@evil.org/",
        "https://cdn-lfs.huggingface.co/a",
    ):
        assert hub_token(url) is None
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example.org")
    assert hub_token("http://mirror.example.org/a") is None, "not where anyone can listen"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org")
    assert hub_token("https://mirror.example.org/a") == "secret"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert hub_token("https://mirror.example.org/a") is None
    code = "from slm_edge.edge.files.web import hub_token; print(hub_token('https://huggingface.co/a'))"
    (tmp_path / "token").write_text("stored\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout == "stored\n"


def test_a_file_that_changed_meanwhile_is_begun_anew(server, tmp_path, monkeypatch):
    """If-Range: the rest of another file is never put behind the beginning of the first."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    url, file = server.file_url("org/x", "a.gguf"), tmp_path / "served" / "a.gguf"
    file.write_bytes(bytes(len(DATA)))
    server.script["/a.gguf"] = ["cut", *[(503, {})] * 9]
    with pytest.raises(DownloadError, match="failed 5 times"):
        got(url, tmp_path)
    server.script.clear()
    assert json.loads((tmp_path / "out.part.json").read_text())["etag"]
    assert (tmp_path / "out.part").stat().st_size == len(DATA) // 2
    file.write_bytes(DATA)
    assert got(url, tmp_path) == DATA
    assert server.ranges["a.gguf"] == [None, f"bytes={len(DATA) // 2}-"], "one answer, with all of it"
    assert left(tmp_path) == ["out"]


def test_a_connection_that_breaks_often_is_no_failure_while_it_brings_something(server, tmp_path):
    big = os.urandom(4 << 20)
    (tmp_path / "served" / "a.gguf").write_bytes(big)
    server.script["/a.gguf"] = ["cut", "reset"] * 3
    sha256 = hashlib.sha256(big).hexdigest()
    assert got(server.file_url("org/x", "a.gguf"), tmp_path, sha256=sha256, size_bytes=len(big)) == big
    assert len(server.ranges["a.gguf"]) == 7
    assert server.sent_bytes["a.gguf"] <= len(big) + 6 * (1 << 20)


@pytest.mark.parametrize("size_bytes", [len(DATA), None])
def test_other_bytes_and_other_sizes_leave_nothing(server, tmp_path, size_bytes):
    url = server.file_url("org/x", "a.gguf")
    for data in (DATA[:-1], DATA + b"x", bytes(len(DATA))):
        (tmp_path / "served" / "a.gguf").write_bytes(data)
        with pytest.raises((DownloadError, DamagedError)):
            got(url, tmp_path, size_bytes=size_bytes)
        assert left(tmp_path) == []


def test_a_small_file_has_a_bound(server):
    url = server.file_url("org/x", "a.gguf")
    assert read_small(url, HERE, len(DATA)) == DATA
    with pytest.raises(DamagedError, match="larger than"):
        read_small(url, HERE, len(DATA) - 1)
    server.script["/a.gguf"] = ["cut", (503, {"Retry-After": "0"})]
    assert read_small(url, HERE, len(DATA)) == DATA


def test_https_is_checked_and_leads_to_no_http(server, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(
        [*make.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True
    )

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            to_http = self.path == "/http"
            self.send_response(302 if to_http else 200)
            self.send_header("Location" if to_http else "Content-Length", server.url if to_http else "2")
            self.end_headers()
            self.wfile.write(b"" if to_http else b"ok")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        threading.Thread(target=secure.serve_forever, args=(0.02,), daemon=True).start()
        url = f"https://localhost:{secure.server_port}"
        with pytest.raises(DownloadError, match="certificate"):
            read_small(f"{url}/a", HERE, 10)
        code = (
            "import sys; from slm_edge.edge.files.web import Access, read_small\n"
            "access = Access(private=True, insecure=True)\n"
            "print(read_small(sys.argv[1] + '/a', access, 10))\n"
            "try: read_small(sys.argv[1] + '/http', access, 10)\n"
            "except Exception as error: print(error)\n"
        )
        environment = os.environ | {"SSL_CERT_FILE": str(tmp_path / "cert.pem")}
        done = subprocess.run([sys.executable, "-c", code, url], env=environment, capture_output=True, text=True)
        secure.shutdown()
    assert done.stdout.startswith("b'ok'\n") and "is led from https to http" in done.stdout, done.stderr


# In a network of its own, where this machine has the address 8.8.8.8: a server of the internet, and one of 127.0.0.1.
PUBLIC = """
import http.server, json, socket, subprocess, threading
for words in ("link set lo up", "addr add 8.8.8.8/32 dev lo"):
    if subprocess.run(["ip", *words.split()], capture_output=True).returncode:
        raise SystemExit(99)
from slm_edge.edge.files.web import Access, access_of, read_small
served = []
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        served.append((self.server.server_address[0], self.path))
        to = {"/inside": f"http://127.0.0.1:{inside.server_port}/secret", "/name": f"http://evil.org:{inside.server_port}/x"}
        self.send_response(302 if self.path in to else 200)
        self.send_header("Location", to.get(self.path, ""))
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass
servers = [http.server.ThreadingHTTPServer((host, 0), Handler) for host in ("8.8.8.8", "127.0.0.1")]
outside, inside = servers
for one in servers:
    threading.Thread(target=one.serve_forever, daemon=True).start()
url = f"http://8.8.8.8:{outside.server_port}"
access = access_of(url, insecure=True)
# A name of the internet whose owner lets it lead to this machine
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: real("127.0.0.1" if host == "evil.org" else host, *rest, **more)
found = [access.private, read_small(url + "/a", access, 10).decode()]
for path in (url + "/inside", url + "/name", f"http://evil.org:{inside.server_port}/y"):
    try:
        found.append(read_small(path, access, 10).decode())
    except Exception as error:
        found.append(str(error))
print(json.dumps([found, [row for row in served if row[0] == "127.0.0.1"]]))
"""


def test_what_comes_from_the_internet_leads_nowhere_inside():
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", PUBLIC], capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no namespaces here")
    assert done.returncode == 0, done.stderr
    (private, plain, *refused), inside = json.loads(done.stdout)
    assert (private, plain, inside) == (False, "ok", [])
    assert len(refused) == 3 and all("leads into a private network" in text for text in refused), refused


def test_the_body_of_an_answer_is_as_it_was_sent(server):
    """No decompression on the way: what is hashed is what was announced."""
    request = request_of(server.file_url("org/x", "a.gguf"), {}, HERE)
    assert request.headers["Accept-encoding"] == "identity"
    with opened(request, HERE) as answer:
        assert answer.read() == DATA
