"""An engine: answers from any thread and event loop, each the one that a session gives, names and files kept apart."""

import asyncio
import hashlib
import math
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from build_gguf import task_pack, tiny_adapter, tiny_base, tiny_pack
from slm_edge.edge import (
    BusyError,
    ConflictError,
    Engine,
    EngineError,
    InputError,
    SlmEdgeError,
    TaskCard,
    open_session,
)
from slm_edge.edge.errors import DoesNotFitError
from slm_edge.edge.router.in_pack import open_router, put_router, starter_router
from slm_edge.edge.session.session import Session

SYSTEM = "Answer as the keeper of the light house would, in the words of the sea. " * 2
PROMPTS = [f"the world number {i} " + "and this " * (i * 5 % 17) for i in range(8)]


@pytest.fixture
def files(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    card = TaskCard(task="a", system=SYSTEM)
    return base, {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=i), card) for i, name in enumerate("ab", 1)}


@pytest.fixture
def engine(files):
    with Engine.of_session(lambda: Session.of_files(*files, threads=1), parallel=3) as engine:
        yield engine


@pytest.fixture
def session(files):
    with Session.of_files(*files, threads=1) as session:
        yield session


def same(answer, expected):
    return (answer.token_ids, answer.text, answer.stop_reason) == (
        expected.token_ids,
        expected.text,
        expected.stop_reason,
    )


def test_many_threads_get_the_answers_of_one_session(engine, session):
    names = ["a", "b", None, "a:0.5+b:0.5"]
    wrong, lock = [], threading.Lock()
    expected = {
        (prompt, name): session.ask(prompt, adapter=name, max_tokens=12) for prompt in PROMPTS for name in names
    }

    def ask(name):
        for prompt in PROMPTS:
            ticket = engine.submit(prompt, name, max_tokens=12)
            text = "".join(ticket)
            if not same(ticket.result(), expected[prompt, name]) or text != ticket.result().text:
                with lock:
                    wrong.append((prompt, name))

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    stats = engine.stats()
    assert (stats.n_answered, stats.n_failed, stats.n_cancelled) == (32, 0, 0)
    assert stats.answer_tokens["a"] == sum(expected[prompt, "a"].n_tokens for prompt in PROMPTS)


def test_an_event_loop_asks_and_streams_side_by_side(engine, session):
    async def streamed(prompt):
        return "".join([text async for text in engine.stream(prompt, "b", max_tokens=9)])

    async def all_of_them():
        asked = asyncio.gather(*(engine.ask(prompt, "a", max_tokens=9) for prompt in PROMPTS))
        return await asked, await asyncio.gather(*map(streamed, PROMPTS))

    answers, texts = asyncio.run(all_of_them())
    for prompt, answer, text in zip(PROMPTS, answers, texts, strict=True):
        assert same(answer, session.ask(prompt, adapter="a", max_tokens=9))
        assert text == session.ask(prompt, adapter="b", max_tokens=9).text


def test_pieces_have_ids_and_probabilities(engine, session):
    ticket = engine.submit(PROMPTS[0], "a", max_tokens=6, logprobs=3)
    pieces = list(ticket.read())
    answer = ticket.result()
    assert tuple(piece.token_id for piece in pieces if piece.token_id is not None) == answer.token_ids
    assert "".join(piece.text for piece in pieces) == answer.text
    ids = session.use("a").prompt_tokens(PROMPTS[0])
    session.context.clear()
    session.ask(PROMPTS[0], max_tokens=1)
    row = session.context.logits().astype("f8")
    # exp of all, in float64, as no code of ours does it
    expected = row - (row.max() + math.log(sum(math.exp(x - row.max()) for x in row)))
    assert pieces[0].logprob == pytest.approx(expected[answer.token_ids[0]], abs=1e-4)
    assert [token for token, _ in pieces[0].top] == list(expected.argsort()[::-1][:3])
    assert ticket.n_prompt_tokens == len(ids) == engine.count(PROMPTS[0], "a")


