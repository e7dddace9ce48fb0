"""What Python users give: an adapter for one call, and mistakes that are told as ours, whatever their type."""

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from build_gguf import tiny_pack as a_pack
from slm_edge.edge.engines import open_session
from slm_edge.edge.errors import InputError
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.router.in_pack import put_router, starter_router
from slm_edge.edge.session.session import Session
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

PROBLEM = "A box has 12 eggs. Tom uses 5 of them for a cake. How many eggs are left?"
ORDER = "Write a Python function that reverses a list."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    base = tiny_base(folder / "base.gguf")
    onnx = export_onnx(base, folder / "onnx", kind="f32").base
    for seed, name in enumerate("ab", 1):
        export_onnx_adapter(
            tiny_adapter(folder / f"{name}.gguf", base, seed=seed), onnx, folder / f"{name}.onnx_adapter"
        )
    return folder


@pytest.fixture(params=["llama", "onnx"])
def session(request, made):
    kind, base, end = {
        "llama": (Session, "base.gguf", "gguf"),
        "onnx": (OnnxSession, "onnx", "onnx_adapter"),
    }[request.param]
    files = {name: (made / f"{name}.{end}", TaskCard(task=name, system=f"You are {name}.")) for name in "ab"}
    with kind.of_files(made / base, files, threads=1) as session:
        yield session


def test_an_adapter_for_one_call_is_the_answer_of_use(session):
    settings = {"max_tokens": 8}
    for name in ("a", "b", "none", None, {"a": 0.7, "b": -0.3}, "a:0.7+b:-0.3", session.choice_of("b")):
        expected = session.use(name).ask("the world", **settings)
        session.use("a")
        stream = session.stream("the world", adapter=name, **settings)
        assert "".join(stream) == expected.text
        for answer in (
            stream.answer,
            session.ask("the world", adapter=name, **settings),
            session.submit("the world", adapter=name, **settings).result(),
        ):
            assert (answer.token_ids, answer.adapter) == (expected.token_ids, expected.adapter)
        # What is in use stays, and counts where no adapter is named.
        assert session.adapter == session.ask("the world", **settings).adapter == "a"
    assert session.use("a:0.7+b").adapter == "a:0.7+b:1"
    texts = [session.vocab.decode(session.prompt_tokens("hello", adapter=name)) for name in ("b", "none")]
    assert ["You are b." in text for text in texts] == [True, False]


def test_requests_under_several_adapters_in_one_batch(session):
    names = ["a", "b", None, "a", "b"]
    waiting = [session.submit(f"question {i}", adapter=name, max_tokens=5) for i, name in enumerate(names)]
    answers = [pending.result() for pending in waiting]
    for i, (name, answer) in enumerate(zip(names, answers, strict=True)):
        assert (answer.token_ids, answer.adapter) == (
            session.ask(f"question {i}", adapter=name, max_tokens=5).token_ids,
            name,
        )


WRONG_CALLS = {
    "an unknown setting": ({"max_token": 3}, "there is no setting 'max_token'", "did you mean max_tokens?"),
    "a setting like no other": ({"zzz": 3}, "there is no setting 'zzz'", "there are: max_tokens,"),
    "a text for a number": ({"temperature": "hot"}, "the setting temperature is 'hot'; it takes a number", None),
    "half a token": ({"max_tokens": 2.5}, "it takes a whole number", None),
    "a text for a count": ({"top_k": "4"}, "top_k is '4'", None),
    "a truth value": ({"top_p": True}, "top_p is True", None),
    "a number to stop at": ({"stop": 5}, "it takes a text or several texts or None", None),
    "numbers to stop at": ({"stop": ["a", 5]}, "it takes a text or several texts", None),
    "no tokens": ({"max_tokens": 0}, "at least 1", None),
    "no number": ({"temperature": float("nan")}, "temperature is nan", None),
    "a grammar that is none": ({"grammar": 7}, "grammar is 7", None),
    "a system message that is none": ({"system": 7}, "the system message is 7; it takes a text", None),
    "half a letter for the system": ({"system": "\ud800"}, "no Unicode text", None),
    "a list of adapters": ({"adapter": ["a", "b"]}, "names no adapter", "names with scales"),
    "an adapter's number": ({"adapter": 3}, "names no adapter", None),
    "an adapter that is not there": ({"adapter": "aa"}, "there is no adapter 'aa'", "there are: a, b, none"),
    "a scale that is a text": ({"adapter": {"a": "1"}}, "the scale of adapter 'a' is '1'", None),
    "no router": ({"adapter": "auto"}, "loose files has no router", None),
}


@pytest.mark.parametrize("why", WRONG_CALLS)
def test_wrong_calls_are_input_errors(session, why):
    given, message, hint = WRONG_CALLS[why]
    for call in (session.ask, session.stream, session.submit):
        with pytest.raises(InputError) as caught:
            call("hello", **given)
        assert message in str(caught.value)
        assert hint is None or hint in caught.value.hint


WRONG_PROMPTS = {
    "a number": (5, "neither a text nor a conversation: int"),
    "nothing": (None, "NoneType"),
    "bytes": (b"hello", "bytes"),
    "one message": ({"role": "user", "content": "hello"}, "neither a text nor a conversation: dict"),
    "texts": (["a", "b"], "message 0 of the conversation has no 'content'"),
    "no content": ([{"role": "user"}], "message 0"),
    "no text": ([{"role": "user", "content": None}], "message 0"),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "message 0"),
    "no role": ([{"content": "hello"}], "has the role None"),
    "another role": ([{"role": "bogus", "content": "hello"}], "has the role 'bogus'"),
    "a role that is a list": ([{"role": ["user"], "content": "hello"}], "has the role ['user']"),
    "half a letter": ("x\ud800y", r"no Unicode text: '\ud800' at letter 1"),
    "half a letter in a turn": ([{"role": "user", "content": "\udfff"}], "message 0"),
    "empty": ("", "the prompt is empty"),
    "nobody": ([], "the prompt is empty"),
}


