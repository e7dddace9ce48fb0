"""A session is one thread's of one process until it is closed; whoever else calls gets one error, never a crash."""

import asyncio
import copy
import os
import pickle
import sys
import threading
import traceback

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import EngineError
from slm_edge.edge.llama.sampling import Sampler, Sampling
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.edge.session.session import Session
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

# Every public call, and what llama.cpp is reached by beside them.
CALLS = {
    "use": lambda s: s.use("a"),
    "choice_of": lambda s: s.choice_of("a"),
    "choose": lambda s: s.choose("hello"),
    "router": lambda s: s.router,
    "prompt_tokens": lambda s: s.prompt_tokens("hello"),
    "rendered": lambda s: s.rendered("hello", None, s.choice),
    "request": lambda s: s.request("hello", s.choice, None, {}),
    "sections": lambda s: s.sections(s.choice, [1, 2]),
    "stream": lambda s: s.stream("hello"),
    "ask": lambda s: s.ask("hello", max_tokens=3),
    "ask under a grammar": lambda s: s.ask("hello", grammar='root ::= "a"'),
    "submit": lambda s: s.submit("hello", max_tokens=3).result(),
    "new_batcher": lambda s: s.new_batcher(2),
}
CLOSED = {
    "encode": lambda s: s.vocab.encode("hello"),
    "piece": lambda s: s.vocab.piece(5),
    "special piece": lambda s: s.vocab.piece(5, special=True),
    "decode": lambda s: s.vocab.decode([5]),
    "is_end": lambda s: s.vocab.is_end(5),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owner")
    base = tiny_base(folder / "base.gguf")
    adapter = tiny_adapter(folder / "a.gguf", base)
    onnx = export_onnx(base, folder / "onnx", kind="f32").base
    export_onnx_adapter(adapter, onnx, folder / "a.onnx_adapter")
    return folder


@pytest.fixture(params=["llama", "onnx"])
def opened(request, made):
    """An open session that has answered, with a stream and a request in the making."""
    if request.param == "llama":
        session = Session.of_files(made / "base.gguf", {"a": (made / "a.gguf", None)}, threads=2)
    else:
        session = OnnxSession.of_files(made / "onnx", {"a": (made / "a.onnx_adapter", None)}, threads=1)
    session.ask("hello", adapter="a", max_tokens=3)
    # Known to the tables of the tokenizer
    session.vocab.piece(5), session.vocab.is_end(5)
    yield session
    session.close()


def in_thread(call):
    """What a call raises in another thread; None for nothing."""
    caught = []

    def run():
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            caught.append(error)

    thread = threading.Thread(target=run, name="another")
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return caught[0] if caught else None


def in_child(call):
    """Runs a call in a forked child: what it said last, and its exit code."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.write(writing, repr(call()).encode())
            code = 0
        except EngineError as error:
            os.write(writing, str(error).encode())
        except BaseException:  # noqa: BLE001 - a child of pytest must not go on
            traceback.print_exc(file=sys.__stderr__)
            code = 2
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    return text, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_after_close_every_call_is_one_error(opened):
    stream = opened.stream("hello", max_tokens=20)
    next(stream)
    batcher = opened.new_batcher(2)
    waiting = batcher.submit(opened.request("hello", opened.choice, None, {}), opened.choice)
    opened.close()
    for name, call in (CALLS | CLOSED).items():
        with pytest.raises(EngineError, match="closed"):
            pytest.fail(f"{name} gives {call(opened)!r}")
    for call in (lambda: list(stream), lambda: next(stream), batcher.advance):
        with pytest.raises(EngineError, match="closed"):
            call()
    with pytest.raises(EngineError, match="given up"):
        waiting.result()
    # What ends things may be called again.
    stream.close()
    batcher.close()
    opened.close()
    assert opened.adapter is None


def test_the_engines_own_objects_are_closed_too(made):
    with Session.of_files(made / "base.gguf", {}, threads=1) as session:
        session.ask("hello", max_tokens=2)
    for call in (
        session.context.logits_view,
        lambda: session.context.decode([1], 0),
        lambda: session.model.load_adapter(made / "a.gguf"),
        lambda: session.context.beside(n_ctx_tokens=16),
    ):
        with pytest.raises(EngineError):
            call()
    with OnnxSession.of_files(made / "onnx", {}, threads=1) as onnx:
        onnx.ask("hello", max_tokens=2)
    with pytest.raises(EngineError, match="closed"):
        onnx.engine.decode([1], 0)


def test_another_thread_gets_an_error_and_the_owner_goes_on(opened):
    expected = opened.ask("the world", max_tokens=20).token_ids
    stream = opened.stream("the world", max_tokens=20)
    next(stream)
    pending = opened.submit("the world", max_tokens=20)
    calls = {name: lambda call=call: call(opened) for name, call in CALLS.items()}
    calls |= {"a stream": lambda: list(stream), "its next": lambda: next(stream), "its end": stream.close}
    calls |= {"a result": pending.result, "cancel": pending.cancel, "close": opened.close}
    for name, call in calls.items():
        error = in_thread(call)
        assert isinstance(error, EngineError), (name, error)
        assert "belongs to the thread 'MainThread'; 'another' cannot use it" in str(error)
        assert "one session in each thread" in error.hint
    for _ in stream:
        pass
    assert stream.answer.token_ids == expected
    # Whose answer is made may be read by anyone.
    answer = pending.result()
    assert in_thread(lambda: pending.result().text) is None
    assert answer.token_ids == expected


def test_a_stream_cleared_away_by_another_thread_frees_nothing(opened):
    streams = [opened.stream("the world and this", max_tokens=20)]
    next(streams[0])
    assert in_thread(streams.clear) is None
    assert opened.ask("the world", max_tokens=3).n_tokens == 3


def test_asyncio_threads(opened):
    """What a web framework does with a blocking call."""

    async def three():
        return await asyncio.gather(
            *(asyncio.to_thread(opened.ask, "hello", max_tokens=3) for _ in range(3)), return_exceptions=True
        )

    answers = asyncio.run(three())
    assert [type(answer) for answer in answers] == [EngineError] * 3
    assert opened.ask("hello", max_tokens=3).n_tokens == 3


def test_one_session_in_each_thread_is_right(made):
    with Session.of_files(made / "base.gguf", {}, threads=1) as session:
        expected = session.ask("the world", max_tokens=12).token_ids
    found = []

    def answer():
        with Session.of_files(made / "base.gguf", {}, threads=1) as own:
            found.extend(own.ask("the world", max_tokens=12).token_ids for _ in range(5))

    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [expected] * 15


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_an_error_and_does_not_hang(opened):
    stream = opened.stream("the world", max_tokens=20)
    next(stream)
    for call in (*CALLS.values(), lambda s: list(stream)):
        text, code = in_child(lambda call=call: call(opened))
        assert code == 1
        assert "opened in the process" in text and "open a session after the fork" in text
    # Leaving a `with` there is no error: the parent frees what there is.
    assert in_child(opened.close) == ("None", 0)
    assert opened.ask("the world", max_tokens=3).n_tokens == 3


def test_what_owns_memory_is_not_copied(opened):
    owners = [opened, opened.vocab, Sampler(Sampling(temperature=1.0, seed=1))]
    if isinstance(opened, Session):
        owners += [opened.model, opened.context, *opened.model.adapters.values()]
    for one in owners:
        for how in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(EngineError, match="cannot be copied"):
                how(one)
