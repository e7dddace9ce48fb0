"""What the engine's thread does between two units of work: joining, leaving, keeping, laying aside, failing alone."""

from itertools import pairwise

import gguf
import numpy as np
import pytest
from build_core import Direct, error_of
from build_gguf import tiny_adapter, tiny_base, vocabulary
from slm_edge.edge.errors import EngineError
from slm_edge.edge.llama.abort import AbortFlag
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session

SYSTEM = "Answer as the keeper of the light house would, in the words of the sea. " * 2
PROMPTS = [f"the world number {i} " + "and this " * (i * 5 % 17) for i in range(8)]
LONG = "and the other is in the sea, " * 40


@pytest.fixture
def files(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    card = TaskCard(task="a", system=SYSTEM)
    return base, {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=i), card) for i, name in enumerate("ab", 1)}


@pytest.fixture
def opened(files):
    sessions = []

    def start(n_rows, **options):
        sessions.append(Session.of_files(*files, threads=1, n_parallel=n_rows))
        return Direct(sessions[-1], n_rows, **options)

    yield start
    for session in sessions:
        session.close()


@pytest.fixture
def alone(files):
    with Session.of_files(*files, threads=1) as session:
        yield lambda prompt, name, **settings: session.ask(prompt, adapter=name, **settings).token_ids


def test_requests_join_and_leave_a_running_batch_at_any_step(opened, alone):
    direct = opened(3)
    jobs = []
    for i, prompt in enumerate(PROMPTS):
        jobs.append(direct.submit(prompt, "a", max_tokens=5 + 7 * (i % 3)))
        for _ in range(i % 4):
            direct.core.work()
    n_side_by_side = max(len(direct.core._places.jobs), 2)
    direct.run()
    assert n_side_by_side > 1
    for i, job in enumerate(jobs):
        assert job.ticket.result().token_ids == alone(PROMPTS[i], "a", max_tokens=5 + 7 * (i % 3))
    assert direct.core._turns.awake == []
    assert direct.core._places.jobs == []


def test_a_long_prompt_is_computed_between_the_steps_of_others(opened, alone):
    direct = opened(2)
    one = direct.submit(PROMPTS[0], "a", max_tokens=200)
    for _ in range(5):
        direct.core.work()
    two = direct.submit(LONG, "a", max_tokens=5)
    steps_between = []
    while not two.ticket.pieces:
        before = len(one.ticket.pieces), two.n_filled
        direct.core.work()
        steps_between.append((len(one.ticket.pieces) - before[0], two.n_filled - before[1]))
    chunks = [n for _, n in steps_between if n]
    # The grid of bit-exact prefixes, and steps of the other answer between the chunks.
    assert chunks[1:3] == [128, 256] and len(chunks) > 3
    at = [i for i, (_, n) in enumerate(steps_between) if n]
    assert all(later - earlier > 1 for earlier, later in pairwise(at[1:]))
    direct.run()
    assert one.ticket.result().token_ids == alone(PROMPTS[0], "a", max_tokens=200)
    assert two.ticket.result().token_ids == alone(LONG, "a", max_tokens=5)


def test_the_newest_answer_of_who_has_most_rows_is_laid_aside_for_who_has_none(opened, alone):
    direct = opened(2)
    first = [direct.submit(prompt, "a", max_tokens=60) for prompt in PROMPTS[:2]]
    for _ in range(12):
        direct.core.work()
    late = direct.submit(PROMPTS[2], "b", max_tokens=10)
    direct.core.work()
    while not late.ticket.done:
        direct.core.work()
    assert not any(job.ticket.done for job in first)
    direct.run()
    stats = direct.core.stats(str)
    assert stats.n_parked >= 1 and stats.parked_bytes == 0
    for job, prompt in zip(first, PROMPTS[:2], strict=True):
        assert job.ticket.result().token_ids == alone(prompt, "a", max_tokens=60)
    assert late.ticket.result().token_ids == alone(PROMPTS[2], "b", max_tokens=10)


def test_an_answer_is_laid_aside_in_the_middle_of_its_prompt_too(opened, alone):
    direct = opened(1)
    one = direct.submit(LONG, "a", max_tokens=6)
    direct.core.work()
    direct.core.work()
    assert 0 < one.n_filled < len(one.request.prompt)
    two = direct.submit(PROMPTS[0], "b", max_tokens=6)
    direct.run()
    assert direct.core.stats(str).n_parked >= 1
    assert one.ticket.result().token_ids == alone(LONG, "a", max_tokens=6)
    assert two.ticket.result().token_ids == alone(PROMPTS[0], "b", max_tokens=6)


def talk(prompt, answer, more):
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": more},
    ]


