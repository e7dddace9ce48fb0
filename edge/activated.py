"""Activated LoRA (aLoRA): adapters that act from their invocation tokens on, inclusive.

    activation_start([1, 2, 7, 8, 3], (7, 8))       # 2
    activation_start([1, 2], (7, 8))                # None

What stands before is computed by the base alone, so its keys and values serve the base and every aLoRA: taking one up
in the middle of a conversation costs only what follows. As in PEFT (peft/tuners/lora/variants.py), the last whole
match counts, and what the model writes itself does not activate anything.
"""

from collections.abc import Sequence


def activation_start(token_ids: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last whole match of the invocation tokens begins; None where there is none."""
    wanted = list(invocation)
    for start in range(len(token_ids) - len(wanted), -1, -1):
        if list(token_ids[start : start + len(wanted)]) == wanted:
            return start
    return None