BENT = (
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"repeat_penalty": 1.5, "repeat_last_n": -1},
    {"repeat_penalty": 1.5, "repeat_last_n": 4},
    {"logit_bias": {40: 100.0}, "presence_penalty": 100.0},
    {},
)


def by_formula(session, prompt, how, n_tokens):
    """The likeliest tokens by the formulas of OpenAI and of CTRL, from logits that are computed one by one."""
    ids, said = session.prompt_tokens(prompt), []
    for at, token_id in enumerate(ids):
        session.context.decode([token_id], at, outputs="last")
    for at in range(len(ids), len(ids) + n_tokens):
        row = session.context.logits().astype("f8")
        for token_id, bias in how.get("logit_bias", {}).items():
            row[token_id] += bias
        n_last = how.get("repeat_last_n", 64)
        recent = [*ids, *said] if n_last < 0 else [*ids, *said][-n_last:]
        for token_id in set(recent):
            row[token_id] *= how.get("repeat_penalty", 1) ** (-1 if row[token_id] > 0 else 1)
        for token_id in said:
            row[token_id] -= how.get("frequency_penalty", 0)
        for token_id in set(said):
            row[token_id] -= how.get("presence_penalty", 0)
        said.append(int(row.argmax()))
        if session.vocab.is_end(said[-1]):
            return said[:-1]
        session.context.decode([said[-1]], at, outputs="last")
    return said


def test_penalties_and_biases_of_each_answer_in_a_batch_are_its_own(files, session):
    with Engine.of_session(lambda: Session.of_files(*files, threads=1), parallel=3) as engine:
        tickets = [engine.submit(PROMPTS[3], "a", max_tokens=60, **how) for how in BENT]
        answers = [list(ticket.result().token_ids) for ticket in tickets]
    session.use("a").ask("Its numbers are bound now.", max_tokens=1)
    for how, answer in zip(BENT, answers, strict=True):
        session.context.clear()
        assert answer == by_formula(session, PROMPTS[3], how, 60), how
    # The fifth: a token that is biased to the utmost comes first, and its penalty takes it away again.
    assert len({tuple(answer) for answer in answers}) == len(BENT) and answers[4][0] == 40 not in answers[4][1:]


def test_faults_are_told_on_the_callers_thread(engine):
    for faulty, kind in (
        (lambda: engine.submit(" "), InputError),
        (lambda: engine.submit("hello", "c"), InputError),
        (lambda: engine.submit("hello", "auto"), InputError),
        (lambda: engine.submit("hello", max_token=3), InputError),
        (lambda: engine.submit("hello", grammar="root ::= ("), InputError),
        (lambda: engine.submit("hello", logprobs=21), InputError),
        (lambda: engine.submit("hello", repeat_penalty=0), InputError),
        (lambda: engine.submit("hello", logit_bias={10**9: 1.0}), InputError),
        (lambda: engine.submit([1, 2, 10**9]), InputError),
        (lambda: engine.submit("y" * 4000), DoesNotFitError),
    ):
        with pytest.raises(kind):
            faulty()
    # Nothing is held of what was refused.
    assert engine.drain() == 0


def test_token_ids_are_taken_as_they_are(engine, session):
    ids = session.use("a").prompt_tokens(PROMPTS[1])
    assert engine.submit(ids, "a", max_tokens=7).result().token_ids == session.ask(PROMPTS[1], max_tokens=7).token_ids
    assert engine.detokenize(engine.tokenize("the world and this")) == "the world and this"


