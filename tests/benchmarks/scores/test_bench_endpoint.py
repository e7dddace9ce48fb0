"""`--endpoint` against a real OpenAI-compatible server: llama-cpp-python's own, with a flaky connection before it."""

import contextlib
import json
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from build_gguf import tiny_base
from slm_edge.benchmarks.scores.cells import Column, Wanted, plan
from slm_edge.benchmarks.scores.endpoint import Endpoint, endpoint_generator
from slm_edge.benchmarks.scores.runner import run_cell
from slm_edge.benchmarks.tasks.registry import task
from slm_edge.edge.errors import EngineError, InputError
from slm_edge.edge.session.session import Session

N_ITEMS = 6
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("made") / "tiny.gguf")


@pytest.fixture(scope="module")
def port(base):
    """A server process on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(base), "--model_alias", "tiny-f32"]
    command += ["--port", str(port), "--n_ctx", "512", "--n_threads", "1", "--n_threads_batch", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for _ in range(1200):
            assert server.poll() is None, server.stderr.read().decode()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                break
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


class Flaky(socketserver.ThreadingTCPServer):
    """Passes connections on to the server, but drops every third and answers every fourth with 503."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Relay)
        self.target, self.count, self.lock = port, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Relay(socketserver.BaseRequestHandler):
    def handle(self):
        with self.server.lock:
            self.server.count += 1
            number = self.server.count
        if number % 3 == 0:
            return
        if number % 4 == 0:
            self.request.recv(1 << 16)
            self.request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nRetry-After: 0.01\r\n\r\nbusy")
            return
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            back = threading.Thread(target=self.copy, args=(upstream, self.request))
            back.start()
            self.copy(self.request, upstream)
            back.join()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def flaky(port):
    with Flaky(port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "gsm8k").mkdir()
    rows = [{"question": f"{i} and {i}?", "answer": f"so\n#### {2 * i}"} for i in range(N_ITEMS)]
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def cells_of(data, names=("gsm8k",)):
    column = Column("tiny-f32", facts={"endpoint_model": "tiny-f32"})
    return plan([task(name) for name in names], None, [column], data, Wanted(max_tokens=MAX_TOKENS))


def test_answers_of_a_real_server_are_the_sessions(base, flaky, data, tmp_path):
    """The server runs the same llama.cpp on the same base, so its greedy answers are those of `Session.ask`."""
    from slm_edge.benchmarks.scores.answers import AnswerFile

    server = Endpoint.of(flaky.url, 2)
    server._first_pause_s = 0.01
    assert server.url.endswith("/v1")
    assert server.models() == ["tiny-f32"]
    cells = cells_of(data, ("gsm8k", "gsm8k-raw"))
    for cell in cells:
        assert run_cell(cell, tmp_path, endpoint_generator(server)) == N_ITEMS
        assert run_cell(cell, tmp_path, endpoint_generator(server)) == 0
    assert flaky.count > 2 * N_ITEMS + 1
    agree = 0
    with Session.of_files(base, {}, threads=1) as session:
        records = AnswerFile(tmp_path, cells[0].identity).records
        for item in cells[0].items:
            asked = session.ask(item.messages, max_tokens=MAX_TOKENS)
            # That server leaves out bytes that are no UTF-8, where a session shows U+FFFD, and goes on by up to three
            # tokens where the last ones end within a letter
            begun = asked.text.replace("\ufffd", "")
            found = records[item.id].text
            agree += found == begun or (asked.text.endswith("\ufffd") and found.startswith(begun))
            assert found[:1] == begun[:1]
            assert 0 <= records[item.id].n_tokens <= MAX_TOKENS + 3
            assert records[item.id].n_prompt_tokens == asked.n_prompt_tokens
            assert records[item.id].by == "tiny-f32"
    # It also keeps the beginning that two prompts share, so near ties of a random model may fall otherwise
    assert agree >= N_ITEMS / 2


def test_command_reports_what_answered(port, data, tmp_path):
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "gsm8k", "--endpoint", f"http://127.0.0.1:{port}/v1"]
    command += ["--model", "tiny-f32", "--data", str(data), "--out", str(tmp_path), "--max-tokens", "4", "--limit", "3"]
    run = subprocess.run([*command, "--parallel", "2"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "serves tiny-f32" in run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["endpoint"]["served_by"] == ["tiny-f32"]
    [cell] = report["cells"]
    assert (cell["adapter"], cell["n"], cell["by"]) == ("tiny-f32", 3, {"tiny-f32": 3})
    assert "| | tiny-f32 |" in run.stdout


def test_what_is_refused(port, data, tmp_path):
    with pytest.raises(InputError, match="not an address"):
        Endpoint.of("localhost:8000", 1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[1]
    gone = Endpoint(f"http://127.0.0.1:{closed}/v1", 1, tries=2, first_pause_s=0.01)
    with pytest.raises(EngineError, match="asked 2 times"):
        run_cell(cells_of(data)[0], tmp_path, endpoint_generator(gone))
    wrong = Endpoint(f"http://127.0.0.1:{port}/nothing", 1, tries=3, first_pause_s=60)
    with pytest.raises(EngineError, match="HTTP 404"):
        run_cell(cells_of(data)[0], tmp_path, endpoint_generator(wrong))
    for more in (["hellaswag", "--model", "x"], ["gsm8k"], ["gsm8k", "--model", "x", "--adapter", "math"]):
        command = [sys.executable, "-m", "slm_edge.edge", "bench", *more, "--endpoint", "http://127.0.0.1:1"]
        run = subprocess.run([*command, "--data", str(data)], capture_output=True, text=True)
        assert run.returncode in (2, 3), run.stderr
        assert "Traceback" not in run.stderr