def test_what_a_row_holds_serves_the_next_turn_and_the_same_prompt(opened, alone):
    fast, exact = opened(2), opened(2, fast=False)
    for direct in (fast, exact):
        answers = [direct.answer(LONG, "a", max_tokens=20), direct.answer(LONG, "a", max_tokens=20)]
        turn = talk(LONG, answers[0].text, "and then?")
        answers.append(direct.answer(turn, "a", max_tokens=20))
        n = answers[0].n_prompt_tokens
        if direct is fast:
            assert [one.n_kept_tokens for one in answers[:2]] == [0, n - 1]
            # The answer too, unless its text is read as other tokens than were written.
            assert answers[2].n_kept_tokens >= n - 1
        else:
            shared = direct.session.rendered("x", None, direct.session.choice_of("a"))[1]
            grid = [shared + 128, *range(shared + 256, n, 256)]
            assert [one.n_kept_tokens for one in answers] == [0, grid[-1], grid[-1]]
        # Another adapter has no use for it.
        assert direct.answer(LONG, "b", max_tokens=3).n_kept_tokens == 0
        assert answers[0].token_ids == answers[1].token_ids == alone(LONG, "a", max_tokens=20)
        assert answers[2].token_ids == alone(turn, "a", max_tokens=20)


def test_the_keys_and_values_of_one_key_serve_no_other(opened, alone):
    direct = opened(3)
    shared = direct.session.rendered("x", None, direct.session.choice_of("a"))[1]
    mine, again, other = (direct.answer(PROMPTS[7], "a", key=key, max_tokens=8) for key in ("me", "me", "you"))
    n = mine.n_prompt_tokens
    # The task card's own system message is no secret; what a user wrote is, a system message of theirs as well.
    assert [mine.n_kept_tokens, again.n_kept_tokens, other.n_kept_tokens] == [0, n - 1, shared]
    told = {"system": "This is only mine: " + LONG[:200], "max_tokens": 3}
    kept = [direct.answer("hello", "a", key=key, **told).n_kept_tokens for key in ("me", "you", "me")]
    assert kept[0] == kept[1] == 0 < kept[2]
    assert mine.token_ids == other.token_ids == alone(PROMPTS[7], "a", max_tokens=8)


def test_a_prompt_is_stopped_in_the_middle_and_nobody_else_notices(opened, alone):
    direct = opened(2)
    neighbour = direct.submit(PROMPTS[0], "a", max_tokens=50)
    for _ in range(4):
        direct.core.work()
    job = direct.submit(LONG, "a", max_tokens=5)
    while not 0 < job.n_filled < len(job.request.prompt):
        direct.core.work()
    # As from another thread while the next chunk is being computed: llama.cpp itself ends it.
    job.ticket.cancel()
    before = job.n_filled
    while not job.ticket.done:
        direct.core.work()
    assert job.n_filled == before
    assert "cancelled" in error_of(job).message
    kept = direct.answer(LONG, "a", max_tokens=5)
    assert kept.n_kept_tokens == before
    assert kept.token_ids == alone(LONG, "a", max_tokens=5)
    direct.run()
    assert neighbour.ticket.result().token_ids == alone(PROMPTS[0], "a", max_tokens=50)
    stats = direct.core.stats(str)
    assert (stats.n_cancelled, stats.n_failed, stats.n_answered) == (1, 0, 2)


