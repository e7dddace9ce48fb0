"""pass@k from n samples of a problem of which c passed (Chen et al. 2021, arXiv 2107.03374, equation 1).

pass_at_k(20, 3, 10)       ->   0.894...
problem_value([1, 0, 0], 1)    ->   0.333...
"""

import math
from collections.abc import Sequence


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k samples drawn without replacement from n, of which c pass, hold one that passes.

    1 - C(n-c, k) / C(n, k), unbiased for n >= k; computed as 1 - prod(1 - k / i) for i = n-c+1 ... n.

    Raises:
        ValueError: not 0 <= c <= n, or k not in 1 ... n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} of {n}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def problem_value(scores: Sequence[float], k: int) -> float | None:
    """pass@k of one problem's samples; None where there are fewer than k."""
    return pass_at_k(len(scores), sum(1 for score in scores if score == 1), k) if len(scores) >= k else None
