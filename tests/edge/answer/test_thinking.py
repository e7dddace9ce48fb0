"""What a model thinks stands apart from its answer: split as it comes, streamed, kept out of the next prompt."""

import json
import random
import subprocess
import sys

import pytest
from build_gguf import CHATML, keys_with_marks, tiny_adapter, tiny_base
from build_server import serving
from slm_edge.edge.answer.stream import TextOut
from slm_edge.edge.answer.thinking import Thinking, form_of, split, thinking_of
from slm_edge.edge.cli.conversation.talk import Talk
from slm_edge.edge.console import harmless
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.chat_template import THINKING_FORMS, ChatTemplate
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.scheduler.engine import Engine
from slm_edge.edge.session.batch import generate_batch
from slm_edge.edge.session.session import Session

THINK = ("<think>", "</think>")
CARD = TaskCard(task="x")
N = 40


@pytest.mark.parametrize(
    ("text", "begun", "thought", "said"),
    [
        ("<think>17 * 23</think>\n\n391", False, "17 * 23", "391"),
        (" \n<think>\nWell.\n</think>391\n", False, "Well.", "391\n"),
        ("<think></think>\n\n391", False, "", "391"),
        ("Well.</think>391", True, "Well.", "391"),
        ("<think>I go on and </thin", False, "I go on and </thin", ""),
        ("<think>", False, "", ""),
        ("<thi", False, "", "<thi"),
        ("  391 < 400", False, "", "  391 < 400"),
        ("The tag <think> is no thought</think>", False, "", "The tag <think> is no thought</think>"),
        ("<think>a</think>b</think><think>c", False, "a", "b</think><think>c"),
        ("", False, "", ""),
    ],
)
def test_thoughts_are_told_however_the_text_is_cut(text, begun, thought, said):
    rng = random.Random(text)
    for _ in range(30):
        out = TextOut(thinking=Thinking(THINK, begun))
        shown, thoughts, rest = "", "", text.encode()
        while rest:
            n = rng.randint(1, 6)
            shown += out.feed(rest[:n])
            thoughts += out.thought
            rest = rest[n:]
        shown += out.finish()
        thoughts += out.thought
        assert (out.thinking, shown) == (thought, said)
        assert thoughts.strip() == thought


def test_stop_texts_are_the_answers_alone():
    out = TextOut(["\n\n"], Thinking(THINK))
    shown = "".join(out.feed(part) for part in (b"<think>a\n\nb</think>\n\nyes\n", b"\nno"))
    assert (shown + out.finish(), out.thinking, out.stopped) == ("yes", "a\n\nb", True)


def test_the_form_is_the_cards_or_the_templates():
    for form in THINKING_FORMS:
        template = ChatTemplate("{{ messages[0].content.split(" + json.dumps(form[1]) + ")[-1] }}")
        assert form_of(template, CARD) == form
        assert form_of(template, TaskCard(task="x", thinking=())) is None
    plain = ChatTemplate(CHATML)
    assert form_of(plain, CARD) is None
    assert form_of(plain, TaskCard(task="x", thinking=("(", ")"))) == ("(", ")")
    for wrong in (["<think>"], ["<think>", ""], "<think>", ["a", "b", "c"], [1, 2]):
        with pytest.raises(InputError, match="task card"):
            TaskCard.of({"task": "x", "thinking": wrong})
    card = TaskCard.of({"task": "x", "thinking": ["(", ")"]})
    assert TaskCard.of(card.as_dict()) == card
    assert TaskCard.of(TaskCard(task="x", thinking=()).as_dict()).thinking == ()


def test_marks_that_the_vocabulary_does_not_show(tmp_path):
    keys = keys_with_marks("[THINK]", "[/THINK]")
    template = "{{ messages[0].content }}{# [THINK] and [/THINK] #}{% if enable_thinking %}[THINK]{% endif %}"
    path = tiny_base(tmp_path / "b.gguf", chat_template=template, keys=keys)
    with Vocab.open(path) as vocab:
        found = thinking_of(ChatTemplate(template), CARD, vocab, vocab.encode("Hi"))
        assert found is not None
        assert not found.begun
        assert sorted(found.markers.values()) == [b"[/THINK]", b"[THINK]"]
        out = TextOut((), found)
        shown = "".join(out.take(one, vocab) for one in vocab.encode("[THINK]in the[/THINK]is[/THINK] it"))
        # A mark behind the thoughts is as invisible as ever.
        assert (out.thinking, shown + out.finish()) == ("in the", "is it")
        assert thinking_of(ChatTemplate(template), CARD, vocab, vocab.encode("Hi[THINK]\n")).begun


