"""Intervals and paired tests for benchmark scores. No scipy; every formula names its source.

    wilson(18, 164)                ->  (0.071, 0.167): the 95 % interval of a share
    paired_shares(base, adapter)   ->  difference of two shares of the same items, its interval, McNemar's p
    paired_means(base, adapter)    ->  the same for real scores (ROUGE), by paired bootstrap
    pass_at_k(20, 3, 10)           ->  0.894: that one of 10 samples passes, where 3 of 20 did

Same scores and seed, same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, median

import numpy as np

RESAMPLES = 10_000
# Resampled indices held at once: 2 ** 22 int64 are 32 MiB
_CHUNK_INDICES = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A value with its interval. `method` names how the bounds were found."""

    value: float
    low: float
    high: float
    method: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Scores of `second` minus scores of `first` on the same `n` items.

    Attributes:
        difference: mean of the differences, with its interval.
        p_value: two-sided; its test is `test`.
        only_first, only_second: items on which only one was right (0/1 scores), or scored higher (real scores).
    """

    n: int
    difference: Interval
    p_value: float
    test: str
    only_first: int
    only_second: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) for n = 0.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n): E. B. Wilson, JASA 22 (1927) 209-212.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    z, p = _z(confidence), successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding may leave the exact bounds 0 and 1 by an ulp
    low = 0.0 if successes == 0 else (middle - half) / scale
    high = 1.0 if successes == n else (middle + half) / scale
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: 2 P(X <= min) for X ~ Binomial(b + c, 1/2), at most 1.

    Q. McNemar, Psychometrika 12 (1947) 153-157, with the binomial in place of chi-squared. Exact integer arithmetic.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def newcombe_paired(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """The difference `second - first` of two shares of the same items, with Newcombe's hybrid score interval.

    Method 10 of R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650: Wilson's intervals of both shares are
    squared and added, with the correlation phi of the 2x2 table (continuity-corrected where positive).

    Raises:
        ValueError: the table is empty.
    """
    n = both + only_first + only_second + neither
    if n == 0:
        raise ValueError("no items")
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    (low1, high1), (low2, high2) = wilson(first, n, confidence), wilson(second, n, confidence)
    margins = first * (n - first) * second * (n - second)
    phi = 0.0
    if margins:
        top: float = both * neither - only_first * only_second
        if top > 0:
            top = max(top - n / 2, 0.0)
        phi = top / math.sqrt(margins)
    down1, up1, down2, up2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    below = math.sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    above = math.sqrt(max(0.0, up2**2 - 2 * phi * up2 * down1 + down1**2))
    return Interval(p2 - p1, p2 - p1 - below, p2 - p1 + above, "Newcombe 1998, method 10")


def paired_shares(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compares two lists of 0/1 scores of the same items.

    Raises:
        ValueError: different lengths, none, or a score other than 0 and 1.
    """
    _check_pairs(first, second)
    if not {*first, *second} <= {0, 1}:
        raise ValueError("scores other than 0 and 1")
    pairs = list(zip(first, second, strict=True))
    both, only_first = pairs.count((1, 1)), pairs.count((1, 0))
    only_second, neither = pairs.count((0, 1)), pairs.count((0, 0))
    return Paired(
        n=len(pairs),
        difference=newcombe_paired(both, only_first, only_second, neither),
        p_value=mcnemar_exact(only_first, only_second),
        test="McNemar, exact",
        only_first=only_first,
        only_second=only_second,
    )


def _check_pairs(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}")
    if not first:
        raise ValueError("no scores")


def _resampled_means(values: Sequence[float], resamples: int, seed: int) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK_INDICES // len(scores))
    chunks = [
        scores[random.integers(0, len(scores), (min(per_chunk, resamples - done), len(scores)))].mean(axis=1)
        for done in range(0, resamples, per_chunk)
    ]
    return np.concatenate(chunks)


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def share(scores: Sequence[float]) -> Interval:
    """The mean of 0/1 scores with Wilson's interval."""
    right = sum(1 for score in scores if score == 1)
    return Interval(right / len(scores) if scores else 0.0, *wilson(right, len(scores)), method="Wilson")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of a few measurements, to four places."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def mean(scores: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95) -> Interval:
    """The mean of real scores with a percentile bootstrap interval (B. Efron, R. Tibshirani 1993, chapter 13).

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("no scores")
    low, high = _percentiles(_resampled_means(scores, resamples, seed), confidence)
    return Interval(
        math.fsum(scores) / len(scores), low, high, f"bootstrap percentile, {resamples} resamples, seed {seed}"
    )


def paired_means(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Paired:
    """Compares two lists of real scores of the same items by resampling items, both scores together.

    The interval is the percentile one; p is twice the smaller share of resampled mean differences at or beyond zero,
    with one added to count and total (A. C. Davison, D. V. Hinkley 1997, 4.2), at most 1.

    Raises:
        ValueError: different lengths, or none.
    """
    _check_pairs(first, second)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    means = _resampled_means(differences, resamples, seed)
    low, high = _percentiles(means, confidence)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Paired(
        n=len(differences),
        difference=Interval(
            math.fsum(differences) / len(differences),
            low,
            high,
            f"paired bootstrap, {resamples} resamples, seed {seed}",
        ),
        p_value=min(1.0, 2 * (tail + 1) / (resamples + 1)),
        test="paired bootstrap",
        only_first=sum(1 for difference in differences if difference < 0),
        only_second=sum(1 for difference in differences if difference > 0),
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k samples drawn without replacement from n, of which c pass, hold one that passes.

    1 - C(n-c, k) / C(n, k), unbiased for n >= k (Chen et al. 2021, arXiv 2107.03374, equation 1); computed as
    1 - prod(1 - k / i) for i = n-c+1 ... n.

    Raises:
        ValueError: not 0 <= c <= n, or k not in 1 ... n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} of {n}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def problem_value(scores: Sequence[float], k: int) -> float | None:
    """pass@k of one problem's samples; None if there are fewer than k."""
    return pass_at_k(len(scores), sum(1 for score in scores if score == 1), k) if len(scores) >= k else None