def test_who_fails_fails_alone(tmp_path):
    """A token whose row is no number: whoever's prompt holds it fails, in a batch with others that do not notice."""
    base = tiny_base(tmp_path / "base.gguf", tied=False)
    reader = gguf.GGUFReader(base, "r+")
    (table,) = (tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    table.data[vocabulary()[0].index("Z")] = np.nan
    del reader, table
    with Session.of_files(base, {}, threads=1, n_parallel=3) as session:
        expected = session.ask(PROMPTS[0], max_tokens=30).token_ids
        direct = Direct(session, 3)
        good = [direct.submit(PROMPTS[0], max_tokens=30) for _ in range(2)]
        for _ in range(6):
            direct.core.work()
        bad = direct.submit("Z", max_tokens=30)
        direct.run()
        assert "not a number" in error_of(bad).message
        assert [job.ticket.result().token_ids for job in good] == [expected, expected]
        # Its row is as good as new.
        assert [direct.answer(PROMPTS[0], max_tokens=30).token_ids for _ in range(3)] == [expected] * 3


def test_an_adapter_in_use_is_never_evicted_and_who_needs_another_waits(files, alone):
    size_bytes = files[1]["a"][0].stat().st_size
    with Session.of_files(*files, threads=1, n_parallel=2, adapter_budget_bytes=size_bytes * 3 // 2) as session:
        direct = Direct(session, 2)
        one = direct.submit(PROMPTS[0], "a", max_tokens=40)
        for _ in range(3):
            direct.core.work()
        two = direct.submit(PROMPTS[1], "b", max_tokens=10)
        while not one.ticket.done:
            direct.core.work()
            assert set(session.loaded_adapters) == {"a"}
        direct.run()
        assert set(session.loaded_adapters) == {"b"}
        assert one.ticket.result().token_ids == alone(PROMPTS[0], "a", max_tokens=40)
        assert two.ticket.result().token_ids == alone(PROMPTS[1], "b", max_tokens=10)


def test_a_base_with_windows_keeps_whole_sequences_and_answers_alike(tmp_path):
    """What such a memory holds cannot be cut: a row serves who goes on from all of it, and nobody else."""
    base = tiny_base(tmp_path / "base.gguf", architecture="gemma3", n_ctx_train_tokens=4096)
    files = {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=i), None) for i, name in enumerate("ab", 1)}
    text = LONG * 2
    with (
        Session.of_files(base, files, threads=1, n_rows=2) as session,
        Session.of_files(base, files, threads=1) as other,
    ):
        direct = Direct(session, 2)
        answer = direct.answer(text, "a", max_tokens=40)
        again, turn = direct.answer(text, "a", max_tokens=40), talk(text, answer.text, "and then?")
        next_turn = direct.answer(turn, "a", max_tokens=40)
        names = "aabba"
        jobs = []
        for i, name in enumerate(names):
            jobs.append(direct.submit(text + str(i), name, max_tokens=30))
            for _ in range(9 * (i == 1)):
                direct.core.work()
        direct.core.cancel(jobs[4].ticket)
        direct.run()
        assert direct.core.stats(str).n_parked > 0
        expected = [other.ask(prompt, adapter="a", max_tokens=40).token_ids for prompt in (text, text, turn)]
        assert [one.token_ids for one in (answer, again, next_turn)] == expected
        for i, job in enumerate(jobs):
            if not error_of(job):
                assert (
                    job.ticket.result().token_ids == other.ask(text + str(i), adapter=names[i], max_tokens=30).token_ids
                )
        assert error_of(jobs[4])


def test_a_flag_ends_a_step_and_leaves_what_was_there(opened, alone):
    """The only answer of a step is broken off in the middle of it; in a step of two nobody is."""
    direct = opened(2)
    right = alone(LONG, "a", max_tokens=12)
    one = direct.submit(LONG, "a", max_tokens=12)
    while len(one.ticket.pieces) < 6:
        direct.core.work()
    place = len(direct.rows._records[one.row].tokens)
    flag = AbortFlag()
    flag.set()
    with pytest.raises(EngineError, match="code 2"):
        direct.rows.step([right[5]], [one.row], flag)
    assert len(direct.rows._records[one.row].tokens) == direct.rows._context.length(one.row) == place
    two = direct.submit(PROMPTS[1], "a", max_tokens=12)
    while not two.ticket.pieces:
        direct.core.work()
    one.flag.set()
    direct.core.work()
    assert not one.ticket.done
    direct.core.cancel(one.ticket)
    direct.run()
    assert two.ticket.result().token_ids == alone(PROMPTS[1], "a", max_tokens=12)
    assert tuple(piece.token_id for piece in one.ticket.pieces) == right[: len(one.ticket.pieces)]
    # Its row serves whoever begins alike.
    again = direct.submit(LONG, "a", max_tokens=12)
    direct.run()
    assert again.ticket.result().token_ids == right and again.ticket.result().n_kept_tokens > 0


def test_who_was_cancelled_is_told_so_where_a_step_of_several_failed(opened, alone):
    direct = opened(2)
    one, two = (direct.submit(PROMPTS[i], "a", max_tokens=12) for i in (0, 1))
    while not (one.ticket.pieces and two.ticket.pieces):
        direct.core.work()
    one.flag.set()
    direct.core._one_by_one([one, two], EngineError("the step failed"))
    assert "cancelled" in str(error_of(one)) and direct.core.stats(str).n_cancelled == 1
    direct.run()
    assert two.ticket.result().token_ids == alone(PROMPTS[1], "a", max_tokens=12)


def test_a_flag_ends_an_answer_within_its_step(opened):
    direct = opened(1)
    one = direct.submit(PROMPTS[0], "a", max_tokens=50)
    while len(one.ticket.pieces) < 3:
        direct.core.work()
    one.flag.set()
    direct.core.work()
    assert len(one.ticket.pieces) == 3 and one.ticket.done and "cancelled" in str(error_of(one))
    assert direct.core.stats(str).n_cancelled == 1
