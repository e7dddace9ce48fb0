"""`slm-edge run` as a user meets it: real processes, pipes, signals."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from build_gguf import tiny_pack
from slm_edge.edge.session.session import Session

COMMAND = [sys.executable, "-m", "slm_edge.edge"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("run"))


def run(pack, *arguments, stdin="", **how):
    command = [*COMMAND, "run", "--pack", str(pack), "--threads", "1", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False, **how)


def start(pack, *arguments, **how):
    command = [*COMMAND, "run", "--pack", str(pack), "--threads", "1", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def expected(pack, adapter, prompt, **settings):
    with Session.open(pack, threads=1) as session:
        return session.use(adapter).ask(prompt, **settings)


@pytest.mark.parametrize(
    ("options", "adapter"), [([], "math"), (["--adapter", "code"], "code"), (["--adapter", "none"], None)]
)
def test_prints_the_sessions_answer(pack, options, adapter):
    done = run(pack, *options, "--max-tokens", "20", "the world")
    answer = expected(pack, adapter, "the world", max_tokens=20)
    cut = "[the answer is cut at 20 tokens; -n sets another length]\n" if answer.stop_reason == "max_tokens" else ""
    assert (done.returncode, done.stderr) == (0, cut)
    assert done.stdout.removesuffix("\n") == answer.text.removesuffix("\n")


def test_several_adapters_and_a_prefix_cache(pack, tmp_path):
    system = "Answer in the words of the sea, and be brief. " * 4
    options = ["--adapter", "math:0.7+code:0.3", "--max-tokens", "12"]
    done = run(pack, *options, "the world")
    assert done.stdout.removesuffix("\n") == expected(
        pack, {"math": 0.7, "code": 0.3}, "the world", max_tokens=12
    ).text.removesuffix("\n")
    cached = ["--prefix-cache", str(tmp_path / "kv"), "--system", system, "--max-tokens", "12", "--json"]
    answers = [json.loads(run(pack, *cached, prompt).stdout) for prompt in ("the world", "the world", "hello")]
    kept = [answer["n_kept_tokens"] for answer in answers]
    assert kept[0] == 0
    assert kept[1] == kept[2] > 32
    assert answers[0]["text"] == answers[1]["text"]
    assert run(pack, "--adapter", "math:x", "the world").returncode == 2


@pytest.mark.parametrize("argument", [[], ["-"]])
def test_reads_standard_input(pack, argument):
    given = run(pack, "--max-tokens", "12", "über\nthe world")
    piped = run(pack, "--max-tokens", "12", *argument, stdin="über\nthe world\n")
    assert piped.stdout == given.stdout
    assert run(pack, *argument, stdin="\n").returncode == 2


def test_an_answer_that_is_cut_says_so(pack, tmp_path):
    endless, short = tmp_path / "endless.gbnf", tmp_path / "short.gbnf"
    endless.write_text("root ::= [a-z ] root")
    short.write_text('root ::= "yes"')
    cut = run(pack, "-n", "5", "--grammar", str(endless), "hi")
    assert (cut.returncode, cut.stderr) == (0, "[the answer is cut at 5 tokens; -n sets another length]\n")
    assert (
        json.loads(run(pack, "-n", "5", "--grammar", str(endless), "--json", "hi").stdout)["stop_reason"]
        == "max_tokens"
    )
    full = run(pack, "-c", "40", "-n", "500", "--grammar", str(endless), "hi")
    assert full.stderr == "[the context is full; the answer ends here]\n"
    whole = run(pack, "--grammar", str(short), "hi")
    assert (whole.stdout, whole.stderr) == ("yes\n", "")


def test_json_and_stats(pack):
    done = run(pack, "--json", "--stats", "--max-tokens", "9", "--temperature", "1", "--seed", "7", "the world")
    data = json.loads(done.stdout)
    answer = expected(pack, "math", "the world", max_tokens=9, temperature=1, seed=7)
    assert (data["text"], data["adapter"], data["n_tokens"], data["seed"]) == (answer.text, "math", answer.n_tokens, 7)
    assert data["stop_reason"] == answer.stop_reason
    assert min(data["load_s"], data["first_token_s"], data["peak_memory_bytes"]) > 0
    for word in ("adapter math", "loaded in", "first token after", "tokens/s", "peak memory"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--adapter", "mth", "x"], 2, "there are: math, code, none"),
        (["--context", "99999", "x"], 4, "trained for 32768"),
        (["--context", "16", "hello the world"], 4, "the context holds 16"),
        (["--max-tokens", "0", "x"], 2, "--max-tokens"),
        ([" "], 2, "prompt is empty"),
    ],
)
def test_mistakes_are_one_message_and_an_exit_code(pack, arguments, code, words):
    done = run(pack, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_standard_input_that_is_no_text(pack):
    process = start(pack, stdin=subprocess.PIPE)
    _, error = process.communicate(b"\xff\xfe", timeout=60)
    assert process.returncode == 2
    assert b"not UTF-8" in error


def test_an_absent_prompt_at_a_terminal_is_a_usage_error(pack):
    inner, outer = pty.openpty()
    try:
        process = start(pack, stdin=outer)
        _, error = process.communicate(timeout=60)
    finally:
        os.close(inner)
        os.close(outer)
    assert process.returncode == 2
    assert b"no prompt" in error


def test_control_characters_do_not_reach_a_terminal(pack):
    inner, outer = pty.openpty()
    command = [
        *COMMAND,
        "run",
        "--pack",
        str(pack),
        "--threads",
        "1",
        "--adapter",
        "none",
        "--max-tokens",
        "200",
        "hello",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=outer, stderr=subprocess.DEVNULL)
    os.close(outer)
    shown = b""
    while True:
        try:
            part = os.read(inner, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(inner)
    assert process.wait(60) == 0
    text = shown.decode().replace("\r\n", "\n")
    plain = run(pack, "--adapter", "none", "--max-tokens", "200", "hello").stdout
    assert any(ord(letter) < 32 and letter not in "\n\t" for letter in plain)
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in text)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly(pack, stop):
    process = start(pack, "--context", "30000", "--max-tokens", "29000", "count", stdin=subprocess.DEVNULL)
    first = process.stdout.read(10)
    process.send_signal(stop)
    rest, error = process.communicate(timeout=60)
    assert first
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in error
    assert b"Exception ignored" not in error


def test_ctrl_c_at_any_moment_gives_no_traceback(pack, tmp_path):
    grammar = tmp_path / "endless.gbnf"
    grammar.write_text("root ::= [a-z ] root")  # else the tiny model's answer may end before it can be stopped
    arguments = ["run", "--pack", str(pack), "--context", "30000", "--max-tokens", "29000"]
    arguments += ["--grammar", str(grammar), "count"]
    # What comes before `main` is Python's own start.
    code = (
        f"import sys; from slm_edge.edge.cli.main import main; sys.argv[1:] = {arguments!r}; print(flush=True); main()"
    )
    codes = []
    for delay_s in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        for _ in range(10):
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            process.stdout.readline()
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
            # On a busy machine the signal may come before `main` is called: not ours, once more.
            if not (b'File "<string>", line 1, in <module>\nKeyboardInterrupt' in error and b"slm_edge" not in error):
                break
        codes.append(process.returncode)
        assert b"Traceback" not in error, error.decode()
        assert b"ignored" not in error, error.decode()
    # On a fast machine the answer may be whole before the later signals,
    assert codes[0] == 130
    # and its process ends by the signal itself when that comes during Python's own shutdown.
    assert set(codes) <= {0, 130, -signal.SIGINT}, codes


def test_a_reader_that_leaves_is_no_error(pack):
    process = start(pack, "--context", "30000", "--max-tokens", "29000", "count", stdin=subprocess.DEVNULL)
    process.stdout.read(10)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(60) in (0, 1)
    assert error == b""


def test_help_says_the_defaults_and_imports_nothing_heavy():
    code = (
        "import sys; from slm_edge.edge.cli.run import run\n"
        "try: run(['--help'], prog_name='slm-edge run')\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'llama_cpp', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert "the pack's default adapter" in done.stdout
    assert "Examples:" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_only_the_low_level_binding_is_imported(pack):
    code = (
        "import sys; from slm_edge.edge.session.session import Session\n"
        f"Session.open({str(pack)!r}, threads=1).ask('hello', max_tokens=2)\n"
        "print('llama_cpp.llama_cpp' in sys.modules, 'llama_cpp.llama' in sys.modules, 'torch' in sys.modules)\n"
        "import llama_cpp; print(llama_cpp.Llama.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["True", "False", "False", "Llama"]


# What only other commands, options and adapters need.
NOT_FOR_ONE_ANSWER = {
    *("answer.batcher", "answer.thinking", "files.aside", "files.atomic", "files.download", "grammar.rules"),
    *("gguf.other_bases", "gguf.template_arguments", "gguf.template_growth", "llama.first_load", "llama.kv_bytes"),
    *("llama.text_pieces", "llama.two_layouts", "onnx", "onnx.session", "pack.pull", "pack.write", "prefix.disk"),
    *("prefix.domain", "router", "router.router", "session.exactness", "session.parallel", "session.rows"),
    "session.speculation",
}


def test_few_modules_are_imported_to_the_first_token(pack):
    code = (
        "import sys\n"
        "from slm_edge.edge.cli.main import main\n"
        "from slm_edge.edge.llama.sampling import Sampler\n"
        "sample = Sampler.sample\n"
        "def first(*arguments):\n"
        "    Sampler.sample = sample\n"
        "    ours = [module for name, module in sys.modules.items() if name.startswith('slm_edge')]\n"
        "    print('MODULES', *(module.__name__ for module in ours if not module.__file__.endswith('__init__.py')))\n"
        "    others = {name.partition('.')[0] for name in sys.modules} - {'__main__', 'slm_edge'}\n"
        "    print('OTHERS', *sorted(name for name in others if name not in sys.stdlib_module_names))\n"
        "    print('TOPICS', *(module.__name__ for module in ours if module.__file__.endswith('__init__.py')))\n"
        "    return sample(*arguments)\n"
        "Sampler.sample = first\n"
        f"sys.argv = ['slm-edge', 'run', '--pack', {str(pack)!r}, '--adapter', 'math', '--max-tokens', '2', 'hello']\n"
        "main()\n"
    )
    # Once, so that the adapter is proved; what is written down about that is for the next run.
    assert run(pack, "--adapter", "math", "--max-tokens", "1", "hello").returncode == 0
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    modules, others, topics = ([*line.split()[1:]] for line in done.stdout.splitlines()[:3])
    assert "slm_edge.edge.session.session" in modules and "slm_edge.edge.session" in topics
    assert not {f"slm_edge.edge.{name}" for name in NOT_FOR_ONE_ANSWER} & {*modules, *topics}
    # Each of these is needed for any answer; what costs a tenth of a second more must not slip in.
    foreign = {name for name in others if not name.startswith(("_", "sitecustomize", "usercustomize"))}
    assert foreign <= {"click", "jinja2", "llama_cpp", "markupsafe", "numpy", "typing_extensions"}
    assert len(modules) <= 43, "import what a plain run does not need where it is needed"
