"""Perplexity of a text, and the KL divergence from a reference model on it, chunk by chunk as llama.cpp measures them.

    for chunk in score_chunks(partial(log_probs_after, context), vocab, chunks_of(vocab, text, 512)): ...
    found = summary(records)          # {"perplexity": ..., "kl": ..., "same_top": ...}

The text is cut into chunks of `n_ctx` tokens; each is computed by itself, its first token replaced by BOS where the
model wants one, and the tokens of its second half but the first are scored (llama.cpp, tools/perplexity). That tool
rounds the reference's log-probabilities to 16 bits; ours are exact.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...edge.errors import InputError
from ...edge.llama.binding import lib
from ...edge.llama.vocab import Vocab
from ..scores.answers import Record
from ..stats import Interval, mean
from .log_probs import Floats, LogProbs


@dataclass(frozen=True)
class ChunkScore:
    """One chunk: nats per scored token, and per token the divergence from the reference if there is one.

    Attributes:
        nll: mean negative log-likelihood of the scored tokens.
        kl: KL(reference || model) at each scored position, in nats; empty without a reference.
        same_top: share of positions at which both have the same likeliest token.
    """

    n_scored: int
    nll: float
    kl: tuple[float, ...] = ()
    same_top: float | None = None

    def scores(self) -> dict[str, float]:
        """What the answers' file keeps as the chunk's scores."""
        found = {"nll": self.nll}
        if self.kl:
            assert self.same_top is not None
            found |= {"kl": math.fsum(self.kl) / len(self.kl), "same_top": self.same_top}
        return found

    def text(self) -> str:
        """What the file keeps as the chunk's text: KL by token, for percentiles."""
        return json.dumps({"kl": [float(f"{value:.5g}") for value in self.kl]}) if self.kl else ""


def chunks_of(vocab: Vocab, text: str, n_ctx_tokens: int) -> list[list[int]]:
    """The whole chunks of a text, in tokens.

    Raises:
        InputError: there is not one whole chunk.
    """
    ids = vocab.encode(text, special=False, add_bos=True)
    n = len(ids) // n_ctx_tokens
    if n == 0:
        raise InputError(f"the text has {len(ids)} tokens; one chunk has {n_ctx_tokens}", hint="a smaller --ctx")
    return [ids[i * n_ctx_tokens : (i + 1) * n_ctx_tokens] for i in range(n)]


def wants_bos(vocab: Vocab) -> bool:
    """Whether the model puts a BOS before every text."""
    return bool(lib().llama_vocab_get_add_bos(vocab._vocab))


def score_chunk(
    after: LogProbs, ids: Sequence[int], reference: LogProbs | None = None, first: int | None = None
) -> ChunkScore:
    """Scores one chunk by a model, beside a reference if there is one.

    Args:
        first: place of the token after which scoring begins, 1 or more; None: the middle.
    """
    first = len(ids) // 2 if first is None else first
    return compared(after(ids, first), ids[first + 1 :], None if reference is None else reference(ids, first))


def compared(ours: Floats, targets: Sequence[int], theirs: Floats | None) -> ChunkScore:
    """The score of log-probabilities (n, vocabulary) of `targets`, beside a reference's if there is one."""
    nll = float(-ours[np.arange(len(targets)), targets].mean(dtype=np.float64))
    if theirs is None:
        return ChunkScore(len(targets), nll)
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1, dtype=np.float64)
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return ChunkScore(len(targets), nll, tuple(float(value) for value in kl), float(same.mean()))


def score_chunks(
    after: LogProbs, vocab: Vocab, chunks: Sequence[Sequence[int]], reference: LogProbs | None = None
) -> Iterator[ChunkScore]:
    """Scores chunks one after the other."""
    bos = vocab.bos_id if wants_bos(vocab) else None
    for ids in chunks:
        yield score_chunk(after, ids if bos is None else [bos, *ids[1:]], reference)


def summary(records: Sequence[Record]) -> dict[str, object]:
    """Perplexity, mean KL and agreement with 95 % intervals from resampled chunks, and KL's percentiles.

    Tokens of a chunk depend on each other, so chunks are what is resampled.
    """
    nll = mean([record.scores["nll"] for record in records])
    perplexity = Interval(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high), nll.method)
    found: dict[str, object] = {"n_chunks": len(records), "perplexity": perplexity.as_dict(), "nll": nll.as_dict()}
    if all("kl" in record.scores for record in records):
        values = np.concatenate([np.asarray(json.loads(record.text)["kl"]) for record in records])
        at = (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
        found["kl"] = mean([record.scores["kl"] for record in records]).as_dict()
        found["kl_percentiles"] = {f"{100 * q:g}": float(np.quantile(values, q)) for q in at}
        found["same_top"] = mean([record.scores["same_top"] for record in records]).as_dict()
    return found
