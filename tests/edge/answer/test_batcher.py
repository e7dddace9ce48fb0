"""Requests that are answered together: right tokens, fair turns, failures that stay with whom they belong to."""

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import DoesNotFitError, EngineError, InputError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session

SYSTEM = "Answer as the keeper of the light house would, in the words of the sea. " * 2
PROMPTS = [f"the world number {i} " + "and this " * (i * 5 % 17) for i in range(8)]


@pytest.fixture
def session(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    card = TaskCard(task="a", system=SYSTEM)
    files = {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=i), card) for i, name in enumerate("ab", 1)}
    with Session.of_files(base, files, threads=1, n_parallel=3) as session:
        yield session


def alone(session, name, prompt, **settings):
    return session.use(name).ask(prompt, **settings)


def test_tokens_are_those_of_one_at_a_time_over_several_adapters(session):
    choices = {name: session.choice_of(name) for name in ("a", "b", None)}
    names = ["a", "b", "a", None, "b", "a", "a", None]
    texts = {i: [] for i in range(len(names))}
    waiting = [
        session.submit(prompt, adapter=choices[name], max_tokens=9 + i, on_text=texts[i].append)
        for i, (name, prompt) in enumerate(zip(names, PROMPTS, strict=True))
    ]
    assert not any(pending.done for pending in waiting)
    for i, (name, prompt, pending) in enumerate(zip(names, PROMPTS, waiting, strict=True)):
        answer, expected = pending.result(), alone(session, name, prompt, max_tokens=9 + i)
        assert (answer.token_ids, answer.text, answer.stop_reason) == (
            expected.token_ids,
            expected.text,
            expected.stop_reason,
        )
        assert answer.adapter == name
        assert "".join(texts[i]) == answer.text


def test_a_shared_system_prefix_is_computed_once(session):
    session.use("a")
    kept = [pending.result().n_kept_tokens for pending in [session.submit(p, max_tokens=3) for p in PROMPTS[:4]]]
    shared = session.rendered("x", None, session.choice)[1]
    assert kept == [0, shared, shared, shared]


def test_what_was_computed_for_one_answer_serves_several_at_once_and_the_other_way_round(session):
    for name in ("a", "b"):
        session.use(name).ask(PROMPTS[0], max_tokens=3)
    shared = session.use("a").rendered("x", None, session.choice)[1]
    waiting = [session.submit(prompt, max_tokens=3) for prompt in PROMPTS[:2]]
    assert [pending.result().n_kept_tokens for pending in waiting] == [shared, shared]
    assert session.submit(PROMPTS[2], adapter=session.choice_of("b"), max_tokens=3).result().n_kept_tokens == 0
    assert session.use("a").ask(PROMPTS[1], max_tokens=3).n_kept_tokens == shared


def test_the_oldest_request_decides_and_nobody_starves(session):
    a, b = session.choice_of("a"), session.choice_of("b")
    done = []
    first = [session.submit(p, adapter=a, max_tokens=4) for p in PROMPTS[:4]]
    other = session.submit(PROMPTS[4], adapter=b, max_tokens=4)
    batcher = session._batcher
    while batcher.advance():
        if other.done and "b" not in done:
            done.append("b")
        if not other.done and len(first) < 40:
            # They keep coming for a, but b was there before them.
            first.append(session.submit(PROMPTS[5], adapter=a, max_tokens=4))
    assert other.done
    before_b = 4
    assert len(first) > before_b
    assert all(pending.result().n_tokens for pending in first)


def test_late_requests_join_the_batch_while_nobody_else_waits(session):
    session.use("a")
    one = session.submit(PROMPTS[0], max_tokens=30)
    two = session.submit(PROMPTS[1], max_tokens=30)
    session._batcher.advance()
    late = session.submit(PROMPTS[2], max_tokens=2)
    two.cancel()
    late.result()
    assert not one.done
    assert one.result().token_ids == alone(session, "a", PROMPTS[0], max_tokens=30).token_ids
    with pytest.raises(EngineError, match="given up"):
        two.result()


def test_faults_are_told_at_once_or_stay_with_their_request(session, tmp_path):
    with pytest.raises(InputError):
        session.submit(" ")
    with pytest.raises(DoesNotFitError):
        session.submit("y" * 4000)
    session.use("b")
    pending = session.submit(PROMPTS[0], max_tokens=3)
    good = session.submit(PROMPTS[1], adapter=session.choice_of("a"), max_tokens=3)
    session._shelf._loaded.pop("b").adapter.close()
    session.adapters["b"].path.write_bytes(b"gone")
    with pytest.raises(Exception, match=r"changed since|GGUF|bytes"):
        pending.result()
    assert good.result().n_tokens == 3


def test_closing_the_session_ends_what_waits(session):
    pending = session.submit(PROMPTS[0], max_tokens=3)
    begun = session.submit(PROMPTS[1], max_tokens=30)
    session._batcher.advance()
    stream = session.stream(PROMPTS[2], max_tokens=30)
    next(stream)
    session.close()
    for one in (pending, begun):
        with pytest.raises(EngineError, match="given up"):
            one.result()
    with pytest.raises(EngineError, match="closed"):
        list(stream)


def test_a_limit_of_memory_lets_fewer_be_answered_at_once_or_refuses(tmp_path):
    base = tiny_base(tmp_path / "base.gguf", n_embd=128, n_kv_heads=4)
    files = {"a": (tiny_adapter(tmp_path / "a.gguf", base), TaskCard(task="a", system=SYSTEM))}
    with Session.of_files(base, files, threads=1, prefix_budget_bytes=0) as session:
        expected = [alone(session, "a", prompt, max_tokens=5).token_ids for prompt in PROMPTS]
        planned_bytes = session.plan.total_bytes
    # Each answer of 2,048 tokens holds 2 MiB of keys and values.
    with Session.of_files(base, files, threads=1, ram_bytes=planned_bytes + (7 << 20)) as session:
        assert session.n_ctx_tokens == 2048
        assert session.plan.snapshots_bytes == 7 << 20
        session.use("a")
        batcher = session.new_batcher(8)
        for prompt in PROMPTS:
            batcher.submit(session.request(prompt, session.choice, None, {"max_tokens": 2000}), session.choice)
        batcher.advance()
        assert batcher._size == (2, 2048)
        assert session.prefixes.store.budget_bytes < 2 << 20
        batcher.close()
        assert [
            pending.result().token_ids for pending in [session.submit(prompt, max_tokens=5) for prompt in PROMPTS]
        ] == expected
    with Session.of_files(base, files, threads=1, ram_bytes=planned_bytes + (2 << 20)) as session:
        pending = session.use("a").submit("hello", max_tokens=2000)
        with pytest.raises(DoesNotFitError, match="1 answers of 2048 tokens at once need"):
            pending.result()
        assert session.submit("hello", max_tokens=5).result().n_tokens == 5
