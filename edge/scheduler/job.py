"""A request on its way through an engine, from the queue to its last token."""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..answer.growing import Growing
from ..answer.stream import Request
from ..llama.sampling import Sampler
from .adapters import Bound
from .ticket import Piece, Ticket

MOST_LOGPROBS = 20


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        sampler: made when it was submitted, so that rules that cannot be used are told then.
        n_top: how many of the likeliest tokens are told with each; None: not even the token's own probability.
        row: where it is computed; None while it waits.
        growing: its answer; None while it waits.
    """

    ticket: Ticket
    request: Request
    bound: Bound
    sampler: Sampler
    n_top: int | None = None
    row: int | None = None
    growing: Growing | None = None
    arrived_s: float = field(default_factory=time.perf_counter)

    @property
    def flow(self) -> tuple[str, tuple[tuple[str, float], ...]]:
        """Whose and what for: between these the time is shared."""
        return self.ticket.key, self.bound.choice.scales


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
