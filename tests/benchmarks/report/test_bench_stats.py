"""Intervals and paired tests against values that others published or that follow exactly."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from slm_edge.benchmarks.stats import mcnemar_exact, mean, newcombe_paired, paired_means, paired_shares, share, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0000),
    ],
)
def test_wilson_published(right, n, low, high):
    found = wilson(right, n)
    assert [round(bound, 4) for bound in found] == [low, high]


def test_wilson_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    with pytest.raises(ValueError):
        wilson(8, 7)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998, 2635-2650: 36, 12, 2, 0 under method 10; Fagerland, Lydersen, Laake 2014: 1, 1, 7, 12
        ((36, 2, 12, 0), 0.0569, 0.3404),
        ((1, 7, 1, 12), -0.5069, -0.0256),
    ],
)
def test_newcombe_published(table, low, high):
    found = newcombe_paired(*table)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_newcombe_turned_round():
    one, other = newcombe_paired(40, 9, 21, 30), newcombe_paired(40, 21, 9, 30)
    assert one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_newcombe_all_equal_holds_zero():
    found = newcombe_paired(5, 0, 0, 15)
    assert found.low < 0 < found.high
    assert newcombe_paired(0, 0, 0, 20).value == 0


def test_mcnemar_published():
    # Fagerland, Lydersen, Laake, BMC Medical Research Methodology 13 (2013) 91: b, c = 1, 7 gives P = 0.070
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703125, abs=0)
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7)
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(5, 5) == 1


@pytest.mark.parametrize(("first", "second"), [(3, 11), (40, 71), (600, 700), (1, 1300)])
def test_mcnemar_is_the_binomial_tail(first, second):
    exact = Fraction(2 * sum(comb(first + second, k) for k in range(first + 1)), 2 ** (first + second))
    assert mcnemar_exact(first, second) == float(exact)


def test_paired_shares_counts():
    first = [1, 1, 0, 0, 0, 0, 1, 0]
    second = [1, 0, 1, 1, 1, 0, 1, 1]
    found = paired_shares(first, second)
    assert (found.n, found.only_first, found.only_second) == (8, 1, 4)
    assert found.difference.value == pytest.approx(3 / 8)
    assert found.p_value == mcnemar_exact(1, 4)
    with pytest.raises(ValueError):
        paired_shares([0.5], [1])
    with pytest.raises(ValueError):
        paired_shares([1], [1, 0])
    with pytest.raises(ValueError):
        paired_shares([], [])


def test_share():
    found = share([1, 0, 0, 1])
    assert (found.value, found.low, found.high) == (0.5, *wilson(2, 4))


def test_bootstrap_is_near_the_normal_interval_and_repeats():
    scores = np.random.default_rng(5).beta(2, 5, 600)
    found = mean(list(scores), seed=1)
    half = 1.96 * scores.std(ddof=1) / np.sqrt(600)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.1 * half)
    assert mean(list(scores), seed=1) == found
    assert mean(list(scores), seed=2) != found


def test_paired_bootstrap_uses_the_pairs():
    random = np.random.default_rng(7)
    base = random.beta(2, 5, 300)
    better = base + 0.02 + random.normal(0, 0.03, 300)
    found = paired_means(list(base), list(better))
    assert found.difference.low > 0
    assert found.difference.value == pytest.approx((better - base).mean())
    assert found.p_value < 0.01
    # The same scores without their pairs say nothing: the spread of items is ten times the difference
    torn = paired_means(list(base), list(random.permutation(better)))
    assert torn.difference.low < 0 < torn.difference.high
    same = paired_means(list(base), list(base))
    assert (same.difference.value, same.p_value) == (0, 1)
