"""A maker of tiny packs with a key and a channel, and a web server that says what was asked of it.

maker = Maker(tmp_path)
maker.release("1.0")                                # a pack, signed, in the channel's folder
with serving_folder(maker.site) as server: ...      # server.url, server.asked
"""

import contextlib
import functools
import http.server
import threading

from build_gguf import tiny_adapter, tiny_base
from build_signed import new_key, sign
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.store.store import Store
from slm_edge.edge.update.publish import change, publish
from slm_edge.edge.update.state import changing, read_state

NAME = "tiny"


def current():
    """The folder of the pack's version in use; None where there is none."""
    found = Store().find(NAME)
    return None if found is None else found[1]


def version():
    """Its number."""
    return read_state(Store(), NAME).versions[Store().ref(NAME).current]


class Maker:
    """Who makes packs.

    Attributes:
        site: the channel's folder.
        digests: version -> sha256 of its pack.json.
    """

    def __init__(self, folder, **shape):
        self.folder, self.site = folder, folder / "site"
        self.base = tiny_base(folder / "base.gguf", **shape)
        self.key = new_key(folder)
        self.digests = {}

    def pack(self, version, *, seed=1, golden=()):
        """Builds and signs a pack; its adapter and card differ with the version."""
        adapter = tiny_adapter(self.folder / f"{version}.gguf", self.base, seed=seed)
        card = TaskCard(task="sums", description=f"as of {version}", max_tokens=4, golden=tuple(golden))
        folder = self.folder / f"pack-{version}"
        build_pack(folder, base=self.base, adapters=[NewAdapter("a", adapter, card)], name=NAME, default_adapter="a")
        sign(self.key, folder, version, name=NAME)
        return folder

    def release(self, version, *, percent=100, rehearsed=False, **of_pack):
        """Puts a new version into the channel; `rehearsed`: this machine takes it for tried."""
        channel = publish(self.site, self.pack(version, **of_pack), self.key, percent=percent)
        self.digests[version] = channel.find(version).pack
        if rehearsed:
            tried(self.digests[version])
        return channel

    def change(self, changed):
        return change(self.site, self.key, changed)


def tried(*digests):
    """Notes that these versions were rehearsed here, as after an update that was killed then."""
    from importlib import metadata

    with changing(Store(), NAME) as state:
        state.rehearsed = {digest: metadata.version("slm-edge") for digest in digests}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/channel.json"

    def handle_error(self, request, client_address):
        """A client that was killed is no fault of the server."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path.lstrip("/"))
        super().do_GET()


@contextlib.contextmanager
def serving_folder(folder):
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
