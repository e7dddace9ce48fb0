"""Whether confidences mean what they say: calibration error, the temperature that mends it, coverage and risk."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

N_BINS = 10


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, weights: ArrayLike | None = None, n_bins: int = N_BINS
) -> float:
    """Mean distance of confidence from accuracy over bins of equal width, weighted by what they hold.

    Source: Naeini et al. 2015; Guo et al. 2017, equation 3.

    Args:
        confidence: [n], 0 to 1.
        right: [n], whether each was right.
        weights: [n]; None: all alike.
    """
    sure, good = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    heavy = np.ones_like(sure) if weights is None else np.asarray(weights, dtype=float)
    if not len(sure):
        return 0.0
    bins = np.minimum((sure * n_bins).astype(int), n_bins - 1)
    gap = np.bincount(bins, heavy * (sure - good), minlength=n_bins)
    return float(np.abs(gap).sum() / heavy.sum())


def best_temperature(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The temperature from 0.2 to 5 with the least weighted log loss (Guo et al. 2017, section 4.2).

    Args:
        logits: [n, n_classes].
        labels: [n], whole numbers.
    """
    z, y = np.asarray(logits, dtype=float), np.asarray(labels)
    heavy = np.ones(len(z)) if weights is None else np.asarray(weights, dtype=float)
    z = z - z.max(axis=1, keepdims=True)

    def loss(temperature: float) -> float:
        scaled = z / temperature
        return float(heavy @ (np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(z)), y]))

    grid = np.geomspace(0.2, 5, 101)
    return round(float(grid[np.argmin([loss(float(t)) for t in grid])]), 4)


def coverage_risk(
    confidence: Sequence[float], right: Sequence[bool], coverages: Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
) -> list[dict[str, float]]:
    """The share of wrong decisions among the surest part, for each part.

    Returns:
        One {"coverage", "least_confidence", "risk"} for each of `coverages`; empty without decisions.
    """
    if not len(confidence):
        return []
    order = np.argsort(-np.asarray(confidence, dtype=float), kind="stable")
    wrong: NDArray[np.float64] = 1.0 - np.asarray(right, dtype=float)[order]
    found = []
    for coverage in coverages:
        n = max(1, round(coverage * len(order)))
        least = float(np.asarray(confidence, dtype=float)[order[n - 1]])
        found.append({"coverage": coverage, "least_confidence": round(least, 4), "risk": round(wrong[:n].mean(), 4)})
    return found
