"""Template arguments of calls and cards: in sessions, engines, packs and on the command line."""

import json
import subprocess
import sys

import pytest
from build_gguf import tiny_adapter, tiny_adapters, tiny_base
from slm_edge.edge.errors import InputError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.pack.write import NewAdapter, add_adapter, build_pack
from slm_edge.edge.scheduler.engine import Engine
from slm_edge.edge.session.session import Session

COMMAND = [sys.executable, "-m", "slm_edge.edge"]
SWITCHED = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{{ 'You may call these tools, if you must: ' }}"
    "{{ (tools | tojson) ~ '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ 'At once: ' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("switched") / "base.gguf", chat_template=SWITCHED)


def text_of(session, **how):
    return session.vocab.decode(session.prompt_tokens("the world", **how), special=True)


def test_a_call_and_a_card_tell_the_template(base):
    card = TaskCard(task="x", template={"enable_thinking": False})
    with Session.of_files(base, tiny_adapters(base, {"terse": 1}, card), threads=1) as session:
        assert text_of(session, adapter="none").endswith("assistant\n")
        assert text_of(session, adapter="terse").endswith("assistant\nAt once: ")
        assert text_of(session, adapter="none", template_args={"think": False}).endswith("At once: ")
        # The call's own stands in place of the card's
        assert text_of(session, adapter="terse", template_args={"enable_thinking": True}).endswith("assistant\n")
        plain = session.ask("the world", adapter="none", max_tokens=12)
        said = session.ask("the world", adapter="none", max_tokens=12, template_args={"tools": TOOLS})
        assert said.n_prompt_tokens > plain.n_prompt_tokens
        assert said.text != plain.text
        waiting = session.submit("the world", adapter="none", max_tokens=12, template_args={"tools": TOOLS})
        assert waiting.result().text == said.text
        for wrong, words in ({"toolz": []}, "no argument 'toolz'"), ([1], "names with values"), ({"tools": 1}, "tools"):
            with pytest.raises(InputError, match=words):
                session.ask("the world", template_args=wrong)


def test_what_tools_say_is_kept_for_the_next_question(base):
    with Session.of_files(base, {}, threads=1) as session:
        told = {"template_args": {"tools": TOOLS}, "max_tokens": 2}
        session.ask("the world", **told)
        n_shared = session.rendered("the world", None, session.choice, {"tools": TOOLS})[1]
        assert n_shared > 32
        assert session.rendered("the world", None, session.choice, {"tools": TOOLS * 2})[1] != n_shared
        assert session.ask("is it so?", **told).n_kept_tokens >= n_shared


def test_an_engine_takes_them_too(base):
    with Engine.of_session(lambda: Session.of_files(base, {}, threads=1), parallel=1) as engine:
        told = {"max_tokens": 8, "template_args": {"tools": TOOLS}}
        found = engine.submit("the world", **told).result()
        with Session.of_files(base, {}, threads=1) as session:
            assert session.ask("the world", **told).text == found.text
        with pytest.raises(InputError, match="no argument 'documents'"):
            engine.submit("the world", template_args={"documents": []})
        with pytest.raises(InputError, match="token ids"):
            engine.submit([1, 2], template_args={"tools": TOOLS})


def test_a_pack_is_told_when_it_is_made(base, tmp_path):
    math = tiny_adapter(tmp_path / "math.gguf", base)
    wrong = TaskCard(task="x", template={"documents": []})
    with pytest.raises(InputError, match="no argument 'documents'"):
        build_pack(tmp_path / "pack", base=base, adapters=[NewAdapter("math", math, wrong)])
    build_pack(tmp_path / "pack", base=base, adapters=[NewAdapter("math", math)])
    with pytest.raises(InputError, match="no argument 'documents'"):
        add_adapter(tmp_path / "pack", NewAdapter("other", math, wrong))
    (tmp_path / "card.toml").write_text('task = "x"\n[template]\nenable_thinking = false\n')
    add_adapter(tmp_path / "pack", NewAdapter("other", math, TaskCard.open(tmp_path / "card.toml")))
    pack = Pack.open(tmp_path / "pack", verify=True)
    assert pack.adapters["other"].card.template == {"enable_thinking": False}
    # A card without it is read by earlier versions.
    assert "template" not in json.loads((tmp_path / "pack" / "adapters" / "math.json").read_text())
    with pytest.raises(InputError, match="not a valid task card"):
        TaskCard.of({"task": "x", "template": {"tools": 3}})


def run(*arguments, stdin=""):
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_run_and_chat_have_options_for_them(base, tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    asked = ["run", base, "the world", "--threads", 1, "-n", 8, "--json"]

    def n_tokens(*more):
        done = run(*asked, *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["n_prompt_tokens"]

    n_plain = n_tokens()
    n_tools = n_tokens("--tools", tmp_path / "tools.json")
    assert n_tools > n_plain + 20
    assert n_tokens("--template-arg", f"tools={json.dumps(TOOLS)}") == n_tools
    assert (
        n_tokens("--no-think") == n_tokens("--template-arg", "enable_thinking=false") > n_plain == n_tokens("--think")
    )
    (tmp_path / "broken.json").write_text("[{")
    for more, words in (
        (["--template-arg", "style=short"], "knows no argument 'style'"),
        (["--template-arg", "enable_thinking=False"], "write true, false or null"),
        (["--template-arg", "enable_thinking"], "NAME=VALUE"),
        (["--date", "2026-05-01"], "knows no argument 'date'"),
        (["--tools", tmp_path / "broken.json"], "not valid JSON"),
        (["--tools", tmp_path / "none.json"], "no such file"),
        (["--documents", tmp_path / "tools.json"], "knows no argument 'documents'"),
    ):
        done = run(*asked[:-1], *more)
        assert (done.returncode, done.stdout) == (2, ""), more
        assert words in done.stderr, more
        assert "Traceback" not in done.stderr
    talk = run("chat", base, "--threads", 1, "-n", 4, "--no-think", stdin="the world\nhello\n/stats\n")
    assert talk.returncode == 0, talk.stderr
    assert "context" in talk.stderr
