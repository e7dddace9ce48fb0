"""Whether a base ever learned the token that is to end answers.

    check_end_learned(head, states, token_id, base)

A base that was only pretrained holds rows for a chat template's tokens all the same, and nothing ever told them from
those of the thousands that no text uses. An adapter moves states, not rows: it comes to predict all of these tokens at
once, each as likely as the others, and no answer ends.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from ...edge.errors import UnsupportedError
from .bases import Base
from .frozen import HEAD_ROWS, FrozenLinear

# Share of its length: of Gemma 3 270M as it was pretrained 6,021 rows lie so near, of tuned models up to 30
NEAR: Final = 0.2
FEWEST_NEAR: Final = 16


def _rows(head: nn.Linear) -> Iterator[Tensor]:
    """The rows of a head, f32 (rows, width) at a time."""
    for start in range(0, head.out_features, HEAD_ROWS):
        if isinstance(head, FrozenLinear):
            yield head.dense(start, start + HEAD_ROWS)
        else:
            yield head.weight[start : start + HEAD_ROWS].float()


def near_rows(head: nn.Linear, token_id: int) -> tuple[Tensor, Tensor]:
    """A token's row (width), and all others (n, width) within `NEAR` of its own length from it."""
    place, at = divmod(token_id, HEAD_ROWS)
    own = next(rows[at] for number, rows in enumerate(_rows(head)) if number == place)
    found = []
    for number, rows in enumerate(_rows(head)):
        is_near = (rows - own).norm(dim=1) <= NEAR * own.norm()
        if number == place:
            is_near[at] = False
        found.append(rows[is_near])
    return own, torch.cat(found)


@torch.no_grad()
def check_end_learned(head: nn.Linear, states: Tensor, token_id: int, base: Base) -> None:
    """Refuses a base that cannot tell the token with which its chat template ends an answer from others.

    Args:
        head: of the base.
        states: the base's last hidden states where an answer ends, (rows, width).
        token_id: the token that ends it.

    Raises:
        UnsupportedError: many tokens have about the same row, and the base finds some of them likelier at these places.
    """
    own, near = near_rows(head, token_id)
    if len(near) < FEWEST_NEAR:
        return
    likelier = states.float() @ near.T >= (states.float() @ own)[:, None]
    if likelier.any(dim=1).float().mean() < 0.5:
        return
    raise UnsupportedError(
        f"the chat template ends an answer with {base.token_text(token_id)!r}, which this base never learned: "
        f"{len(near)} other tokens have about the same row in its head, and where answers end it prefers "
        f"{likelier.sum(dim=1).float().mean():.0f} of them; an adapter moves no row, and its answers would not end",
        where=base.path,
        hint="take the model that was tuned for chat, or a template that ends answers with a token of pretraining: "
        "slm-edge export base MODEL -o base.gguf --type keep --chat-template FILE.jinja, with {{ eos_token }} there",
    )
