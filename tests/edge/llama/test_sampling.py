"""Drawn tokens: those of llama.cpp's own chain, also where a part of it is ours."""

import itertools

import numpy as np
import pytest
from build_gguf import tiny_base
from slm_edge.edge.grammar.matcher import Grammar
from slm_edge.edge.llama.binding import lib
from slm_edge.edge.llama.sampling import Sampler, Sampling, draw, largest, new_chain, nucleus
from slm_edge.edge.llama.vocab import Vocab
from slm_edge.edge.session.session import Session


def by_llama_cpp(rows, sampling):
    """The tokens that llama.cpp's links alone draw from the whole vocabulary."""
    chain = new_chain(sampling, sampling.seed)
    try:
        return [draw(chain, row) for row in rows]
    finally:
        lib().llama_sampler_free(chain)


def by_us(rows, sampling):
    """The tokens that our sampler draws."""
    with Sampler(sampling) as sampler:
        return [sampler.sample_row(row) for row in rows]


def rows(n_vocab, n_rows, scale):
    """Logits as models make them: most low, a few high."""
    random = np.random.default_rng(n_vocab + int(10 * scale))
    return (scale * random.standard_normal((n_rows, n_vocab))).astype(np.float32)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
@pytest.mark.parametrize(
    "how",
    [
        {"top_k": 0, "top_p": 0.95, "min_p": 0.0, "temperature": 0.2},
        {"top_k": 0, "top_p": 0.5, "min_p": 0.05, "temperature": 1.0},
        {"top_k": 0, "top_p": 0.0, "min_p": 0.0, "temperature": 1.0},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.01, "temperature": 1.3},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    ],
)
def test_draws_are_those_of_llama_cpps_chain(scale, how):
    logits = rows(3000, 60, scale)
    sampling = Sampling(**how, seed=5)
    assert by_us(logits, sampling) == by_llama_cpp(logits, sampling)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95, 0.9999])
def test_the_nucleus_is_the_smallest_that_is_likely_enough(scale, top_p):
    for row in rows(5000, 4, scale):
        p = np.exp(row.astype(np.float64) - row.max())
        p /= p.sum()
        ids = nucleus(row, top_p)
        assert len(set(ids.tolist())) == len(ids) >= 1
        # In float32, so near ties may stand in either order
        assert (np.diff(p[ids]) <= 1e-9).all() and p[ids].min() >= np.delete(p, ids).max(initial=0.0) - 1e-9
        assert p[ids].sum() >= top_p - 1e-6
        assert len(ids) == 1 or p[ids[:-1]].sum() < top_p + 1e-6


def test_what_a_grammar_forbids_is_in_no_nucleus():
    row = np.full(1000, -np.inf, np.float32)
    row[[3, 500]] = 1.0, 2.0
    assert nucleus(row, 0.99).tolist() == [500, 3]
    assert nucleus(row, 0.5).tolist() == [500]


def test_draws_from_a_models_own_logits_are_those_of_the_chain(tmp_path):
    with Session.of_files(tiny_base(tmp_path / "base.gguf"), {}, threads=1) as session:
        logits = []
        for at, token_id in enumerate(session.vocab.encode("the world and the rest of it, again", special=False)):
            session.context.decode([token_id], at, outputs="last")
            logits.append(np.array(session.context.logits_view(-1)))
    assert len(logits) >= 20
    for top_k, temperature in itertools.product((0, 40), (0.2, 1.0)):
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=0.95, min_p=0.0, seed=1)
        assert by_us(logits, sampling) == by_llama_cpp(logits, sampling)


@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("k", [1, 40, 600])
def test_the_k_likeliest_of_what_is_allowed(spread, k):
    rng = np.random.default_rng(k)
    for n, share in itertools.product((300, 5000, 60_000), (1.0, 0.3, 0.002)):
        logits = rng.normal(0, spread, n).astype(np.float32)
        allowed = rng.random(n) < share
        expected = np.argsort(-np.where(allowed, logits, -np.inf), kind="stable")[: min(k, allowed.sum())]
        assert largest(logits, k, lambda ids, allowed=allowed: allowed[ids]).tolist() == expected.tolist()
        assert largest(np.where(allowed, logits, -np.inf), k).tolist() == expected.tolist()


def test_a_draw_within_a_grammar_is_a_draw_from_the_masked_row(tmp_path):
    """Same seed, same token, whether the k likeliest are picked first or the chain gets the whole row."""
    with Vocab.open(tiny_base(tmp_path / "base.gguf")) as vocab:
        rng, sampling = np.random.default_rng(5), Sampling(temperature=1.5, top_k=7, top_p=0.9, min_p=0.01, seed=9)
        row = rng.normal(0, 4, (30, vocab.n_tokens)).astype(np.float32)
        text = 'root ::= [a-m]{10} "the "* [0-9]{30}'
        chain, grammar = new_chain(sampling, 9), Grammar(text, vocab)
        with Sampler(sampling, Grammar(text, vocab)) as sampler:
            for logits in row:
                expected = draw(chain, grammar.mask(logits))
                assert sampler.sample_row(logits) == expected
                grammar.accept(expected)
