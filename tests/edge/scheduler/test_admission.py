"""The waiting time that is told beforehand is the one that comes, counted in work; too long a one is refused."""

import random

import pytest
from build_core import ROW, STEP, Direct
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge import BusyError, Engine
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


def test_more_than_can_be_done_in_time_is_refused_with_the_time(files):
    with Engine.of_session(lambda: Session.of_files(*files, threads=1), parallel=1, max_wait_s=0.5) as engine:
        engine.submit("the sea", "a", max_tokens=500).result()
        tickets = []
        with pytest.raises(BusyError) as busy:
            for _ in range(2000):
                tickets.append(engine.submit("the sea", "a", max_tokens=500))
        assert busy.value.wait_s > 0.5
        assert f"{busy.value.wait_s:.0f} s" in busy.value.message
        # Another adapter's turn comes soon all the same.
        other = engine.submit("the sea", "b", max_tokens=3)
        assert other.result().n_tokens <= 3
        assert not tickets[-1].done
        for ticket in tickets:
            ticket.cancel()
        assert engine.submit("the sea", "a", max_tokens=3).result().n_tokens <= 3
        assert engine.drain() == 0
