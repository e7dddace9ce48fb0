"""Activated LoRA: an adapter that acts from its invocation tokens on, so that the base's KV cache up to there stays.

As in PEFT (`alora_invocation_tokens`): the last place in a row where the invocation stands, that token included, and
everything behind it. Greenewald et al. 2025, arXiv 2504.12397.

    with activated(packed.active):
        model(...)                      # every adapted layer adds its part at the marked tokens only
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from torch import Tensor

_now = threading.local()


@contextlib.contextmanager
def activated(active: Tensor | None) -> Iterator[None]:
    """Within, adapted layers that run in this thread act where `active` (n_tokens, 1) is 1; None: everywhere."""
    before = active_tokens()
    _now.active = active
    try:
        yield
    finally:
        _now.active = before


def active_tokens() -> Tensor | None:
    """What `activated` says in this thread."""
    active: Tensor | None = getattr(_now, "active", None)
    return active


def last_place(ids: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the invocation begins for the last time in a row; None if it doesn't stand."""
    n = len(invocation)
    for at in range(len(ids) - n, -1, -1):
        if tuple(ids[at : at + n]) == tuple(invocation):
            return at
    return None
