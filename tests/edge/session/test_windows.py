"""Layers that keep a window: whatever is kept, put back, left or guessed, answers are those of a fresh session."""

import numpy as np
import pytest
from build_gguf import WINDOW_TOKENS, tiny_adapter, tiny_base
from build_walks import same, some_text
from slm_edge.edge.llama.context import Context
from slm_edge.edge.llama.model import Model
from slm_edge.edge.options import CHUNK_TOKENS
from slm_edge.edge.session.session import Session

N_CTX_TOKENS = 3072


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("windows") / "base.gguf", architecture="gemma3", n_ctx_train_tokens=4096)


@pytest.fixture(scope="module")
def two(base):
    return {
        name: (tiny_adapter(base.with_name(f"{name}.gguf"), base, seed=seed), None) for seed, name in enumerate("ab", 1)
    }


def opened(base, adapters, **options):
    return Session.of_files(base, adapters, **({"threads": 1, "n_ctx_tokens": N_CTX_TOKENS} | options))


def test_a_conversation_goes_on_from_what_was_kept(base):
    rng = np.random.default_rng(5)
    conversation = [{"role": "user", "content": some_text(rng, 250)}]
    with opened(base, {}) as session:
        first = session.ask(conversation, max_tokens=40)
        conversation += [{"role": "assistant", "content": first.text}, {"role": "user", "content": some_text(rng, 90)}]
        second = session.ask(conversation, max_tokens=5)
        again = session.ask(conversation[:1], max_tokens=40)
    assert first.n_kept_tokens == 0
    assert second.n_kept_tokens == again.n_kept_tokens > CHUNK_TOKENS
    assert again.token_ids == first.token_ids


def test_what_is_put_back_in_another_order_would_differ(base, two, monkeypatch):
    """The reason for `settle`: without it the same tokens give other bits."""
    rng = np.random.default_rng(1)
    # A window that lies across the end of its cells comes back in another order: after an odd number of tokens.
    prompts = [(some_text(rng, 45 + 9 * i), some_text(rng, 600)) for i in range(4)]

    def last_logits(**options):
        rows = []
        with opened(base, two, **options) as session:
            for system, prompt in prompts:
                session.ask(prompt, system=system, max_tokens=3)
                kept = session.ask(prompt, system=system, max_tokens=3).n_kept_tokens
                assert (kept > 0) == (not options)
                rows.append(session.context.logits())
        return rows

    assert all(map(same, last_logits(), last_logits(prefix_budget_bytes=0)))
    monkeypatch.setattr(Context, "settle", lambda self, sequence: None)
    assert not all(map(same, last_logits(), last_logits(prefix_budget_bytes=0)))


def test_a_prefix_lasts_on_disk(base, two, tmp_path):
    system = some_text(np.random.default_rng(3), 400)
    answers, logits = [], []
    for cache in (None, tmp_path / "kv", tmp_path / "kv"):
        with opened(base, two, prefix_cache=cache) as session:
            answers.append(session.ask("hello", system=system, adapter="a", max_tokens=6))
            logits.append(session.context.logits())
    assert [answer.n_kept_tokens > WINDOW_TOKENS for answer in answers] == [False, False, True]
    assert all(same(logits[0], row) for row in logits)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_wrong_guesses_leave_nothing_behind(base, two, mode):
    # Kept to three words a random model repeats itself; the answer is longer than what the windows' cells hold.
    settings = {"max_tokens": 500, "grammar": 'root ::= ("the " | "sea " | "and ") root'}
    prompt = "the sea and the " * 40
    with opened(base, two) as session:
        expected = session.ask(prompt, **settings).token_ids
    with opened(base, two, speculate=mode) as session:
        answer = session.ask(prompt, **settings)
    if mode == "exact":
        # Cells in another order would give other bits.
        assert answer.n_drafted_tokens == 0
        assert answer.token_ids == expected
    else:
        assert answer.n_drafted_tokens > answer.n_accepted_tokens > 20
        assert answer.token_ids == expected


def test_a_cut_into_what_a_window_has_lost_would_be_wrong(base):
    """Why nothing is cut: llama.cpp agrees to it, and computes something else."""
    ids = np.random.default_rng(0).integers(3, 200, 1000).tolist()

    def next_logits(cut):
        with Model.load(base) as model, Context(model, n_ctx_tokens=1024, n_batch_tokens=128, threads=1) as context:
            for at in range(0, 1000 if cut else 256, 128):
                context.decode(ids[at : at + 128][: 1000 - at], at)
            context.remove(0, 256)
            context.decode(ids[256:300], 256)
            return context.logits()

    assert np.abs(next_logits(cut=True) - next_logits(cut=False)).max() > 0.1


def test_blobs_fit_contexts_of_any_number_of_sequences(base):
    ids = np.random.default_rng(0).integers(3, 200, 400).tolist()
    rows = []
    with Model.load(base) as model:
        with Context(model, n_ctx_tokens=512, n_batch_tokens=256, threads=1) as one:
            one.decode(ids[:256], 0)
            one.settle(0)
            blob = one.read_sequence(0)
            one.decode(ids[256:], 256)
            rows.append(one.logits())
        for n_seq, sequence in ((3, 0), (3, 2), (1, 0)):
            options = {"n_ctx_tokens": 512 * n_seq, "n_batch_tokens": 256, "n_seq_max": n_seq, "threads": 1}
            with Context(model, **options) as other:
                assert other.write_sequence(sequence, blob)
                assert other.read_sequence(sequence).size == blob.size
                other.decode(ids[256:], 256, sequence=sequence)
                rows.append(other.logits())
    assert all(same(rows[0], row) for row in rows)
