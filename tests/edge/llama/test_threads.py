"""Numbers of threads: they fall beside real processes that compute, and change no bits that must not change."""

import multiprocessing
import time

import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.edge.errors import InputError
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.edge.session.session import Session
from slm_edge.edge.session.speculation import SPLIT_TOKENS
from slm_edge.edge.system.load import Room
from slm_edge.edge.system.machine import default_threads, usable_cpus

IDS = [7 + i * 31 % 200 for i in range(600)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("threads") / "base.gguf", n_embd=256, n_heads=8, n_kv_heads=4)


@pytest.fixture(scope="module")
def model(base):
    with Model.load(base) as model:
        yield model


def bits(model, threads, pieces, *, one_by_one=0, threads_batch=None):
    """The KV cache and the last logits after a prompt in `pieces` and so many tokens after it, as bytes."""
    at = 0
    with Context(model, n_ctx_tokens=768, n_batch_tokens=256, threads=threads, threads_batch=threads_batch) as context:
        for size in pieces:
            context.decode(IDS[at : at + size], at, steady=True)
            at += size
        for _ in range(one_by_one):
            context.decode_one(IDS[at], at)
            at += 1
        return context.read_sequence(0).tobytes(), context.logits_view().tobytes()


def test_prompts_and_short_answers_have_the_same_bits_on_any_number_of_threads(model):
    for pieces, one_by_one in (([128, 256, 37], 0), ([100], SPLIT_TOKENS - 100), ([128, 256, 1], 0)):
        found = [bits(model, threads, pieces, one_by_one=one_by_one) for threads in (1, 2, 3)]
        if pieces[-1] == 1:
            # Why a prompt's last single token is computed on one thread where their number is free
            assert found[0] != found[1]
            assert bits(model, None, pieces) == found[0]
        else:
            assert found[0] == found[1] == found[2] == bits(model, None, pieces, one_by_one=one_by_one)


def test_numbers_that_are_given_stay(model):
    with Context(model, n_ctx_tokens=256, threads=3) as context:
        assert (context.threads, context.threads_batch, context.pace.adapts) == (3, 3, False)
        assert context.pace.now == 3
    with Context(model, n_ctx_tokens=256, threads_batch=2) as context:
        assert context.threads_batch == 2
        assert context.pace.adapts == (max(context.threads, 2) > 1)
        context.decode(IDS[:20], 0)
        assert context.pace.many_now == 2
    for number in (0, 513):
        with pytest.raises(InputError, match=f"{number} threads"):
            Context(model, n_ctx_tokens=256, threads=number)


def spin(end_s):
    while time.monotonic() < end_s:
        pass


@pytest.mark.skipif(usable_cpus() < 2 or default_threads() < 2, reason="one thread cannot become fewer")
def test_beside_busy_processes_fewer_threads_give_the_same_tokens(base, tmp_path, monkeypatch):
    files = {"math": (tiny_adapter(tmp_path / "math.gguf", base), None)}
    settings = {"adapter": "math", "max_tokens": 100}
    with Session.of_files(base, files, threads=default_threads(), n_ctx_tokens=SPLIT_TOKENS) as session:
        alone = session.ask("How many?", **settings).token_ids
    room = Room()
    monkeypatch.setattr("slm_edge.edge.system.load.room", lambda: room)
    spawn = multiprocessing.get_context("spawn")
    end_s = time.monotonic() + 60
    others = [spawn.Process(target=spin, args=(end_s,), daemon=True) for _ in range(usable_cpus())]
    try:
        for process in others:
            process.start()
        seen = set()
        with Session.of_files(base, files, n_ctx_tokens=SPLIT_TOKENS) as session:
            while time.monotonic() < end_s and min(seen, default=9) >= default_threads():
                assert session.ask("How many?", **settings).token_ids == alone
                seen.add(session.context.pace.now)
        assert min(seen) < default_threads()
        assert room.others_cpus > 0.3
    finally:
        for process in others:
            process.terminate()
            process.join()
