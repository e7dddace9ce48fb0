"""Two profiles of one device, side by side: the ratio of each rate, with an interval from the repeats.

rows = compare(old, new)            # [{"what": "math decode at 0", "ratio": 1.04, "low": 0.99, "high": 1.08, …}]
"""

import contextlib
import math
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ...edge.errors import InputError, UnsupportedError
from ..machine.record import same_machine

RESAMPLES: Final = 2000
# Ratios nearer to 1 than this are called equal whatever the interval: clocks and schedulers move rates by as much.
LEAST_DIFFERENCE: Final = 0.01


@contextlib.contextmanager
def reading_profile(path: str | os.PathLike[str]) -> Iterator[None]:
    """While a profile is used that others may have changed: what it lacks, or has as another type, is an InputError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"is not a whole profile of slm-edge ({reason[:200]})", where=path) from None


def check_comparable(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses profiles whose rates say nothing of each other.

    Raises:
        InputError: one is no profile.
        UnsupportedError: different devices, builds, models or setups; each difference is named.
    """
    for profile in (old, new):
        if profile.get("kind") != "slm-edge-profile":
            raise InputError("is not a profile of slm-edge")
    problems = same_machine(old["machine"], new["machine"])
    if old["model"]["sha256"] != new["model"]["sha256"]:
        problems.append("the base files differ")
    keys = ("threads", "n_ctx_tokens", "kv_type", "repack", "mmap")
    problems += [
        f"{key}: {old['setup'][key]} then, {new['setup'][key]} now"
        for key in keys
        if old["setup"][key] != new["setup"][key]
    ]
    if problems:
        raise UnsupportedError("the two profiles cannot be compared", problems=problems, hint="--force compares anyway")


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rates of the new profile over the old one's, for each test that both have.

    The interval holds 95 %: medians of samples drawn again from each side's repeats. `verdict` is "faster", "slower",
    or "within the noise" where the interval holds 1.
    """
    before = dict(_tests(old))
    rows = []
    for name, samples in _tests(new):
        if name not in before:
            continue
        ratio = statistics.median(samples) / statistics.median(before[name])
        low, high = _interval(before[name], samples)
        noise = low <= 1 <= high or abs(ratio - 1) < LEAST_DIFFERENCE
        verdict = "within the noise" if noise else "faster" if ratio > 1 else "slower"
        rows.append({"what": name, "ratio": ratio, "low": low, "high": high, "verdict": verdict})
    return rows


def compare_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    if not rows:
        return "the two profiles have no test in common"
    width = max(len(row["what"]) for row in rows)
    return "\n".join(
        f"{row['what']:{width}}  x {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  {row['verdict']}"
        for row in rows
    )


def _tests(profile: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for case in profile["cases"]:
        name = case["adapter"] or "base"
        for row in case["prefill"]:
            yield f"{name} prompt of {row['n_prompt_tokens']}", row["tokens_per_s"]["samples"]
        for row in case["decode"]:
            yield f"{name} decode at {row['depth_tokens']}", row["tokens_per_s"]["samples"]


def _interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    generator = random.Random(0)
    ratios = sorted(
        statistics.median(generator.choices(new, k=len(new))) / statistics.median(generator.choices(old, k=len(old)))
        for _ in range(RESAMPLES)
    )
    # Few repeats draw their own extremes too seldom: the ends are widened as Student's t widens a normal one's.
    n = min(len(old), len(new))
    if n < 2:
        return 0.0, math.inf
    wide = {2: 6.5, 3: 2.2, 4: 1.6, 5: 1.4}.get(n, 1.15)
    middle = statistics.median(new) / statistics.median(old)
    low, high = ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES) - 1]
    return max(middle - wide * (middle - low), 0.0), middle + wide * (high - middle)
