"""Answers drawn from a model in torch, many at once: on a GPU thousands of rows share every step.

sample(model, [ids, ...], ends={2}, max_tokens=256, temperature=0.7, seed=1)
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Rows that have ended are computed on until so many of a batch have: leaving them out copies the whole KV cache.
SHARE_ENDED = 0.25


@dataclass(frozen=True)
class Sampled:
    """One answer: its token ids without the one that ends it, and whether it ended by itself."""

    ids: tuple[int, ...]
    ended: bool


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    is_end: Callable[[int], bool],
    max_tokens: int,
    temperature: float,
    seed: int,
    n_parallel: int,
    on_done: Callable[[int, Sampled], object] = lambda place, answer: None,
    known: Container[int] = (),
) -> list[Sampled]:
    """One answer to each prompt, in the order of the prompts.

    The same seed, prompts and `n_parallel` draw the same answers on the same machine. Prompts of about one length are
    computed together.

    Args:
        model: of transformers, on its device, with an attention that takes a cache ("sdpa").
        is_end: whether a token id ends an answer.
        max_tokens: where an answer is cut off.
        temperature: 0 takes the likeliest token each time.
        n_parallel: rows computed at once.
        on_done: told the place and the answer of each prompt, a batch after another.
        known: places whose answers are there; batches of nothing else are left out, with their answers.
    """
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    answers: dict[int, Sampled] = {}
    for start in range(0, len(order), n_parallel):
        places = order[start : start + n_parallel]
        if all(at in known for at in places):
            continue
        generator = torch.Generator(model.device).manual_seed(seed * 1_000_003 + start)
        rows = [prompts[at] for at in places]
        for at, answer in zip(places, _batch(model, rows, is_end, max_tokens, temperature, generator), strict=True):
            answers[at] = answer
            on_done(at, answer)
    return [answers[at] for at in sorted(answers)]


@torch.inference_mode()
def _batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    is_end: Callable[[int], bool],
    max_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> list[Sampled]:
    from transformers import DynamicCache

    longest = max(len(row) for row in prompts)
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    cache = DynamicCache()
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    live = list(range(len(prompts)))  # which prompt each row of the tensors is of
    for _ in range(max_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = _choose(out.logits[:, -1].float(), temperature, generator)
        for row, token in zip(live, chosen.tolist(), strict=True):
            if ended[row]:
                continue
            if is_end(token):
                ended[row] = True
            else:
                texts[row].append(token)
        kept = [at for at, row in enumerate(live) if not ended[row]]
        if not kept:
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids = chosen[:, None]
        if len(kept) <= (1 - SHARE_ENDED) * len(live):
            at = torch.tensor(kept, device=mask.device)
            cache.batch_select_indices(at)
            ids, mask, positions = ids[at], mask[at], positions[at]
            live = [live[place] for place in kept]
    return [Sampled(tuple(text), end) for text, end in zip(texts, ended, strict=True)]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token id for each row of logits (n, vocabulary)."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]
