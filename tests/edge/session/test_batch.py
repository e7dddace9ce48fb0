"""Answers made together are the answers made one at a time."""

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import DoesNotFitError, InputError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.batch import generate_batch
from slm_edge.edge.session.session import Session

PROMPTS = [f"the world number {i} " + "and this " * (i * 7 % 30) for i in range(23)]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    base = tiny_base(folder / "base.gguf")
    files = {name: tiny_adapter(folder / f"{name}.gguf", base, seed=seed) for seed, name in enumerate("ab", 1)}
    cards = {"a": None, "b": TaskCard(task="b", system="Be brief.", max_tokens=7, stop=("a",))}
    with Session.of_files(base, {name: (file, cards[name]) for name, file in files.items()}, threads=1) as session:
        yield session


@pytest.mark.parametrize("n_parallel", [1, 3, 8, 64])
@pytest.mark.parametrize("adapter", ["a", None])
def test_equal_to_one_at_a_time(session, adapter, n_parallel):
    together = generate_batch(session, PROMPTS, adapter=adapter, max_tokens=15, n_parallel=n_parallel)
    session.use(adapter)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        alone = session.ask(prompt, max_tokens=15)
        assert (answer.token_ids, answer.text, answer.stop_reason) == (alone.token_ids, alone.text, alone.stop_reason)
        assert (answer.n_prompt_tokens, answer.adapter) == (alone.n_prompt_tokens, adapter)


def test_card_and_stops_apply_and_the_session_stays_as_it_was(session):
    session.use("a")
    before = session.ask(PROMPTS[0], max_tokens=5)
    together = generate_batch(session, PROMPTS[:6], adapter="b", n_parallel=4)
    assert session.adapter == "a"
    assert session.ask(PROMPTS[0], max_tokens=5).token_ids == before.token_ids
    session.use("b")
    assert [(a.text, a.stop_reason) for a in together] == [
        (a.text, a.stop_reason) for a in map(session.ask, PROMPTS[:6])
    ]
    assert all(answer.n_tokens <= 7 and "a" not in answer.text for answer in together)


def test_every_answer_is_told_once_when_it_is_done(session):
    told = {}
    answers = generate_batch(
        session, PROMPTS, adapter="a", max_tokens=9, n_parallel=5, on_done=lambda i, answer: told.update({i: answer})
    )
    assert [told[i] for i in range(len(PROMPTS))] == answers


def test_seeds_are_per_prompt(session):
    how = {"adapter": "a", "max_tokens": 8, "temperature": 1.5, "seed": 40}
    first, second = (generate_batch(session, PROMPTS[:5], n_parallel=3, **how) for _ in range(2))
    assert [answer.text for answer in first] == [answer.text for answer in second]
    assert [answer.seed for answer in first] == [40, 41, 42, 43, 44]


def test_limits(session):
    assert generate_batch(session, [], adapter="a") == []
    with pytest.raises(InputError):
        generate_batch(session, ["x"], adapter="a", n_parallel=0)
    with pytest.raises(InputError, match="no adapter"):
        generate_batch(session, ["x"], adapter="c")
    with pytest.raises(DoesNotFitError, match="prompt 1: the prompt has"):
        generate_batch(session, ["x", "y" * 3000], adapter="a")
    full = generate_batch(session, ["y" * 2000], adapter="a", max_tokens=100)[0]
    assert full.stop_reason in ("context", "end")
