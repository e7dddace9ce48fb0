"""Log-probabilities of the whole vocabulary after each token of a text, on either engine.

after = functools.partial(log_probs_after, context)        # or onnx_log_probs_after, engine
after(ids, 256)                                            # (len(ids) - 1 - 256, vocabulary), in nats
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.llama.context import Context
from ...edge.llama.model import Model
from ...edge.llama.sampling import check_numbers
from ...edge.onnx.adapter import Array
from ...edge.onnx.engine import OnnxEngine

Floats = npt.NDArray[np.float32]
# Token ids and a place -> log-probabilities after each from there on but the last: (len(ids) - 1 - place, vocabulary)
LogProbs = Callable[[Sequence[int], int], Floats]


def log_softmax(logits: Floats) -> Floats:
    """Rows of log-probabilities, shape as given (n, vocabulary), in nats; EngineError where a row is no numbers."""
    check_numbers(logits.max(axis=1))
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    rows: Floats = (shifted - total).astype(np.float32)
    return rows


def scoring_context(model: Model, n_ctx_tokens: int, threads: int) -> Context:
    """A context for the second half of chunks of so many tokens."""
    half = -(-n_ctx_tokens // 2)
    return Context(model, n_ctx_tokens=n_ctx_tokens, n_batch_tokens=half, n_outputs_max=half, threads=threads)


def log_probs_after(context: Context, ids: Sequence[int], first: int) -> Floats:
    """On llama.cpp, in a context that has room for as many outputs (`n_outputs_max`) and is cleared first."""
    context.clear()
    context.decode(ids[:first], 0, outputs="none")
    context.decode(ids[first:], first, outputs="all")
    return log_softmax(np.stack([context.logits_view(i) for i in range(len(ids) - 1 - first)]))


def onnx_log_probs_after(
    engine: OnnxEngine, ids: Sequence[int], first: int, *, key: Any = None, pairs: Mapping[str, Array] | None = None
) -> Floats:
    """On onnxruntime; `key` and `pairs` as `OnnxEngine.decode` takes them."""
    engine.decode(ids[:first], 0, key=key, pairs=pairs)
    engine.decode(ids[first:], first, key=key, pairs=pairs, all_rows=True)
    assert engine.rows is not None
    return log_softmax(engine.rows[:-1])
