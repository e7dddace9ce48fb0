"""`slm-edge chat` as a user meets it: through a pipe, and at a real terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def asked(file):
    messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def test_several_lines_between_quotes_are_one_turn(pack, tmp_path):
    file = tmp_path / "talk.json"
    lines = [
        '"""the world',
        "and the rest",
        "",
        'is big"""',
        '"""one line"""',
        "plain",
        f"/save {file}",
        '"""never ended',
    ]
    done = chat(pack, lines, "-n", "2")
    assert asked(file) == ["the world\nand the rest\n\nis big", "one line", "plain"]
    assert done.returncode == 0 and "it is left out" in done.stderr


@pytest.mark.parametrize("word", ["exit", "quit", "/bye", "/exit", "/quit"])
def test_words_that_end(pack, word):
    done = chat(pack, [word, "never asked"])
    assert (done.returncode, done.stdout) == (0, "")


def test_a_saved_conversation_goes_on(pack, tmp_path):
    file, again = tmp_path / "talk.json", tmp_path / "again.json"
    chat(pack, ["the world", "/adapter code", "/system Be short.", "and the rest", f"/save {file}"], "-n", "6")
    whole = chat(pack, ["the world", "/adapter code", "/system Be short.", "and the rest", "hello"], "-n", "6")
    part = chat(pack, [f"/load {file}", "hello", f"/save {again}"], "-n", "6")
    assert whole.stdout.endswith(part.stdout) and part.stdout.strip()
    assert "[2 turns, adapter code]" in part.stderr
    data = json.loads(again.read_text(encoding="utf-8"))
    assert data["messages"][:4] == json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert data["system"] == "Be short."


def test_what_cannot_be_loaded_or_saved_loses_nothing(pack, tmp_path):
    file, bad, odd = tmp_path / "talk.json", tmp_path / "bad.json", tmp_path / "odd.json"
    bad.write_text("{")
    odd.write_text('{"messages": [{"role": "assistant", "content": "x"}]}')
    lines = ["hello", f"/load {bad}", f"/load {odd}", "/load", f"/load {tmp_path}/none", f"/save {tmp_path}/no/x.json"]
    done = chat(pack, [*lines, f"/save {file}"], "-n", "2")
    assert asked(file) == ["hello"]
    for words in ("bad.json", "is no conversation", "/load needs the name", "/none"):
        assert words in done.stderr, words
    assert "Traceback" not in done.stderr


def test_settings_are_changed_on_the_way(pack):
    lines = ["/set max_tokens 3", "hi", "/set parameter max_tokens", "/set temperature hot", "/set temperature -1"]
    lines += ["/set colour red", "/set top_k 5", "/set"]
    done = chat(pack, lines, "-n", "9")
    with Session.open(pack, threads=1) as session:
        text = session.ask("hi", max_tokens=3).text
    assert done.stdout.removesuffix("\n") == text.removesuffix("\n")
    for words in (
        "[max_tokens 3]",
        "as the adapter has it",
        "'hot' is no value",
        "temperature is -1",
        "no setting 'colour'",
    ):
        assert words in done.stderr, words
    assert "[set: top_k 5]" in done.stderr


class Terminal:
    """A chat at a pseudo-terminal."""

    def __init__(self, pack, *arguments, environment=None):
        self.inner, outer = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, "--pack", str(pack), *arguments],
            stdin=outer,
            stdout=outer,
            stderr=outer,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", **(environment or {})},
        )
        os.close(outer)
        self.seen = ""

    def wait_for(self, words, limit_s=60):
        """Until the words, or what a pattern finds, are on the screen."""
        pattern = words if isinstance(words, re.Pattern) else re.compile(re.escape(words))
        end_s = time.monotonic() + limit_s
        while pattern.search(self.seen) is None:
            assert time.monotonic() < end_s, self.seen
            if select.select([self.inner], [], [], 1)[0]:
                try:
                    part = os.read(self.inner, 4096)
                except OSError:
                    part = b""
                assert part, self.seen
                self.seen += part.decode("utf-8", "replace")

    def wait_for_prompt(self):
        """The prompt alone on its line: an echoed or redrawn one is no sign that the next line is awaited."""
        self.wait_for(re.compile(r"(?:^|\n)(?:\x1b\[[0-9;]*m|\x1b\[\?2004h)*> (?:\x1b\[[0-9;]*m)*\Z"))

    def send(self, keys):
        self.seen = ""
        os.write(self.inner, keys)

    def end(self, limit_s=60):
        end_s = time.monotonic() + limit_s
        try:
            while time.monotonic() < end_s:
                if select.select([self.inner], [], [], 1)[0] and not os.read(self.inner, 4096):
                    break
        except OSError:
            pass
        os.close(self.inner)
        return self.process.wait(60)


