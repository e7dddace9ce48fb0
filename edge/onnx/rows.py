"""Several answers at once on onnxruntime, beside a session's own sequence.

Each answer has a row of a KV cache of its own. A prompt is computed alone, in its row; a token of every answer in one
run of the graph, in which a row that is not asked for computes nothing of use, behind what it holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from ..llama.abort import AbortFlag
from ..llama.sampling import Sampler
from ..options import DEFAULT_BUDGET_BYTES
from ..prefix.chunks import AdapterState, KvRecord, Section, chunks_of, run_through
from .engine import OnnxEngine
from .lane import OnnxLane, Pairs


@dataclass(frozen=True)
class Aside:
    """One row that was laid aside: its keys and values, and the book of them."""

    record: KvRecord
    state: AdapterState
    values: dict[str, npt.NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        """Of the keys and values."""
        return sum(values.nbytes for values in self.values.values())


class OnnxRows:
    """Rows of an engine, made for this and closed with it.

    Args:
        pairs: what each adapter state binds, see `OnnxLane`.
    """

    def __init__(self, engine: OnnxEngine, pairs: Pairs) -> None:
        self._engine = engine
        self._pairs = pairs
        self._sequences: Sequence[int] = ()
        # What each row holds; a step that does not ask for a row writes behind it.
        self._lanes: dict[int, OnnxLane] = {}
        self._states: dict[int, AdapterState] = {}

    @property
    def beginnings_bytes(self) -> int:
        """There are none but in the rows."""
        return 0

    @property
    def n_evicted(self) -> int:
        """There are none but in the rows."""
        return 0

    @property
    def held_tokens(self) -> int:
        """Whose keys and values the rows hold."""
        return sum(lane.n_tokens for lane in self._lanes.values())

    def kept(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section], fast: bool) -> int:
        """How many tokens of a prompt a row holds that need not be computed."""
        lane = self._lanes.get(sequence)
        if lane is None:
            return 0
        exact = lane.record.reusable(prompt, chunks_of(sections))
        return max(exact, lane.record.common(prompt, sections)) if fast else exact

    def fill(
        self,
        sequence: int,
        prompt: Sequence[int],
        sections: Sequence[Section],
        fast: bool = False,
        flag: AbortFlag | None = None,
    ) -> Iterator[int]:
        """Computes a prompt in a row, chunk by chunk, after what another row holds of it already.

        Args:
            flag: once it is set, the chunk that is being computed ends.

        Yields:
            How many tokens of the prompt the row holds: first what was kept, then after each chunk.

        Raises:
            EngineError: onnxruntime fails, the flag is set, or the output is no number.
        """
        wanted = chunks_of(sections)
        like = {row: lane.record.reusable(prompt, wanted) for row, lane in self._lanes.items()}
        source = max(like, key=lambda row: (like[row], row == sequence), default=sequence)
        lane = self._lanes.setdefault(sequence, OnnxLane(self._engine, self._pairs, sequence))
        own = self.kept(sequence, prompt, sections, fast)
        if source != sequence and like[source] > own:
            lane.record = self._lanes[source].record.beginning(like[source])
            self._engine.copy(source, sequence, like[source])
        self._states[sequence] = sections[-1].state
        filling = lane.fill(prompt, sections, fast)
        while True:
            with self._engine.stopped_by(flag):
                at = next(filling, None)
            if at is None:
                return
            self._sequences = (sequence,)
            yield at

    def prefill(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt in a row; how many of its tokens were kept."""
        return run_through(self.fill(sequence, prompt, sections))

    def step(self, token_ids: Sequence[int], sequences: Sequence[int], flag: AbortFlag | None = None) -> None:
        """Computes one more token for each of several rows, which rise and have the same adapters to come.

        Args:
            flag: once it is set, the step ends soon; the rows are as they were.
        """
        n_rows = max(sequences) + 1
        lanes = [self._lanes.setdefault(row, OnnxLane(self._engine, self._pairs, row)) for row in range(n_rows)]
        ids = [0] * n_rows
        for token_id, sequence in zip(token_ids, sequences, strict=True):
            ids[sequence] = token_id
        for row, lane in enumerate(lanes):
            if row not in sequences and lane.n_tokens >= self._engine.n_ctx_tokens:
                # An answer that ended with the context: a place is left to write behind.
                lane.record.cut(lane.n_tokens - 1)
        self._sequences = sequences
        # A batch has one choice of adapters.
        numbers = lanes[sequences[0]].numbers(self._states[sequences[0]])
        with self._engine.stopped_by(flag):
            self._engine.step(ids, [lane.n_tokens for lane in lanes], **numbers)
        for token_id, sequence in zip(token_ids, sequences, strict=True):
            lanes[sequence].record.add_answer(token_id)

    def sample(self, sampler: Sampler, i: int) -> int:
        """Chooses a token from the logits of the i-th of the last step; -1: from those of the last prompt.

        Raises:
            EngineError: as `Sampler.sample`; of that row nothing is read again.
        """
        try:
            return sampler.sample_row(self.logits(i))
        except EngineError:
            self._lanes[self._sequences[i]].spoiled()
            raise

    def logits(self, i: int) -> npt.NDArray[np.float32]:
        """What `sample` chooses from, shape (n_vocab,): valid until the next computation."""
        return self._engine.row if i < 0 else self._engine.step_rows[self._sequences[i]]

    def lay_aside(self, sequence: int) -> Aside:
        """Takes a row's sequence out, to be put back by `put_back`, bit for bit."""
        lane = self._lanes.pop(sequence)
        return Aside(lane.record, self._states[sequence], self._engine.take(sequence, lane.n_tokens))

    def put_back(self, sequence: int, aside: Aside) -> None:
        """Puts what was laid aside into any row."""
        self._engine.put(sequence, aside.values)
        lane = self._lanes[sequence] = OnnxLane(self._engine, self._pairs, sequence)
        lane.record, self._states[sequence] = aside.record, aside.state

    def aside_bytes(self, sequence: int) -> int:
        """What `lay_aside` would hold."""
        return self._engine.token_bytes * self._lanes[sequence].n_tokens

    def has_room(self, n_bytes: int) -> bool:
        """Whether so much may be laid aside in all."""
        return n_bytes <= DEFAULT_BUDGET_BYTES

    def hold(self, n_bytes: int) -> None:
        """Nothing else is kept that could give way."""

    def release(self, sequence: int) -> None:
        """The row is free; what it holds stays, for others that begin alike."""

    def flush(self) -> None:
        """Nothing is kept on disk."""

    def close(self) -> None:
        """Frees the rows."""
        self._engine.close()
