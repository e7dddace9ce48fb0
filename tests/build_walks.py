"""Random texts and adapters for walks through conversations, and the comparison of what is computed in them."""

import numpy as np
from build_gguf import tiny_adapter
from slm_edge.edge.gguf.base import BaseInfo

WORDS = [
    *("the", "world", "and", "the", "rest", "of", "it", "again", "he", "was", "on", "her", "way"),
    *("to", "see", "the", "sea", "in", "the", "morning", "light", "of", "day"),
]


def some_text(rng, n_words):
    return " ".join(WORDS[int(i)] for i in rng.integers(len(WORDS), size=n_words))


def same(one, other):
    """Whether two arrays of float32 are the same bit for bit."""
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


def adapters_of(base):
    """Two adapters of a base, on each matrix that an adapter may have."""
    parts = [part.name.split(".")[-1] for part in BaseInfo.open(base).family.block if part.is_matrix]
    # Gemma 3n has matrices of 4 x 4 too, less than the rank.
    targets = [name for name in parts if name != "altup_correct_coef"]
    return {
        name: (tiny_adapter(base.with_name(f"{name}.gguf"), base, seed=seed, targets=targets, size=0.5), None)
        for seed, name in enumerate("ab", 1)
    }
