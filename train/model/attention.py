"""Attention over many rows in one sequence, with no padding and none across rows.

All rows of a step lie one after another in a batch of one, after the tokens with which every row begins (the chat
template's system text), which are computed once:

    [ shared prefix | row 0 | row 1 | ... ]      a token sees the prefix and what precedes it in its own row

That is exactly what each row would compute alone, at fewer tokens: every linear layer runs over real tokens only.

A CPU attends row by row. A GPU would wait for so many small launches: there the rows are laid side by side, padded to
the longest for the attention alone, and computed in one.
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

    def padding(self) -> "Padding":
        """Where a GPU finds the rows' tokens for attention in one piece."""
        longest = max(self.row_tokens, default=0)
        starts = torch.tensor([self.prefix_tokens + sum(self.row_tokens[:row]) for row in range(len(self.row_tokens))])
        inside = torch.arange(longest)[None] < torch.tensor(self.row_tokens)[:, None]
        # what lies behind a row's end is some other token: no query of the row itself sees it
        rows = (starts[:, None] + torch.arange(longest)[None]).clamp_(max=max(0, self.n_tokens - 1))
        prefix = torch.arange(self.prefix_tokens)[None].expand(len(rows), -1)
        keys = torch.cat([prefix, rows], dim=1)
        return Padding(rows.flatten(), keys.flatten(), inside.flatten().nonzero()[:, 0])

    def mask(self) -> Tensor:
        """What the longest row may see, (longest, prefix + longest); shorter rows take its upper left part."""
        longest = max(self.row_tokens, default=0)
        return torch.ones(longest, self.prefix_tokens + longest, dtype=torch.bool).tril(self.prefix_tokens)


@dataclass(frozen=True)
class Padding:
    """Rows side by side, all as long as the longest.

    Attributes:
        rows_at: (rows * longest,) places of the rows' tokens in the sequence.
        keys_at: (rows * (prefix + longest),) places of what each row may look at.
        back_at: (tokens after the prefix,) places in `rows_at` that are tokens of the row itself, in their order.
    """

    rows_at: Tensor
    keys_at: Tensor
    back_at: Tensor

    def to(self, device: str) -> "Padding":
        """The same on another device."""
        return Padding(self.rows_at.to(device), self.keys_at.to(device), self.back_at.to(device))


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
    padding: Padding | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query (1, heads, n, d), key and value (1, kv heads, n, d).

    Args:
        padding: given, all rows are computed in one piece.
        sliding_window: of this layer: a token sees itself and so many less one before it.

    Returns:
        (1, n, heads, d) as transformers wants it, and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    prefix = layout.prefix_tokens
    if sliding_window is not None and sliding_window < row_mask.shape[1]:
        row_mask = row_mask.triu(prefix - sliding_window + 1)
    prefix_mask = None
    if sliding_window is not None and sliding_window < prefix:
        prefix_mask = row_mask.new_ones(prefix, prefix).tril().triu(1 - sliding_window)
    if padding is not None:
        rows = _padded_rows(query, key, value, scaling, layout, row_mask, padding)
        if prefix:
            first = [tensor[:, :, :prefix] for tensor in (query, key, value)]
            rows = torch.cat([_of_prefix(first, prefix_mask, scaling), rows], dim=2)
        return rows.transpose(1, 2), None
    lengths = [prefix, *layout.row_tokens]
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outs = []
    if prefix:
        outs.append(_of_prefix([queries[0], keys[0], values[0]], prefix_mask, scaling))
    for q, k, v in zip(queries[1:], keys[1:], values[1:], strict=True):
        n = q.shape[2]
        if prefix:
            k, v = torch.cat([keys[0], k], dim=2), torch.cat([values[0], v], dim=2)
        mask = row_mask[:n, : prefix + n]
        outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling))
    return torch.cat(outs, dim=2).transpose(1, 2), None


def _of_prefix(tensors: list[Tensor], mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of the prefix to itself, within a window where there is a mask."""
    q, k, v = tensors
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _padded_rows(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, layout: Layout, row_mask: Tensor, padding: Padding
) -> Tensor:
    """Attention of all tokens after the prefix, (1, heads, n - prefix, d), in one call."""
    n_rows, heads, width = len(layout.row_tokens), query.shape[1], query.shape[3]

    def side_by_side(tensor: Tensor, at: Tensor) -> Tensor:
        return tensor[0].index_select(1, at).view(heads, n_rows, -1, width).transpose(0, 1)

    out = F.scaled_dot_product_attention(
        side_by_side(query, padding.rows_at),
        side_by_side(key, padding.keys_at),
        side_by_side(value, padding.keys_at),
        attn_mask=row_mask,
        scale=scaling,
    )
    return out.transpose(0, 1).reshape(heads, -1, width).index_select(1, padding.back_at)[None]


def register() -> str:
    """Makes the function known to transformers; returns the name for `attn_implementation`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    return NAME
