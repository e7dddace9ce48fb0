"""The parts of a prompt, and the adapters that each is computed under.

    sections_of([(loaded, 1.0)], token_ids, n_shared_tokens=0, vocab=vocab)
    activation_start([1, 2, 7, 8, 3], (7, 8))       # 2
    activation_start([1, 2], (7, 8))                # None

An activated LoRA (aLoRA) acts from its invocation tokens on, inclusive. What stands before is computed by the base
alone, so its keys and values serve the base and every aLoRA: taking one up in the middle of a conversation costs only
what follows. As in PEFT (peft/tuners/lora/variants.py), the last whole match counts, and what the model writes itself
does not activate anything.
"""

from collections.abc import Sequence

from ..errors import InputError, UnsupportedError
from ..llama.vocab import Vocab
from ..options import Swap
from ..prefix.chunks import AdapterState, Section
from .shelf import Loaded


def activation_start(token_ids: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last whole match of the invocation tokens begins; None if there is none."""
    wanted = list(invocation)
    for start in range(len(token_ids) - len(wanted), -1, -1):
        if list(token_ids[start : start + len(wanted)]) == wanted:
            return start
    return None


def swap_of(loaded: Sequence[Loaded], asked: Swap | None = None) -> Swap:
    """How the adapters are taken up in the middle of a conversation.

    "recompute": the whole conversation is computed under them, exactly as if they had been there from the start.
    "activated": an aLoRA; what stands before its invocation tokens is the base's and stays.

    Raises:
        UnsupportedError: another way is asked than that of these adapters, or an aLoRA with others.
    """
    activated = [one for one in loaded if one.info.alora_tokens]
    if activated and len(loaded) > 1:
        raise UnsupportedError(
            "is an activated LoRA (aLoRA), which acts on a part of the prompt; it cannot be added up with others",
            where=activated[0].adapter.path,
        )
    own: Swap = "activated" if activated else "recompute"
    if asked is not None and asked != own:
        what = "an activated LoRA (aLoRA), trained on the base's keys and values" if activated else "a plain LoRA"
        why = "" if activated else "; all keys and values depend on it, so the base's cannot be kept"
        raise UnsupportedError(
            f"the swap {asked!r} is asked of {what}{why}",
            where=loaded[0].adapter.path if loaded else None,
            hint=f"its swap is {own!r}",
        )
    return own


def sections_of(
    loaded: Sequence[tuple[Loaded, float]], token_ids: Sequence[int], n_shared_tokens: int, vocab: Vocab
) -> list[Section]:
    """The parts of a prompt and what each is computed under.

    Args:
        loaded: the adapters with their scales.
        n_shared_tokens: of the beginning that other prompts share; 0 for none.
        vocab: for messages.

    Raises:
        InputError: the prompt does not hold an aLoRA's invocation tokens, so that the adapter would do nothing.
    """
    n_tokens = len(token_ids)
    adapters = tuple((one.adapter, scale) for one, scale in loaded)
    loads = tuple(one.serial for one, _ in loaded) if len(loaded) > 1 else ()
    state = AdapterState(tuple((one.sha256, scale) for one, scale in loaded), loads)
    start = 0
    for one, _ in loaded:
        if one.info.alora_tokens:
            found = activation_start(token_ids, one.info.alora_tokens)
            if found is None:
                text = vocab.decode(list(one.info.alora_tokens), special=True)
                raise InputError(
                    f"the prompt does not hold the invocation {text!r} of this activated LoRA, so it would do nothing",
                    where=one.adapter.path,
                    hint="put it at the end of the message that it shall answer",
                )
            start = found
    ends = {end: end == n_shared_tokens for end in (n_shared_tokens, start) if 0 < end < n_tokens}
    sections = [
        Section(end, shared=shared) if end <= start else Section(end, state, adapters, shared)
        for end, shared in sorted(ends.items())
    ]
    return [*sections, Section(n_tokens, state, adapters)]
