"""Fixtures for all tests: a cache of its own for each test, and where the real data and models are."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from build_gguf import tiny_base
from slm_edge.edge.cli.main import main
from slm_edge.edge.files.cache import base_cache_path

ROOT = Path(__file__).parent.parent
# A shell that runs us in the background has Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

STARTER_BASE = "SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Looked up before tests get caches of their own.
IN_USERS_CACHE = base_cache_path(STARTER_BASE_SHA256)


@pytest.fixture(scope="session", autouse=True)
def own_runtime():
    """No test sees the sockets of the user's servers; short, because a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="run", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache, history or trusted keys."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SLM_EDGE_TRUST", str(folder / "trust"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("SLM_EDGE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base with random weights, in a folder of the test file's own."""
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the real data sets; the test skips where it is not."""
    folder = Path(os.environ.get("SLM_EDGE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (set SLM_EDGE_DATA)")
    return folder


@pytest.fixture(scope="session")
def starter_base():
    """The starter's real base model; the test skips where it was never fetched."""
    places = [IN_USERS_CACHE]
    if models := os.environ.get("SLM_EDGE_MODELS"):
        places.insert(0, Path(models) / STARTER_BASE)
    for place in places:
        if place.is_file():
            return place
    pytest.skip(f"{STARTER_BASE} is neither in SLM_EDGE_MODELS nor in the cache (slm-edge pull starter)")


@pytest.fixture(scope="module")
def one_thread():
    """torch on one thread: tiny models are no faster on more, and the machine stays usable."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def slm_edge(monkeypatch, capsys):
    """Runs a command line in this process: exit code, stdout, stderr."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["slm-edge", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return ended.value.code, out, err

    yield run
    signal.signal(signal.SIGTERM, handler)
