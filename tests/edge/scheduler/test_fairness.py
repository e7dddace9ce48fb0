"""Fair shares of the engine's work between adapters and keys, counted in work and not by a clock."""

import pytest
from build_core import ROW, STEP, SWAP, TOKEN, Direct
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.scheduler.flows import SLICE_STEPS, SLICE_SWAPS
from slm_edge.edge.session.session import Session

N_ROWS = 4
# The longest that a slice may be: so many steps of all rows, or so many changes of adapters (a row is laid aside for
# nothing here), or one chunk.
SLICE = max(SLICE_STEPS * (STEP + N_ROWS * ROW), SLICE_SWAPS * SWAP)
CHUNK = 256 * TOKEN


@pytest.fixture
def direct(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    names = "abcd"
    files = {
        name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=i), TaskCard(task=name))
        for i, name in enumerate(names, 1)
    }
    with Session.of_files(base, files, threads=1, n_parallel=N_ROWS) as session:
        yield Direct(session, N_ROWS)


class Client:
    """Someone who asks again as soon as there is an answer."""

    def __init__(self, direct, adapter, key="", *, prompt="the world", max_tokens):
        self.direct = direct
        self.request = {"adapter": adapter, "key": key, "max_tokens": max_tokens}
        self.prompt = prompt
        self.job = None
        self.n_asked = 0
        self.asked_at = 0.0
        # Work from asking until its prompt is begun, and until its first token
        self.begun_after, self.first_after = [], []

    def look(self):
        work = self.direct.rows.work
        if self.job is None or self.job.ticket.done:
            self.n_asked += 1
            self.job = self.direct.submit(f"{self.prompt} {self.n_asked}", **self.request)
            self.asked_at, self.seen = work, set()
        if self.job.n_filled and "begun" not in self.seen:
            self.seen.add("begun")
            self.begun_after.append(work - self.asked_at)
        if self.job.ticket.pieces and "first" not in self.seen:
            self.seen.add("first")
            self.first_after.append(work - self.asked_at)


def run(direct, clients, work):
    """Lets them ask until so much work was done; the work spent on each adapter, and the share of changes."""
    while direct.rows.work < work:
        for client in clients:
            client.look()
        direct.core.work()
    stats = direct.core.stats(str)
    spent = {flow.group[0][0] if flow.group else "base": 0.0 for flow in direct.core._turns._flows.values()}
    for (_, name), amount in stats.work_s.items():
        spent[name] += amount
    return spent, stats.n_swaps * SWAP / direct.rows.work


def jain(shares):
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def test_a_busy_adapter_and_a_modest_one_share_the_work(direct):
    many = [Client(direct, "a", max_tokens=256) for _ in range(4)]
    one = Client(direct, "b", max_tokens=16)
    run(direct, many, 500)
    spent, swapping = run(direct, [*many, one], 12_000)
    start = 500
    assert jain([spent["a"] - start, spent["b"]]) >= 0.95
    assert swapping <= 0.06
    own_prompt = TOKEN * one.job.ticket.n_prompt_tokens
    assert len(one.begun_after) > 20
    # k = 2 adapters are at work; what a unit takes is told when it is done.
    assert max(one.begun_after) <= SLICE + own_prompt + SWAP
    assert max(one.first_after) <= 2 * SLICE + own_prompt + SWAP


def test_who_asks_again_at_once_loses_nothing_by_the_moment_between(direct):
    """Requests that take a little more than a slice: the rest of one is owed to the next."""
    many = [Client(direct, "a", max_tokens=256) for _ in range(4)]
    one = Client(direct, "b", max_tokens=11)
    spent, _ = run(direct, [*many, one], 6_000)
    assert SLICE < spent["b"] / (one.n_asked - 1) < 1.5 * SLICE
    assert jain([spent["a"], spent["b"]]) >= 0.999


def test_with_four_adapters_everyone_begins_in_time(direct):
    clients = [Client(direct, name, max_tokens=100) for name in "abc"] + [Client(direct, "d", max_tokens=8)]
    spent, _ = run(direct, clients, 10_000)
    late = clients[-1]
    assert jain([spent[name] for name in "abcd"]) >= 0.95
    assert len(late.begun_after) > 10
    assert max(late.begun_after) <= 3 * SLICE + TOKEN * late.job.ticket.n_prompt_tokens + 4 * SWAP


def test_long_prompts_take_no_more_than_a_chunk_at_a_time(direct):
    many = [Client(direct, "a", prompt="and the other is in the sea, " * 60, max_tokens=1) for _ in range(3)]
    one = Client(direct, "b", max_tokens=16)
    spent, _ = run(direct, [*many, one], 20_000)
    assert jain([spent["a"], spent["b"]]) >= 0.95
    assert max(one.begun_after) <= max(SLICE, CHUNK) + TOKEN * one.job.ticket.n_prompt_tokens + 2 * SWAP


def test_keys_share_one_adapter_and_one_with_many_requests_gains_nothing(direct):
    greedy = [Client(direct, "a", "greedy", max_tokens=60) for _ in range(12)]
    modest = [Client(direct, "a", key, max_tokens=60) for key in ("one", "two")]
    run(direct, [*greedy, *modest], 8_000)
    answered = {key: sum(job.ticket.key == key for job in direct.ended) for key in ("greedy", "one", "two")}
    # Four rows: two of the greedy one's twelve requests at most, as each of the others has one alone.
    assert answered["greedy"] <= 2.5 * answered["one"]
    assert abs(answered["one"] - answered["two"]) <= 2


def test_more_adapters_than_rows_take_turns_in_them(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    files = {name: (tiny_adapter(tmp_path / f"{name}.gguf", base, seed=ord(name)), None) for name in "abcde"}
    with Session.of_files(base, files, threads=1, n_parallel=2) as session:
        direct = Direct(session, 2)
        spent, _ = run(direct, [Client(direct, name, max_tokens=80) for name in "abcde"], 10_000)
        assert jain(list(spent.values())) >= 0.95
        assert direct.core.stats(str).n_parked > 10
