"""Drawn tokens: those of llama.cpp's own chain, also where a part of it is ours."""

import json

import numpy as np
import pytest
from build_gguf import tiny_base
from click.testing import CliRunner
from slm_edge.benchmarks.draw_cost import by_llama_cpp, by_us, main
from slm_edge.edge.sampling import Sampling, nucleus


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


def test_the_cost_of_a_draw_is_measured_on_the_same_tokens(tmp_path):
    (tmp_path / "text.txt").write_text("the world and the rest of it, again and again. " * 4)
    words = [str(tiny_base(tmp_path / "base.gguf")), str(tmp_path / "text.txt"), "--tokens", "20", "--rounds", "2"]
    result = CliRunner().invoke(main, [*words, "--threads", "1"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["rows"]
    assert [(row["top_k"], row["temperature"]) for row in found] == [(0, 0.2), (0, 1.0), (40, 0.2), (40, 1.0)]
    assert all(row["same_tokens"] == 1 and row["n_draws"] == 20 and row["ratio"]["median"] > 0 for row in found)
