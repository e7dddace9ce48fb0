"""The ONNX column of a proof: the same tokens through onnxruntime, compared with the same reference.

side = OnnxSide("onnx-folder", "math.onnx_adapter", threads=1)
side.compare(ids, n_prompt_tokens, theirs, theirs_alone)
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...edge.llama.sampling import check_numbers
from ...edge.onnx.adapter import OnnxAdapter
from ...edge.onnx.engine import OnnxEngine
from ...edge.onnx.folder import OnnxBase
from .difference import Difference
from .effect import Change

# A logit may differ by this much where everything is F32; seen are 1e-5 to 1e-4.
MAX_ONNX_LOGIT_ERROR: Final = 1e-3


@dataclass(frozen=True)
class OnnxResult:
    """One prompt's proof on onnxruntime.

    Attributes:
        adapted, base: differences from the reference with the adapter, and of the base alone.
        change: what the adapter changes, in the reference and on onnxruntime.
        greedy_equal: onnxruntime would have chosen the words of the reference's answer.
    """

    adapted: Difference
    base: Difference
    change: Change
    greedy_equal: bool


class OnnxSide:
    """The ONNX form of a base with one adapter.

    Attributes:
        exact: all weights are F32, so single logits can be bounded.

    Raises:
        SlmEdgeError: as `OnnxBase.open` and `OnnxAdapter.open`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], adapter: str | os.PathLike[str], threads: int | None = None
    ) -> None:
        self._base = OnnxBase.open(folder)
        self._adapter = OnnxAdapter.open(adapter, self._base)
        self._threads = threads
        self.fingerprint = self._base.fingerprint
        self.exact = self._base.dtype == "f32" and set(self._base.weights) == {"F32"}

    def logits(self, ids: Sequence[int], *, adapter: bool = True) -> npt.NDArray[np.float32]:
        """Logits after each token, (n_tokens, n_vocab)."""
        with_lora: dict[str, Any] = {"key": self._adapter.sha256, "pairs": self._adapter.arrays}
        self._engine(len(ids)).decode(ids, 0, all_rows=True, **(with_lora if adapter else {}))
        rows = self._last.rows
        assert rows is not None
        return rows

    def _engine(self, n_tokens: int) -> OnnxEngine:
        if not hasattr(self, "_last") or self._last.n_ctx_tokens < n_tokens:
            self._last: OnnxEngine = OnnxEngine(self._base, n_ctx_tokens=n_tokens, threads=self._threads)
        return self._last

    def compare(
        self,
        ids: Sequence[int],
        n_prompt_tokens: int,
        theirs: npt.NDArray[np.float32],
        theirs_alone: npt.NDArray[np.float32],
    ) -> OnnxResult:
        """Compares one prompt with its answer; `theirs` are the reference's logits of the same tokens."""
        ours, ours_alone = self.logits(ids), self.logits(ids, adapter=False)
        for rows in (ours, ours_alone):
            check_numbers(rows)
        chosen = theirs[n_prompt_tokens - 1 :].argmax(axis=1)
        greedy_equal = bool((ours[n_prompt_tokens - 1 :].argmax(axis=1) == chosen).all())
        return OnnxResult(
            Difference.between(theirs, ours),
            Difference.between(theirs_alone, ours_alone),
            Change.between(theirs, theirs_alone, ours, ours_alone),
            greedy_equal,
        )


def failures_of(results: Sequence[OnnxResult], exact: bool, bounds: dict[str, float]) -> list[str]:
    """Why the ONNX column does not pass.

    Args:
        exact: base and adapter are F32 on both engines: then each logit is bounded by `MAX_ONNX_LOGIT_ERROR`.
        bounds: else these, of KL and top-1, as they were applied to the GGUF.
    """
    n_tokens = sum(result.adapted.n_tokens for result in results)
    found = {
        "max_logit_error": max(result.adapted.max_logit_error for result in results),
        "max_kl": sum(result.adapted.mean_kl * result.adapted.n_tokens for result in results) / n_tokens,
        "min_top1": sum(result.adapted.top1 * result.adapted.n_tokens for result in results) / n_tokens,
    }
    limits = {"max_logit_error": MAX_ONNX_LOGIT_ERROR} if exact else bounds
    # Written so that NaN fails.
    failures = [
        f"ONNX: {name.replace('_', ' ')} is {found[name]:.4g}, the bound is {limit:.4g}"
        for name, limit in limits.items()
        if not (found[name] >= limit if name.startswith("min") else found[name] <= limit)
    ]
    changes = Change.of_all(result.change for result in results)
    return failures + [f"ONNX: {failure}" for failure in changes.failures("onnxruntime")]
