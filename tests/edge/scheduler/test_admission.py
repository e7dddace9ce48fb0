"""The waiting time that is told beforehand is the one that comes, counted in work; too long a one is refused."""

import contextlib
import random
import time

import pytest
from build_core import ROW, STEP, Direct
from build_gguf import task_pack, tiny_adapter, tiny_base
from slm_edge.edge import BusyError, DoesNotFitError, Engine, EngineError
from slm_edge.edge.scheduler.admission import Expected
from slm_edge.edge.scheduler.flows import SLICE_STEPS
from slm_edge.edge.session.session import Session

N_ROWS = 4
SLICE = SLICE_STEPS * (STEP + N_ROWS * ROW) * 2


@pytest.fixture
def files(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    return base, {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=ord(name)), None) for name in "abc"}


@pytest.mark.parametrize("names", ["a", "aab", "abc"])
def test_what_is_told_comes_true(files, names):
    rng = random.Random(3)
    with Session.of_files(*files, threads=1, n_parallel=N_ROWS) as session:
        direct = Direct(session, N_ROWS)
        expected = Expected(direct.core.pace, N_ROWS)
        jobs, told = [], []
        n_ended = 0
        while len(told) < 70:
            if len(direct.core._jobs) < 24:
                words = "and the sea " * rng.randint(1, 20)
                job = direct.submit(f"{rng.random()} {words}", rng.choice(names), max_tokens=rng.choice([10, 40]))
                open_jobs = [other for other in direct.core._jobs.values() if other is not job]
                if n_ended > 30:
                    told.append((job, expected.wait_s(job, open_jobs), direct.rows.work))
                jobs.append(job)
            direct.core.work()
            while n_ended < len(direct.ended):
                expected.learn(direct.ended[n_ended])
                n_ended += 1
            for job, _, at in told:
                if job.growing is not None and not hasattr(job, "begun_at"):
                    job.begun_at = direct.rows.work - at
        while any(not hasattr(job, "begun_at") for job, _, _ in told):
            direct.core.work()
            for job, _, at in told:
                if job.growing is not None and not hasattr(job, "begun_at"):
                    job.begun_at = direct.rows.work - at
        pairs = [(wait, job.begun_at) for job, wait, _ in told]
        # Within twice the time, and the slices of the other adapters, of which nobody knows where they stand.
        slack = (len(set(names)) - 1) * SLICE
        right = [(came - slack) / 2 <= wait <= 2 * came + slack for wait, came in pairs]
        assert sum(right) >= 0.95 * len(pairs), pairs


def test_an_answer_whose_length_was_asked_for_is_counted_so(files):
    with Session.of_files(*files, threads=1) as session:
        direct = Direct(session, 1)
        expected = Expected(direct.core.pace, 1)
        plain, least, whole = (
            direct.submit("x", "a", max_tokens=800, **how) for how in ({}, {"min_tokens": 300}, {"ignore_eos": True})
        )
        while plain.growing is None or not plain.growing.ids:
            direct.core.work()
        direct.core.work()
        step_s = direct.core.pace.step_s(1)
        few, some, all_of_it = (expected.work_s(job, 1) / step_s for job in (plain, least, whole))
        assert step_s and few < 110 < 300 < some < 310 < 800 < all_of_it < 810
        # It ends when it must, which says nothing of others.
        while whole not in direct.ended:
            direct.core.work()
        before = expected.work_s(plain, 1)
        expected.learn(whole)
        assert expected.work_s(plain, 1) == before


def test_more_than_can_be_done_in_time_is_refused_with_the_time(files):
    with Engine.of_session(lambda: Session.of_files(*files, threads=1), parallel=1) as engine:
        start_s = time.perf_counter()
        engine.submit("the sea", "a", max_tokens=500).result()
        # As much as three such answers, on whatever machine.
        most_s = engine._host._max_wait_s = 3 * (time.perf_counter() - start_s)
        tickets = []
        with pytest.raises(BusyError) as busy:
            for _ in range(2000):
                tickets.append(engine.submit("the sea", "a", max_tokens=500))
        assert busy.value.wait_s > most_s
        assert f"{busy.value.wait_s:.0f} s" in busy.value.message
        assert 1 < len(tickets) < 2000
        # Another adapter's turn comes soon all the same.
        assert engine.submit("the sea", "b", max_tokens=3).result().n_tokens <= 3
        assert not tickets[-1].done
        for ticket in tickets:
            ticket.cancel()
        for ticket in tickets:
            with contextlib.suppress(EngineError):
                ticket.result()
        assert engine.submit("the sea", "a", max_tokens=3).result().n_tokens <= 3
        assert engine.drain() == 0


def test_all_rows_are_in_the_memory_plan_before_anything_starts(files, tmp_path):
    pack = task_pack(tmp_path, a=1)
    with Engine.open(pack, parallel=1, threads=1, n_ctx_tokens=512) as engine:
        one = engine.stats().plan
    with Engine.open(pack, parallel=3, threads=1, n_ctx_tokens=512) as engine:
        plan = engine.stats().plan
        assert (plan.kv_bytes, plan.parallel_bytes) == (3 * one.kv_bytes, 0)
        context = engine._host.session.context
        assert context.n_ctx_tokens == 3 * 512 and context.n_ctx_seq_tokens == 512
        # The session has no other context.
        assert len(context._model.contexts) == 1
        tickets = [engine.submit("the sea " * 20, "a", max_tokens=400) for _ in range(4)]
        assert {ticket.result().token_ids for ticket in tickets} == {tickets[0].result().token_ids}
    room_bytes = plan.total_bytes - one.kv_bytes
    with pytest.raises(DoesNotFitError, match="3 answers side by side"):
        Engine.open(
            pack,
            parallel=3,
            threads=1,
            n_ctx_tokens=512,
            kv_type="f16",
            n_batch_tokens=256,
            repack=False,
            mmap=True,
            prefix_budget_bytes=0,
            ram_bytes=room_bytes - (64 << 20),
        )
