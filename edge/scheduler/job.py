"""A request on its way through an engine, from the queue to its last token."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ..answer.engine import Aside
from ..answer.growing import Growing
from ..answer.stream import Request
from ..gguf.chat_template import Message
from ..llama.abort import AbortFlag
from ..llama.sampling import Sampler
from ..options import BATCH_TOKENS, CHUNK_TOKENS
from .adapters import Bound
from .ticket import Piece, Ticket

MOST_LOGPROBS: Final = 20
# Adapters with their scales, by the session's names: what one unit of work is computed under
Group = tuple[tuple[str, float], ...]


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        sampler: made when it was submitted, so that rules that cannot be used are told then.
        n_top: how many of the likeliest tokens are told with each; None: not even the token's own probability.
        flag: stops what is being computed of its prompt.
        row: where it is computed; None while it waits.
        growing: its answer; None until it was begun.
        filling: computes its prompt; None before and after that.
        n_filled: how much of the prompt is there.
        aside: what it had computed, while it waits for a row again.
        talk: the conversation, where the router chose the adapter.
    """

    ticket: Ticket
    request: Request
    bound: Bound
    sampler: Sampler
    flag: AbortFlag
    n_top: int | None = None
    row: int | None = None
    growing: Growing | None = None
    filling: Iterator[int] | None = None
    n_filled: int = 0
    aside: Aside | None = None
    talk: Sequence[Message] | None = None
    arrived_s: float = field(default_factory=time.perf_counter)

    @property
    def group(self) -> Group:
        """What computes it."""
        return self.bound.choice.scales

    @property
    def flow(self) -> tuple[str, Group]:
        """Whose and what for: between these the time is shared."""
        return self.ticket.key, self.group

    @property
    def next_tokens(self) -> int:
        """How long the next part of its prompt is, about; 0 once it is there."""
        return min(len(self.request.prompt) - self.n_filled, BATCH_TOKENS if self.n_filled else CHUNK_TOKENS)

    @property
    def name(self) -> str:
        """Of the adapter, in statistics."""
        return self.bound.name or "base"


def piece_of(
    text: str, token_id: int, logits: npt.NDArray[np.float32] | None, n_top: int | None, thinking: str = ""
) -> Piece:
    """A token with its text, and with probabilities where logits are given, shape (n_vocab,)."""
    if logits is None or n_top is None:
        return Piece(text, token_id, thinking=thinking)
    most = float(logits.max())
    log_sum = most + float(np.log(np.exp(logits - most).sum(dtype=np.float64)))
    ids = np.argpartition(-logits, n_top)[:n_top] if n_top else np.arange(0)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    # What rules do not allow is none of the likeliest.
    top = tuple((int(i), float(logits[i]) - log_sum) for i in ids if logits[i] > -np.inf)
    return Piece(text, token_id, float(logits[token_id]) - log_sum, top, thinking)
