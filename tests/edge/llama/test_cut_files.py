"""A base that is cut while it is used: an error where it is seen in time, else the process ends and says why."""

import os
import subprocess
import sys

import pytest
from build_gguf import tiny_base
from slm_edge.edge.errors import DamagedError
from slm_edge.edge.gguf.base import BaseInfo
from slm_edge.edge.session.session import Session


@pytest.fixture
def base(tmp_path):
    """16 MB, so that weights lie on pages of their own."""
    return tiny_base(tmp_path / "big.gguf", n_embd=256, n_heads=8, n_kv_heads=4, n_ff=1024, n_layers=4)


def test_an_answer_that_is_being_read_ends_with_an_error(base):
    with Session.of_files(base, {}, threads=1, mmap=True) as session:
        stream = session.stream("hello the world", max_tokens=50)
        next(stream)
        os.truncate(base, 8192)
        with pytest.raises(DamagedError, match="changed while it was in use"):
            for _ in stream:
                pass


def test_requests_that_are_answered_together_end_with_an_error(base):
    with Session.of_files(base, {}, threads=1, mmap=True) as session:
        pending = session.submit("hello", max_tokens=30, on_text=lambda text: os.truncate(base, 8192))
        with pytest.raises(DamagedError, match="changed while it was in use"):
            pending.result()


def test_a_base_that_was_read_may_be_cut(base):
    with Session.of_files(base, {}, threads=1, mmap=False) as session:
        stream = session.stream("hello the world", max_tokens=20)
        next(stream)
        os.truncate(base, 8192)
        for _ in stream:
            pass
        assert stream.answer.n_tokens


def test_what_python_reads_of_a_cut_file_is_an_error(base):
    info = BaseInfo.open(base)
    os.truncate(base, 64)
    with pytest.raises(DamagedError, match="cut while it was in use"):
        _ = info.fingerprint
    with pytest.raises(DamagedError, match="cut while it was in use"):
        info.file.array("blk.0.attn_norm.weight")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("handler", ["ours", "faulthandler's"])
def test_a_bus_error_ends_the_process_with_the_reason(threads, handler, base):
    """As where the file is cut between the look at it and the read."""
    code = (
        "import os, sys\n"
        f"if {handler != 'ours'}:\n"
        "    import faulthandler; faulthandler.enable()\n"
        "from slm_edge.edge.session.session import Session\n"
        f"with Session.of_files(sys.argv[1], {{}}, threads={threads}, mmap=True) as session:\n"
        "    session.context._watch = None\n"
        "    stream = session.stream('hello the world', max_tokens=50)\n"
        "    next(stream)\n"
        "    os.truncate(sys.argv[1], 8192)\n"
        "    for _ in stream:\n"
        "        pass\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True, check=False, timeout=60
    )
    if handler == "ours":
        assert child.returncode == 5, child.stderr
        assert f"{base}: was cut from" in child.stderr and "to 8192 bytes" in child.stderr
    else:
        # A program that sees to SIGBUS itself keeps its own way.
        assert child.returncode < 0 and "Bus error" in child.stderr