def test_a_cancelled_request_ends_and_its_neighbours_do_not_notice(engine, session):
    one, two, three = (engine.submit(prompt, "a", max_tokens=200) for prompt in PROMPTS[:3])
    for _ in one:
        break
    with pytest.raises(EngineError, match="cancelled"):
        one.result()
    for prompt, ticket in zip(PROMPTS[1:3], (two, three), strict=True):
        assert same(ticket.result(), session.ask(prompt, adapter="a", max_tokens=200))
    assert engine.stats().n_cancelled == 1

    async def given_up():
        task = asyncio.create_task(engine.ask(PROMPTS[0], "a", max_tokens=1000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert engine.drain() == 0
    assert engine.stats().n_cancelled == 2


def test_a_name_stands_for_another_file_while_answers_keep_theirs(engine, files, session, tmp_path):
    base, adapters = files
    before = hashlib.sha256(adapters["a"][0].read_bytes()).hexdigest()
    other = tiny_adapter(tmp_path / "other.gguf", base, seed=77)
    after = hashlib.sha256(other.read_bytes()).hexdigest()
    expected = {before: session.ask(PROMPTS[0], adapter="a", max_tokens=100)}
    with Session.of_files(base, {"a": (other, adapters["a"][1])}, threads=1) as replaced:
        expected[after] = replaced.ask(PROMPTS[0], adapter="a", max_tokens=100)
    assert expected[before].token_ids != expected[after].token_ids

    old = [engine.submit(PROMPTS[0], "a", max_tokens=100) for _ in range(5)]
    with pytest.raises(ConflictError):
        engine.load("a", other, card=adapters["a"][1], expect_digest=after)
    assert engine.load("a", other, card=adapters["a"][1], expect_digest=before) == after
    new = [engine.submit(PROMPTS[0], "a", max_tokens=100) for _ in range(5)]
    for digest, tickets in ((before, old), (after, new)):
        for ticket in tickets:
            assert ticket.digest == digest
            assert same(ticket.result(), expected[digest])
            assert ticket.result().adapter == ticket.adapter == "a"
    assert engine.stats().loaded_bytes.keys() == {"a"}
    # The same bytes in another place need not be loaded again.
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(other.read_bytes())
    assert engine.load("a", moved, card=adapters["a"][1], expect_digest=after) == after
    assert [one.path for one in engine._host.session.adapters.values() if one.sha256 == after] == [moved]
    assert len(engine.stats().loaded_bytes) == 1
    engine.unload("a", expect_digest=after)
    assert engine.adapters == ("b",)
    with pytest.raises(InputError, match="no adapter 'a'"):
        engine.submit("hello", "a")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF nothing")
    with pytest.raises(SlmEdgeError):
        engine.load("c", bad)
    assert engine.adapters == ("b",)


def test_a_watchdog_sees_whether_the_engine_works(engine):
    assert engine.silent_s == 0.0
    ticket = engine.submit("the world", "a", max_tokens=1500)
    pieces = ticket.read()
    for _ in range(20):
        next(pieces)
        assert 0.0 <= engine.silent_s < 60
    pieces.close()
    assert engine.drain() == 0
    assert engine.silent_s == 0.0


def test_draining_ends_what_runs_and_takes_no_more(engine, session):
    tickets = [engine.submit(prompt, "a", max_tokens=30) for prompt in PROMPTS]
    ended = threading.Thread(target=engine.drain)
    ended.start()
    ended.join()
    with pytest.raises(BusyError) as busy:
        engine.submit("hello")
    assert busy.value.wait_s is None and busy.value.exit_code == 7
    for prompt, ticket in zip(PROMPTS, tickets, strict=True):
        assert ticket.done and same(ticket.result(), session.ask(prompt, adapter="a", max_tokens=30))


def test_closing_ends_every_wait(files):
    engine = Engine.of_session(lambda: Session.of_files(*files, threads=1), parallel=2)
    tickets = [engine.submit(prompt, "a", max_tokens=1500) for prompt in PROMPTS]
    engine.close()
    for ticket in tickets:
        with pytest.raises(EngineError, match=r"closed|cancelled"):
            ticket.result()
    for call in (lambda: engine.submit("hello"), engine.stats, lambda: engine.tokenize("hello")):
        with pytest.raises(EngineError, match="closed"):
            call()
    engine.close()


def test_when_the_engine_itself_fails_nobody_is_left_waiting(files):
    """As a fault of our own would: the thread ends in the middle of a step."""
    session = None

    def opened():
        nonlocal session
        session = Session.of_files(*files, threads=1)
        make = session.row_maker()

        def rows(*sizes):
            made = make(*sizes)
            step, n_steps = made.step, iter(range(5))

            def failing(*arguments):
                if next(n_steps, None) is None:
                    raise ZeroDivisionError("a fault of ours")
                step(*arguments)

            made.step = failing
            return made

        session.row_maker = lambda: rows
        return session

    with Engine.of_session(opened, parallel=2) as engine:
        tickets = [engine.submit(prompt, "a", max_tokens=100) for prompt in PROMPTS[:5]]
        for ticket in tickets:
            with pytest.raises(EngineError, match="before the answer was whole"):
                ticket.result()
        assert engine.drain() == 0
        with pytest.raises(EngineError, match="closed: a fault of ours"):
            engine.submit("the world")


def test_what_opening_raises_is_told_to_who_opens(tmp_path):
    with pytest.raises(SlmEdgeError):
        Engine.of_session(lambda: Session.of_files(tmp_path / "nothing.gguf", {}))
    with pytest.raises(InputError, match="parallel"):
        Engine.of_session(lambda: Session.of_files(tmp_path / "nothing.gguf", {}), parallel=0)


def test_the_server_on_the_page_works_as_it_stands(tmp_path, monkeypatch):
    fastapi = pytest.importorskip("fastapi.testclient")
    page = (Path(__file__).parents[3] / "docs" / "python-api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    folder = tiny_pack(tmp_path)
    folder.rename(tmp_path / "my-pack")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "python-api.md", "exec"), names)
    with open_session("my-pack", threads=1) as session, fastapi.TestClient(names["app"]) as client:
        expected = session.ask("the world", adapter="math", max_tokens=50)
        asked = {"prompt": "the world", "adapter": "math"}
        assert client.get("/answer", params=asked).json() == {"text": expected.text, "adapter": "math"}
        assert client.get("/stream", params=asked).text == expected.text
        refused = client.get("/answer", params={"prompt": "the world", "adapter": "maths"})
        assert refused.status_code == 400 and "maths" in refused.text


MATH = "A box has 12 eggs. Tom uses 5 of them for a cake. How many eggs are left?"


def test_a_conversation_keeps_the_adapter_that_the_router_chose(tmp_path):
    pack = put_router(task_pack(tmp_path, math=1, code=2).folder, starter_router())
    router = open_router(pack)
    with Engine.open(pack, parallel=2, threads=1) as engine:
        first = engine.submit(MATH, "auto", key="me", max_tokens=12)
        assert first.adapter == first.decision.adapter == "math"
        talk = [{"role": "user", "content": MATH}, {"role": "assistant", "content": first.result().text}]
        for more in ("And if he uses one more?", "Thanks, that is good to know.", "Say it in other words."):
            turn = [*talk, {"role": "user", "content": more}]
            mine, other = (engine.submit(turn, "auto", key=key, max_tokens=1) for key in ("me", "you"))
            assert mine.decision == router.choose(turn, current="math")
            assert other.decision == router.choose(turn, current=None)
        assert mine.adapter == mine.decision.adapter
        with pytest.raises(InputError, match="token ids"):
            engine.submit([1, 2, 3], "auto")


def test_a_program_may_end_without_closing_its_engine(files):
    base, adapters = files
    code = f"""
from slm_edge.edge import Engine
from slm_edge.edge.session.session import Session
files = {{"a": ({str(adapters["a"][0])!r}, None)}}
engine = Engine.of_session(lambda: Session.of_files({str(base)!r}, files, threads=1))
ticket = engine.submit("the world", "a", max_tokens=1800)
print(next(ticket.read()).token_id is not None)
engine.submit("the sea " * 100, "a", max_tokens=1000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
