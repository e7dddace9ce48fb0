"""Several answers at once on onnxruntime: what `batcher.Batcher` computes them in, beside a session's own sequence.

Each answer has a row of a KV cache of its own. A prompt is computed alone, in its row; a token of every answer in one
run of the graph, in which a row that is free computes nothing of use.
"""

from collections.abc import Sequence
from typing import Any

from .onnx_engine import OnnxEngine
from .onnx_lane import Pairs
from .prefix import AdapterState, Section, chunks_of
from .sampling import Sampler


class OnnxRows:
    """Rows of an engine, made for this and closed with it.

    Args:
        pairs: what each adapter state binds, see `OnnxLane`.
    """

    def __init__(self, engine: OnnxEngine, pairs: Pairs) -> None:
        self._engine = engine
        self._pairs = pairs
        self._state = AdapterState()
        self._sequences: Sequence[int] = ()

    def prefill(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt in a row; how many of its tokens were kept from before: none."""
        at = 0
        for end, state in chunks_of(sections):
            self._state = state
            self._engine.decode(prompt[at:end], at, row=sequence, **self._numbers())
            at = end
        return 0

    def step(self, token_ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Computes one token for each of several rows."""
        n_rows = max(sequences) + 1
        ids, places = [0] * n_rows, [0] * n_rows
        for token_id, position, sequence in zip(token_ids, positions, sequences, strict=True):
            ids[sequence], places[sequence] = token_id, position
        self._sequences = sequences
        self._engine.step(ids, places, **self._numbers())

    def sample(self, sampler: Sampler, i: int) -> int:
        """Chooses a token from the logits of the i-th of the last step; -1: from those of the last prompt."""
        engine = self._engine
        return sampler.sample_row(engine.row if i < 0 else engine.step_rows[self._sequences[i]])

    def release(self, sequence: int) -> None:
        """The row is free: what stands in it is overwritten."""

    def flush(self) -> None:
        """Nothing is kept on disk."""

    def close(self) -> None:
        """Frees the rows."""
        self._engine.close()

    def _numbers(self) -> dict[str, Any]:
        state = self._state
        return {"key": state, "pairs": self._pairs[state]} if state.adapters else {}
