"""Drawn tokens: those of llama.cpp's own chain, also where a part of it is ours."""

import ctypes

import numpy as np
import pytest
from slm_edge.edge.llama import lib
from slm_edge.edge.sampling import Sampler, Sampling, nucleus


def rows(n_vocab, n_rows, scale):
    """Logits as models make them: most low, a few high."""
    random = np.random.default_rng(n_vocab + int(10 * scale))
    return (scale * random.standard_normal((n_rows, n_vocab))).astype(np.float32)


def by_llama_cpp(logits, sampling):
    """The tokens that llama.cpp's links draw from the whole vocabulary, in the order that `Sampling` states."""
    llama = lib()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for link in (
        llama.llama_sampler_init_top_k(sampling.top_k),
        llama.llama_sampler_init_top_p(sampling.top_p, 1),
        llama.llama_sampler_init_min_p(sampling.min_p, 1),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(sampling.seed),
    ):
        llama.llama_sampler_chain_add(chain, link)
    found = []
    for row in logits:
        data = (llama.llama_token_data * len(row))(*((i, value, 0.0) for i, value in enumerate(row.tolist())))
        candidates = llama.llama_token_data_array(data=data, size=len(row), selected=-1, sorted=False)
        llama.llama_sampler_apply(chain, ctypes.byref(candidates))
        found.append(candidates.data[candidates.selected].id)
    llama.llama_sampler_free(chain)
    return found


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
    with Sampler(sampling) as sampler:
        ours = [sampler.sample_row(row) for row in logits]
    assert ours == by_llama_cpp(logits, sampling)


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
