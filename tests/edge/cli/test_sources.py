"""What `run` and `chat` take as a model: files, packs, and names that are neither."""

import json
import subprocess
import sys

import pytest
from build_gguf import tiny_adapter, tiny_base, tiny_pack
from slm_edge.edge.cli.source import looks_like_model
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session


def slm_edge(*arguments, stdin="", cwd=None):
    command = [sys.executable, "-m", "slm_edge.edge", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", check=False, cwd=cwd)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    base = tiny_base(folder / "model.gguf")
    tiny_adapter(folder / "style.gguf", base, seed=3, task="style")
    tiny_adapter(folder / "sea=1.gguf", base, seed=4, task="sea")
    other = tiny_base(folder / "other.gguf", seed=9)
    tiny_adapter(folder / "others.gguf", other, seed=4, task="sea")
    tiny_pack(folder)
    return folder


def expected(made, scales, prompt="hi", **settings):
    """The same answer through the library."""
    files = {name: (made / f"{name}.gguf", TaskCard(task="x")) for name in ("style", "sea=1")}
    with Session.of_files(made / "model.gguf", files, threads=1) as session:
        return session.use(scales).ask(prompt, **settings).text


def run(made, *arguments, **how):
    done = slm_edge("run", "-t", 1, "-n", 12, "--json", *arguments, cwd=made, **how)
    return json.loads(done.stdout)["text"] if done.returncode == 0 else done


def test_a_file_alone_answers_however_it_is_given(made):
    answer = expected(made, None, max_tokens=12)
    assert run(made, "model.gguf", "hi") == answer
    assert run(made, "-m", "model.gguf", "-p", "hi") == answer
    assert run(made, "--model", "model.gguf", "hi") == answer
    assert run(made, "-p", "hi", "model.gguf") == answer
    assert run(made, "--pack", "model.gguf", "hi") == answer
    assert run(made, "model.gguf", stdin="hi\n") == answer
    assert run(made, "-m", "model.gguf", stdin="hi\n") == answer


def test_adapter_files_with_their_strength(made):
    one, half = expected(made, {"style": 1}, max_tokens=12), expected(made, {"style": 0.5}, max_tokens=12)
    both = expected(made, {"style": 0.5, "sea=1": 2}, max_tokens=12)
    assert len({one, half, both, expected(made, None, max_tokens=12)}) == 4
    assert run(made, "model.gguf", "--lora", "style.gguf", "hi") == one
    assert run(made, "model.gguf", "--lora", "style.gguf=0.5", "hi") == half
    assert run(made, "model.gguf", "--lora", "style.gguf=0.5", "--lora", "sea=1.gguf=2", "hi") == both
    chosen = ["--lora", "style.gguf", "--lora", "sea=1.gguf", "--adapter"]
    assert run(made, "model.gguf", *chosen, "style:0.5", "hi") == half
    assert run(made, "model.gguf", *chosen, "none", "hi") == expected(made, None, max_tokens=12)


def test_a_packs_folder_answers_as_with_pack(made):
    assert run(made, "pack", "hi") == run(made, "--pack", "pack", "hi") == run(made, "-m", "pack", "-p", "hi")
    assert run(made, "pack", stdin="hi") == run(made, "pack", "hi")


def test_sampling_is_the_librarys(made):
    how = {"temperature": 1.5, "top_k": 7, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    given = ["--temp", "1.5", "--top-k", "7", "--top-p", "0.9", "--min-p", "0.01", "--seed", "5"]
    answer = expected(made, None, max_tokens=12, **how)
    assert run(made, "model.gguf", *given, "hi") == answer != expected(made, None, max_tokens=12)
    how = {"repeat_penalty": 9.0, "frequency_penalty": 2.0, "presence_penalty": -1.0}
    given = [word for name, value in how.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert run(made, "model.gguf", *given, "hi") == expected(made, None, max_tokens=12, **how)
    whole = expected(made, None, max_tokens=12)
    stop = next(letter for letter in whole[1:] if letter.isprintable() and letter != "\N{REPLACEMENT CHARACTER}")
    assert run(made, "model.gguf", "--stop", stop, "hi") == whole.partition(stop)[0]
    assert run(made, "model.gguf", "--system", "the sea", "-c", "99", "hi") == expected(
        made, None, [{"role": "system", "content": "the sea"}, {"role": "user", "content": "hi"}], max_tokens=12
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama3.2"], "slm-edge run FILE.gguf"),
        (["qwen2.5:0.5b", "hi"], "slm-edge run FILE.gguf"),
        (["bartowski/Llama-3.2-1B-Instruct-GGUF"], "did you mean hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF?"),
        (["starte", "hi"], "did you mean starter?"),
        (["-m", "llama3.2", "hi"], "slm-edge run FILE.gguf"),
        (["what", "is this"], "in quotes"),
        (["what", "is", "this"], "in quotes"),
        (["-p", "hi", "model.gguf", "hi"], "given twice"),
        (["gone.gguf", "hi"], "gone.gguf: no such file"),
        (["model.gguf", "--lora", "gone.gguf", "hi"], "gone.gguf: no such file"),
        (["model.gguf", "--lora", "style.gguf=much", "hi"], "'much' is not a scale"),
        (["model.gguf", "--lora", "others.gguf", "hi"], "others.gguf"),
        (["model.gguf", "--lora", "model.gguf", "hi"], "model.gguf"),
        (["model.gguf", "--adapter", "auto", "hi"], "no router"),
        (["--pack", "pack", "--lora", "style.gguf", "hi"], "slm-edge pack add"),
        (["--pack", "pack", "-m", "model.gguf", "hi"], "two models"),
        (["style.gguf", "hi"], "style.gguf"),
    ],
)
def test_what_cannot_be_is_said_in_one_message(made, arguments, words):
    done = slm_edge("run", *arguments, cwd=made)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and "Traceback" not in done.stderr
    if "FILE.gguf" in words:
        assert len(done.stderr.splitlines()) == 2


def test_chat_takes_a_file_too(made):
    command = ["chat", "model.gguf", "--lora", "style.gguf", "-t", "1", "-n", "12"]
    done = slm_edge(*command, stdin="hi\n/adapter list\n", cwd=made)
    assert done.stdout.removesuffix("\n") == expected(made, {"style": 1}, max_tokens=12).removesuffix("\n")
    assert "* style" in done.stderr
    assert slm_edge("chat", "llama3.2", cwd=made).returncode == 2


@pytest.mark.parametrize(
    "word",
    ["llama3.2", "mistral", "qwen2.5:0.5b", "hf.co/a/b", "phi-4-mini", "x.gguf", "a:latest", "x/Llama-3"],
)
def test_names_of_models_elsewhere(word):
    assert looks_like_model(word)


@pytest.mark.parametrize("word", ["hi", "Hello", "and/or", "24/7", "TCP/IP", "llamas", "yes:no", "What?", ""])
def test_prompts_of_one_word(word):
    assert not looks_like_model(word)
