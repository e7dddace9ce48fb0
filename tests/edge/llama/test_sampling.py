"""Drawn tokens: those of llama.cpp's own chain, also where a part of it is ours."""

import itertools

import numpy as np
import pytest
from build_gguf import tiny_base
from slm_edge.edge.errors import InputError
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


def bent_by_formula(logits, said, prompt, how):
    """OpenAI's formula for the penalties and the biases, CTRL's for repetition, in another way and in float64."""
    bent = logits.astype(np.float64)
    for token_id, bias in how.get("logit_bias", {}).items():
        bent[token_id] += bias
    n_last, before = how.get("repeat_last_n", 64), [*prompt, *said]
    recent = before if n_last < 0 else before[len(before) - min(n_last, len(before)) :]
    for token_id in set(recent):
        by = how.get("repeat_penalty", 1.0)
        bent[token_id] = bent[token_id] / by if bent[token_id] > 0 else bent[token_id] * by
    for token_id in range(len(bent)):
        n_times = said.count(token_id)
        bent[token_id] -= n_times * how.get("frequency_penalty", 0) + (n_times > 0) * how.get("presence_penalty", 0)
    return bent


BENDS = [
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.5},
    {"repeat_penalty": 1.4},
    {"repeat_penalty": 1.4, "repeat_last_n": 3},
    {"repeat_penalty": 0.8, "repeat_last_n": -1},
    {"repeat_penalty": 3.0, "repeat_last_n": 0},
    {"logit_bias": {7: 2.5, 11: -100, 12: float("-inf")}},
    {"frequency_penalty": 0.3, "presence_penalty": 0.4, "repeat_penalty": 1.2, "logit_bias": {3: 1.0}},
]


@pytest.mark.parametrize("how", BENDS)
def test_penalties_and_biases_are_those_of_the_formula(how):
    prompt = [int(one) for one in np.random.default_rng(1).integers(0, 40, 90)]
    said = []
    with Sampler(Sampling(**how), prompt=prompt) as sampler:
        sampler.tells = True
        for logits in rows(40, 60, 1.0):
            expected = bent_by_formula(logits, said, prompt, how)
            said.append(sampler.sample_row(logits))
            np.testing.assert_allclose(sampler.chosen_from, expected, rtol=1e-5, atol=1e-5)
            assert said[-1] == expected.argmax()
    plain = rows(40, 60, 1.0).argmax(axis=1).tolist()
    # A window of no tokens is no penalty.
    assert (said == plain) == (how.get("repeat_last_n") == 0)


def test_a_draw_with_penalties_is_a_draw_of_the_chain_from_what_the_formula_gives():
    how, prompt = BENDS[-1], [1, 2, 3, 3]
    sampling = Sampling(temperature=1.2, top_k=9, top_p=0.9, min_p=0.02, seed=4, **how)
    chain, said = new_chain(sampling, 4), []
    with Sampler(sampling, prompt=prompt) as sampler:
        for logits in rows(40, 80, 1.0):
            expected = draw(chain, bent_by_formula(logits, said, prompt, how).astype(np.float32))
            said.append(sampler.sample_row(logits))
            assert said[-1] == expected
    lib().llama_sampler_free(chain)


def test_rules_hold_whatever_the_bias(tmp_path):
    with Vocab.open(tiny_base(tmp_path / "base.gguf")) as vocab:
        (wanted,), (other,) = vocab.encode("m", special=False)[-1:], vocab.encode("z", special=False)[-1:]
        sampling = Sampling(logit_bias={wanted: 50.0, other: 100.0})
        with Sampler(sampling, Grammar("root ::= [a-m]", vocab)) as sampler:
            assert sampler.sample_row(np.zeros(vocab.n_tokens, np.float32)) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"frequency_penalty": float("nan")},
        {"presence_penalty": 101},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": float("inf")},
        {"repeat_last_n": -2},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {5: float("nan")}},
        {"logit_bias": {5: float("inf")}},
        {"logit_bias": {-1: 1.0}},
    ],
)
def test_what_no_penalty_or_bias_is_is_refused(wrong):
    with pytest.raises(InputError) as refused:
        Sampling(**wrong)
    assert next(iter(wrong)) in str(refused.value.problems)
