"""Attention over many rows in one sequence, with no padding and none across rows.

All rows of a step lie one after another in a batch of one, after the tokens with which every row begins (the chat
template's system text), which are computed once:

    [ shared prefix | row 0 | row 1 | ... ]      a token sees the prefix and what precedes it in its own row

That is exactly what each row would compute alone, at fewer tokens: every linear layer runs over real tokens only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "slm_edge_packed"


@dataclass(frozen=True)
class Layout:
    """Where the rows lie: the lengths in tokens of the shared prefix and of each row after it."""

    prefix_tokens: int
    row_tokens: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return self.prefix_tokens + sum(self.row_tokens)

    def positions(self) -> Tensor:
        """Position of every token in its own row, (1, n_tokens): the prefix counts for every row."""
        rows = [torch.arange(self.prefix_tokens, self.prefix_tokens + n) for n in self.row_tokens]
        return torch.cat([torch.arange(self.prefix_tokens), *rows])[None]

    def mask(self) -> Tensor:
        """What the longest row may see, (longest, prefix + longest); shorter rows take its upper left part."""
        longest = max(self.row_tokens, default=0)
        return torch.ones(longest, self.prefix_tokens + longest, dtype=torch.bool).tril(self.prefix_tokens)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    *,
    layout: Layout,
    row_mask: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query (1, heads, n, d), key and value (1, kv heads, n, d).

    Returns:
        (1, n, heads, d) as transformers wants it, and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    prefix = layout.prefix_tokens
    lengths = [prefix, *layout.row_tokens]
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outs = []
    if prefix:
        outs.append(F.scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, scale=scaling))
    for q, k, v in zip(queries[1:], keys[1:], values[1:], strict=True):
        n = q.shape[2]
        if prefix:
            k, v = torch.cat([keys[0], k], dim=2), torch.cat([values[0], v], dim=2)
        mask = row_mask[:n, : prefix + n]
        outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling))
    return torch.cat(outs, dim=2).transpose(1, 2), None


def register() -> str:
    """Makes the function known to transformers; returns the name for `attn_implementation`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    return NAME