# A random model thinks nothing; so the marks are taken out of what it says.


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A pack, and what its adapter says to "the world", with the marks in it."""
    folder = tmp_path_factory.mktemp("thinker")
    base = tiny_base(folder / "base.gguf")
    for seed in range(1, 30):
        math = tiny_adapter(folder / f"math{seed}.gguf", base, seed=seed)
        with Session.of_files(base, {"math": (math, None)}, threads=1) as session:
            text = session.ask("the world", adapter="math", max_tokens=N).text.lstrip()
        opened, rest = text[:3], text[3:]
        ends = (at for at in range(12, len(rest) - 6) if rest.find(rest[at : at + 3]) == at)
        at = next((at for at in ends if f"{opened}{rest[at : at + 3]}".isprintable()), None)
        if at is not None and "\ufffd" not in opened + rest[at : at + 3]:
            break
    thought, closed, said = rest[:at].strip(), rest[at : at + 3], rest[at + 3 :].lstrip()
    assert thought
    assert said
    card = TaskCard(task="x", thinking=(opened, closed))
    build_pack(folder / "pack", base=base, adapters=[NewAdapter("math", math, card)], default_adapter="math")
    return folder / "pack", thought, said


def test_sessions_batches_and_engines_tell_them_apart(thinker):
    pack, thought, said = thinker
    with Session.open(pack, threads=1) as session:
        told: list[str] = []
        stream = session.stream("the world", max_tokens=N, on_thinking=told.append)
        assert "".join(stream) == said
        assert (stream.answer.text, stream.answer.thinking) == (said, thought)
        assert "".join(told).strip() == thought
        pieces: list[str] = []
        told.clear()
        pending = session.submit("the world", max_tokens=N, on_text=pieces.append, on_thinking=told.append)
        assert (pending.result().text, pending.result().thinking) == (said, thought)
        assert ("".join(pieces), "".join(told).strip()) == (said, thought)
        assert generate_batch(session, ["the world"], adapter="math", max_tokens=N)[0].thinking == thought
        cut = session.ask("the world", max_tokens=10)
        assert (cut.text, bool(cut.thinking)) == ("", True)
        assert "still thinking" in cut.cut()
        # Rules leave no room for thoughts.
        assert session.ask("the world", max_tokens=5, grammar='root ::= "yes"').text == "yes"
    with Engine.open(pack, threads=1, parallel=1) as engine:
        ticket = engine.submit("the world", max_tokens=N)
        assert "".join(ticket) == said
        assert "".join(piece.thinking for piece in ticket.pieces).strip() == thought
        ids = engine.tokenize("the world")
        assert engine.submit(ids, max_tokens=5).result().thinking == ""


def test_over_http_they_are_reasoning_content(thinker):
    pack, thought, said = thinker
    asked = {"model": "math", "messages": [{"role": "user", "content": "the world"}], "max_tokens": N}
    with serving(pack) as server:
        message = server.post("/v1/chat/completions", asked).json["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == (said, thought)
        events = server.post("/v1/chat/completions", {**asked, "stream": True}).events()[:-1]
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == thought
        assert "".join(delta.get("content", "") for delta in deltas) == said
        # A client hands it back; this template writes none of it.
        told = [*asked["messages"], message, {"role": "user", "content": "and?"}]
        plain = [*asked["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "and?"}]
        used = [
            server.post("/v1/chat/completions", {**asked, "messages": some}).json["usage"] for some in (told, plain)
        ]
        assert used[0]["prompt_tokens"] == used[1]["prompt_tokens"]


def test_a_model_that_ends_while_it_thinks_tells_its_thoughts_once(tmp_path):
    # An end of turn is near: the random base ends soon where all is sampled
    base = tiny_base(tmp_path / "base.gguf", chat_template=CHATML + "{{ '<think>' }}{# </think> #}")
    with Session.of_files(base, {}, threads=1) as session:
        settings = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 600}
        for seed in range(20):
            told: list[str] = []
            pending = session.submit("the world", seed=seed, on_thinking=told.append, **settings)
            answer = pending.result()
            assert "".join(told).strip() == answer.thinking
            if answer.stop_reason == "end" and answer.thinking and not answer.text:
                return
    pytest.fail("no answer ended within its thoughts")


def test_a_conversation_keeps_thoughts_out_of_the_next_prompt(thinker):
    pack, thought, said = thinker
    with Session.open(pack, threads=1) as session:
        talk = Talk(session, settings={"max_tokens": N})
        talk.use("math")
        talk.turn("the world")
        assert talk.messages[1] == {"role": "assistant", "content": said, "reasoning_content": thought}
        text = session.vocab.decode(session.prompt_tokens([*talk.messages, {"role": "user", "content": "x"}]))
        assert said in text
        assert thought not in text.replace(said, "")


def run(*arguments, stdin=""):
    command = [sys.executable, "-m", "slm_edge.edge", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_run_and_chat_show_thoughts_on_stderr(thinker):
    pack, thought, said = thinker
    done = run("run", "--pack", pack, "--threads", 1, "-n", N, "the world")
    assert done.stdout.removesuffix("\n") == said.removesuffix("\n")
    assert done.stderr.startswith(harmless(thought))
    data = json.loads(run("run", "--pack", pack, "--threads", 1, "-n", N, "the world", "--json").stdout)
    assert (data["text"], data["thinking"]) == (said, thought)
    talk = run("chat", pack, "--threads", 1, "-n", N, stdin="the world\n")
    assert talk.stdout.removesuffix("\n") == said.removesuffix("\n")
    assert harmless(thought) in talk.stderr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>\nb", ("a", "b")),
        ("a\n</think>\n\nb", ("a", "b")),
        ("<think>a", ("a", "")),
        ("b", ("", "b")),
        ("[THINK]a[/THINK]b", ("a", "b")),
        ("use <think> and </think>", ("", "use <think> and </think>")),
    ],
)
def test_whole_texts_of_servers(text, parts):
    assert split(text) == parts