def test_at_a_terminal_lines_are_edited_and_ctrl_d_ends(pack):
    terminal = Terminal(pack, "--max-tokens", "4")
    # The base by its file's name, not by what the file calls itself inside ("tiny llama")
    terminal.wait_for("base, adapter ")
    terminal.wait_for_prompt()
    # Home, then an insertion in front: only line editing makes a command of this.
    terminal.send(b"help\x01/\r")
    terminal.wait_for("one slash.\r\n> ")
    terminal.send(b"hello\r")
    terminal.wait_for("hello\r\n")
    terminal.wait_for_prompt()
    terminal.send(b"\x04")
    assert terminal.end() == 0


def test_a_paste_is_one_turn_and_alt_enter_a_new_line(pack, tmp_path):
    file = tmp_path / "talk.json"
    terminal = Terminal(pack, "--max-tokens", "2", environment={"TERM": "xterm"})
    terminal.wait_for_prompt()
    terminal.send(b"\x1b[200~one\ntwo\nthree\x1b[201~\r")
    terminal.wait_for("[the answer is cut")
    terminal.wait_for_prompt()
    terminal.send(b"four\x1b\rfive\r")
    terminal.wait_for("[the answer is cut")
    terminal.wait_for_prompt()
    terminal.send(f"/save {file}\r".encode())
    terminal.wait_for("[saved")
    terminal.wait_for_prompt()
    terminal.send(b"\x04")
    assert terminal.end() == 0
    assert asked(file) == ["one\ntwo\nthree", "four\nfive"]


def test_tab_completes_commands_adapters_and_files(pack, tmp_path):
    (tmp_path / "talks").mkdir()
    terminal = Terminal(pack, "--max-tokens", "2")
    terminal.wait_for_prompt()
    terminal.send(b"/ada\tco\t\r")
    terminal.wait_for("[adapter code]")
    terminal.send(f"/save {tmp_path}/ta\tx.json\r".encode())
    terminal.wait_for("[saved")
    terminal.wait_for_prompt()
    terminal.send(b"\x04")
    assert terminal.end() == 0
    assert (tmp_path / "talks" / "x.json").is_file()


def test_history_is_kept_for_its_user_alone(pack):
    for keys in (b"/adapter code\r", b"\x10\r"):  # Ctrl-P: the line before
        terminal = Terminal(pack, "--max-tokens", "2")
        terminal.wait_for_prompt()
        terminal.send(keys)
        terminal.wait_for("[adapter code]")
        terminal.wait_for_prompt()
        terminal.send(b"\x04")
        assert terminal.end() == 0
    history = Path(os.environ["XDG_STATE_HOME"]) / "slm-edge" / "chat_history"
    assert history.read_text().split("\n")[0] == "/adapter code"
    assert history.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("environment", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({}, False)]
)
def test_colours_where_the_terminal_has_them(pack, environment, coloured):
    terminal = Terminal(pack, environment=environment)
    terminal.wait_for_prompt()
    seen = terminal.seen
    terminal.send(b"\x04")
    assert terminal.end() == 0
    assert ("\x1b[1;32m" in seen, "\x1b[2m" in seen) == (coloured, coloured)


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(pack, tmp_path):
    file, grammar = tmp_path / "talk.json", tmp_path / "endless.gbnf"
    grammar.write_text("root ::= [a-z ] root")  # else the tiny model's answer may end before it can be stopped
    terminal = Terminal(pack, "--context", "30000", "--max-tokens", "29000", "--grammar", str(grammar))
    terminal.wait_for_prompt()
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
        "import sys; from slm_edge.edge.cli.conversation.chat import chat\n"
        "try: chat(['--help'], prog_name='slm-edge chat')\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'llama_cpp', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert "Ctrl-D ends" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_the_next_turn_computes_the_answer_again_only_when_asked_to(pack):
    lines = ["the world and the rest of it " * 20, "and then?"]
    kept = {}
    for flag in ((), ("--exact",)):
        shown = chat(pack, [*lines, "/stats"], "-n", "8", *flag).stderr
        kept[flag] = int(re.findall(r"(\d+) of \d+ prompt tokens kept", shown)[-1])
    assert kept["--exact",] % 128 == 0 < kept["--exact",] < kept[()]
