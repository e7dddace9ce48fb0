"""Several answers at once on onnxruntime: what `batcher.Batcher` computes them in, beside a session's own sequence.

Each answer has a row of a KV cache of its own. A prompt is computed alone, in its row; a token of every answer in one
run of the graph, in which a row that is free computes nothing of use.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..llama.sampling import Sampler
from ..prefix.chunks import Section, chunks_of
from .engine import OnnxEngine
from .lane import OnnxLane, Pairs


class OnnxRows:
    """Rows of an engine, made for this and closed with it.

    Args:
        pairs: what each adapter state binds, see `OnnxLane`.
    """

    def __init__(self, engine: OnnxEngine, pairs: Pairs) -> None:
        self._engine = engine
        self._pairs = pairs
        self._sequences: Sequence[int] = ()
        # What each row holds of its last prompt; a step of a free row writes behind it.
        self._lanes: dict[int, OnnxLane] = {}

    def prefill(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt in a row, after what another row holds of it already; how many tokens that were."""
        wanted = chunks_of(sections)
        like = {row: lane.record.reusable(prompt, wanted) for row, lane in self._lanes.items()}
        source = max(like, key=lambda row: (like[row], row == sequence), default=sequence)
        lane = self._lanes.setdefault(sequence, OnnxLane(self._engine, self._pairs, sequence))
        if source != sequence:
            lane.record = self._lanes[source].record.beginning(like[source])
            self._engine.copy(source, sequence, like[source])
        return lane.begin(prompt, sections)

    def step(self, token_ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Computes one token for each of several rows."""
        ids = [0] * (max(sequences) + 1)
        places = [self._lanes[row].n_tokens for row in range(len(ids))]
        for token_id, position, sequence in zip(token_ids, positions, sequences, strict=True):
            ids[sequence], places[sequence] = token_id, position
        self._sequences = sequences
        # A batch has one choice of adapters.
        lane = self._lanes[sequences[0]]
        self._engine.step(ids, places, **lane.numbers(lane.record.chunks[-1][1]))

    def sample(self, sampler: Sampler, i: int) -> int:
        """Chooses a token from the logits of the i-th of the last step; -1: from those of the last prompt."""
        return sampler.sample_row(self.logits(i))

    def logits(self, i: int) -> npt.NDArray[np.float32]:
        """What `sample` chooses from, shape (n_vocab,): valid until the next computation."""
        return self._engine.row if i < 0 else self._engine.step_rows[self._sequences[i]]

    def release(self, sequence: int) -> None:
        """The row is free; its prompt stays, for others that begin alike."""

    def flush(self) -> None:
        """Nothing is kept on disk."""

    def close(self) -> None:
        """Frees the rows."""
        self._engine.close()