@pytest.mark.parametrize("why", WRONG_PROMPTS)
def test_wrong_prompts_are_input_errors(session, why):
    prompt, message = WRONG_PROMPTS[why]
    for call in (session.ask, session.stream, session.submit, session.prompt_tokens):
        with pytest.raises(InputError) as caught:
            call(prompt)
        assert message in str(caught.value)


def test_numpys_numbers_and_tuples_are_taken(session):
    answer = session.ask(
        ({"role": "user", "content": "hello"},),
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        seed=np.uint8(4),
        stop=("zz",),
    )
    assert (answer.n_tokens <= 3, answer.seed) == (True, 4)


def test_half_a_letter_in_the_tokenizer(session):
    with pytest.raises(InputError, match="no Unicode"):
        session.vocab.encode("x\ud800")


WRONG_OPTIONS = {
    "nonsense": ({"nonsense": 1}, "there is no option 'nonsense'", "there are: n_ctx_tokens"),
    "ram": ({"ram": 10}, "there is no option 'ram'", "did you mean ram_bytes?"),
    "n_ctx": ({"n_ctx": 512}, "there is no option 'n_ctx'", "did you mean n_ctx_tokens?"),
    "thread": ({"thread": 1}, "there is no option 'thread'", "did you mean threads?"),
    "a size in words": ({"ram_bytes": "300M"}, "ram_bytes is '300M'; it takes a whole number or None", None),
    "a text for a count": ({"threads": "2"}, "threads is '2'", None),
    "a fraction": ({"n_ctx_tokens": 100.5}, "n_ctx_tokens is 100.5", None),
    "another type of KV": ({"kv_type": "f8"}, "kv_type is 'f8'; it takes 'f16' or 'f32' or 'q8_0' or None", None),
    "one pinned": ({"pinned": "a"}, "pinned is 'a'; it takes several texts", None),
    "a number for a folder": ({"prefix_cache": 3}, "prefix_cache is 3; it takes a text or a path", None),
}


@pytest.mark.parametrize("why", WRONG_OPTIONS)
def test_wrong_options_are_input_errors(made, tmp_path, why):
    given, message, hint = WRONG_OPTIONS[why]
    for call in (
        lambda: Session.of_files(made / "base.gguf", {}, **given),
        lambda: OnnxSession.of_files(made / "onnx", {}, **given),
        # Before the pack is looked for
        lambda: Session.open(tmp_path / "none", **given),
        lambda: open_session(tmp_path / "none", **given),
        lambda: open_session(tmp_path / "none", "onnx", **given),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert message in str(caught.value)
        assert hint is None or hint in caught.value.hint


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = a_pack(tmp_path_factory.mktemp("pack"))
    put_router(folder, starter_router())
    return folder


def test_open_session_is_the_engines_own_open(pack):
    with open_session(pack, threads=1) as session, Session.open(Pack.open(pack), threads=1) as own:
        assert type(session) is type(own) is Session
        assert session.adapter == own.adapter == "math"
        assert session.loaded_adapters == {}
        assert session.ask("the world", max_tokens=9).token_ids == own.ask("the world", max_tokens=9).token_ids
    with open_session(pack, adapter="code", one_answer=True, threads=1) as session:
        assert list(session.loaded_adapters) == ["code"]
        assert session.options["adapter_budget_bytes"] == session.adapters["code"].size_bytes
    for engine in ("gpu", "LLAMA", None, 3):
        with pytest.raises(InputError, match="there is no engine"):
            open_session(pack, engine)
    with pytest.raises(InputError, match="has no ONNX form"):
        open_session(pack, "onnx")
    with pytest.raises(InputError, match="the engine 'onnx' has no option ram_bytes, speculate"):
        open_session(pack, "onnx", ram_bytes=1 << 30, speculate="fast", threads=None)


def test_auto_is_the_routers_choice_for_each_prompt(pack):
    with open_session(pack, adapter="auto", threads=1) as session:
        assert session.adapter is None
        assert session.choose(PROBLEM).adapter == "math"
        assert session.choose(PROBLEM, explain=True).reasons
        for prompt, name in ((PROBLEM, "math"), (ORDER, "code"), ("Hello", None)):
            answers = [
                session.ask(prompt, adapter="auto", max_tokens=2),
                session.submit(prompt, adapter="auto", max_tokens=2).result(),
            ]
            assert [answer.adapter for answer in answers] == [name] * 2
        with pytest.raises(InputError, match="'auto' chooses for one prompt"):
            session.use("auto")
        for wrong in (5, [{"role": "user", "content": 5}], "\ud800"):
            with pytest.raises(InputError):
                session.choose(wrong)


def test_what_is_missing_is_told_before_anything_is_fetched(tmp_path):
    """The base is neither in the pack nor in the cache, and is not asked for."""
    base = tiny_base(tmp_path / "base.gguf")
    adapters = [NewAdapter("math", tiny_adapter(tmp_path / "a.gguf", base))]
    build_pack(tmp_path / "pack", base=base, adapters=adapters, copy_base=False)
    for adapter, why in (("auto", "no router"), ("mth", "no adapter 'mth'"), ("math", "neither in the pack nor in")):
        with pytest.raises(InputError, match=why):
            open_session(tmp_path / "pack", adapter=adapter)
