"""`slm-edge chat` as a user meets it: through a pipe, and at a real terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from build_gguf import tiny_pack
from slm_edge.edge.session.session import Session

COMMAND = [sys.executable, "-m", "slm_edge.edge", "chat", "--threads", "1"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("chat"))


def chat(pack, lines, *arguments):
    command = [*COMMAND, "--pack", str(pack), *arguments]
    return subprocess.run(
        command, input="".join(f"{line}\n" for line in lines), capture_output=True, encoding="utf-8", check=False
    )


def answers(pack, turns, **settings):
    """The same conversation through the library: `(adapter, question)` each."""
    messages, texts = [], []
    with Session.open(pack, threads=1) as session:
        for adapter, question in turns:
            messages.append({"role": "user", "content": question})
            texts.append(session.use(adapter).ask(messages, **settings).text)
            messages.append({"role": "assistant", "content": texts[-1]})
    return texts


def test_history_and_adapters_through_a_pipe(pack, tmp_path):
    file = tmp_path / "talk.json"
    lines = ["the world", "/adapter code", "and the rest", "/adapter none", "//adapter", f"/save {file}"]
    done = chat(pack, lines, "--max-tokens", "8")
    expected = answers(pack, [("math", "the world"), ("code", "and the rest"), (None, "/adapter")], max_tokens=8)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "[adapter code]" in done.stderr
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["content"] for message in saved["messages"]][1::2] == expected
    assert done.stdout == "".join(text if text.endswith("\n") else text + "\n" for text in expected)


def test_commands_and_mistakes(pack, tmp_path):
    lines = ["/help", "/adapter list", "/adapter mth", "/statz", "/stats", "/save", f"/save {tmp_path}", "  "]
    lines += ["/system Be short.", "hello", "/stats", "/clear", "/quit", "never asked"]
    done = chat(pack, lines, "--max-tokens", "4")
    assert done.returncode == 0
    for words in ("/save FILE", "* math", "there are: math, code, none", "did you mean /stats", "needs the name"):
        assert words in done.stderr, words
    for words in ("is a folder", "last answer: first token after", "planned weights", "[a new conversation]"):
        assert words in done.stderr, words
    assert done.stdout.count("\n") >= 1
    assert "Traceback" not in done.stderr


def test_a_cut_answer_says_so(pack, tmp_path):
    grammar = tmp_path / "endless.gbnf"
    grammar.write_text("root ::= [a-z ] root")
    assert "[the answer is cut at 3 tokens" in chat(pack, ["hi"], "-n", "3", "--grammar", str(grammar)).stderr


def test_adapters_within_a_budget(pack):
    budget = str(int(1.5 * (pack / "adapters" / "math.gguf").stat().st_size))
    lines = ["hello", "/stats", "/adapter code", "the world", "/stats"]
    done = chat(pack, lines, "--max-tokens", "2", "--adapter-budget", budget)
    loaded = [line for line in done.stderr.splitlines() if line.startswith("adapters in memory")]
    assert ["math" in line for line in loaded] == [True, False]
    assert ["code" in line for line in loaded] == [False, True]
    done = chat(pack, lines, "--max-tokens", "2", "--adapter-budget", budget, "--pin", "math")
    assert "must stay; the budget for adapters is" in done.stderr
    assert len(done.stdout.splitlines()) >= 2
    command = [sys.executable, "-m", "slm_edge.edge", "run", "--pack", str(pack), "--adapter-budget", "100", "hello"]
    refused = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert refused.returncode == 4
    assert "the adapter 'math' needs" in refused.stderr


def test_a_full_context_drops_the_oldest_turns_and_says_so(pack, tmp_path):
    file = tmp_path / "talk.json"
    lines = [f"question {i} the world and the rest" for i in range(12)]
    done = chat(pack, [*lines, "x" * 2000, f"/save {file}"], "--context", "256", "--max-tokens", "16")
    assert done.returncode == 0
    assert "oldest turn" in done.stderr
    assert "this alone has" in done.stderr
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    kept = [message["content"] for message in messages if message["role"] == "user"]
    assert kept == lines[-len(kept) :]
    assert 0 < len(kept) < len(lines)


def test_a_schema_at_the_prompt(pack, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    done = chat(pack, ["hello", "the world"], "--schema", str(schema))
    assert [json.loads(line) in ("yes", "no") for line in done.stdout.splitlines()] == [True, True]
    assert chat(pack, [], "--schema", str(schema), "--grammar", str(schema)).returncode == 2


class Terminal:
    """A chat at a pseudo-terminal."""

    def __init__(self, pack, *arguments):
        self.inner, outer = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "--pack", str(pack), *arguments],
            stdin=outer,
            stdout=outer,
            stderr=outer,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(outer)
        self.seen = ""

    def wait_for(self, words, limit_s=60):
        end_s = time.monotonic() + limit_s
        while words not in self.seen:
            assert time.monotonic() < end_s, self.seen
            if select.select([self.inner], [], [], 1)[0]:
                try:
                    part = os.read(self.inner, 4096)
                except OSError:
                    part = b""
                assert part, self.seen
                self.seen += part.decode("utf-8", "replace")

    def send(self, keys):
        self.seen = ""
        os.write(self.inner, keys)

    def end(self):
        try:
            while os.read(self.inner, 4096):
                pass
        except OSError:
            pass
        os.close(self.inner)
        return self.process.wait(60)


def test_at_a_terminal_lines_are_edited_and_ctrl_d_ends(pack):
    terminal = Terminal(pack, "--max-tokens", "4")
    terminal.wait_for("> ")
    # Home, then an insertion in front: only line editing makes a command of this.
    terminal.send(b"help\x01/\r")
    terminal.wait_for("one slash.\r\n> ")
    terminal.send(b"hello\r")
    terminal.wait_for("hello\r\n")
    terminal.wait_for("\r\n> ")
    terminal.send(b"\x04")
    assert terminal.end() == 0


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(pack, tmp_path):
    file, grammar = tmp_path / "talk.json", tmp_path / "endless.gbnf"
    grammar.write_text("root ::= [a-z ] root")  # else the tiny model's answer may end before it can be stopped
    terminal = Terminal(pack, "--context", "30000", "--max-tokens", "29000", "--grammar", str(grammar))
    terminal.wait_for("> ")
    terminal.send(b"count\r")
    terminal.wait_for("\n")
    time.sleep(1)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("[stopped]\r\n> ")
    terminal.send(f"/save {file}\r".encode())
    terminal.wait_for("[saved")
    terminal.wait_for("]\r\n> ")
    terminal.send(b"\x04")
    assert terminal.end() == 0
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from slm_edge.edge.cli.chat import chat\n"
        "try: chat(['--help'], prog_name='slm-edge chat')\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'llama_cpp', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert "Ctrl-D ends" in done.stdout
    assert done.stdout.endswith("[]\n")
