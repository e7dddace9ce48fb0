"""How far one side's logits are from the reference's: largest error, KL divergence, agreement on the best token."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """How far llama.cpp's logits are from the reference's, over the tokens of one prompt and its answer.

    Attributes:
        max_logit_error: largest difference of a logit.
        mean_kl: KL(reference || llama.cpp) in nats, mean over tokens.
        top1: share of tokens where both like the same next token best.
    """

    max_logit_error: float
    mean_kl: float
    top1: float
    n_tokens: int

    @classmethod
    def between(cls, reference: Logits, ours: Logits) -> "Difference":
        """Compares two arrays of logits, (n_tokens, n_vocab) each."""
        errors, kls, same = [], [], 0
        # Row by row: with 150,000 words, float64 copies of all rows would be gigabytes.
        for theirs_row, our_row in zip(reference, ours, strict=True):
            errors.append(float(np.abs(theirs_row - our_row).max()))
            log_p, log_q = _log_softmax(theirs_row), _log_softmax(our_row)
            kls.append(max(0.0, float(np.sum(np.exp(log_p) * (log_p - log_q)))))
            same += int(theirs_row.argmax() == our_row.argmax())
        n = len(errors)
        return cls(max(errors), sum(kls) / n, same / n, n)


def _log_softmax(row: Logits) -> npt.NDArray[np.float64]:
    shifted = row.astype(np.float64) - float(row.max())
    logs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return logs
