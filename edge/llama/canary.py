"""The proof that an adapter acts: a few tokens' logits with it differ from those without, and are numbers."""

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from .context import Context
from .model import Adapter, Model

CANARY = "The answer is 42"


class Canary:
    """Tries adapters in a small context of its own, so that no session's KV cache is touched.

    The context lives only while it is needed: what an adapter of a small model costs to try is a few milliseconds.
    """

    def __init__(self, model: Model, threads: int | None) -> None:
        self._model = model
        self._threads = threads
        self._base_logits: npt.NDArray[np.float32] | None = None

    def check(self, adapter: Adapter, scale: float, *, must_act: bool = True) -> None:
        """Raises EngineError when the adapter gives NaN or infinity, or moves no logit where it must."""
        ids = self._model.vocab.encode(CANARY)
        n_tokens = len(ids)
        with Context(self._model, n_ctx_tokens=n_tokens, n_batch_tokens=n_tokens, threads=self._threads) as context:
            if self._base_logits is None:
                context.decode(ids, 0)
                self._base_logits = context.logits()
                context.clear()
            context.set_adapters([(adapter, scale)])
            context.decode(ids, 0)
            logits = context.logits()
        if not np.isfinite(logits).all():
            raise EngineError(
                f"with this adapter at the scale {scale:g} the model's output is not a number",
                where=adapter.path,
                hint="its values overflow; take a smaller scale, or export it again as F32 or BF16",
            )
        if must_act and np.array_equal(logits, self._base_logits):
            raise EngineError(
                "the adapter changes nothing: all logits are the same with and without", where=adapter.path
            )


def check_numbers(logits: npt.NDArray[np.float32]) -> None:
    """Raises EngineError when logits, shape (n_vocab,), are no numbers, from which any token might be chosen."""
    # NaN is the maximum wherever it stands; minus infinity is a token that is left out.
    if not np.isfinite(logits.max()):
        raise EngineError(
            "the model's output is not a number",
            hint="values of the base or an adapter are damaged or overflow; slm-edge pack verify checks their bytes",
        )
