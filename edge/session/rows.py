"""Several answers at once on llama.cpp, one sequence of a context each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import EngineError
from ..llama.abort import AbortFlag, stopped_by
from ..llama.context import Context
from ..llama.model import Adapter
from ..llama.sampling import Sampler
from ..prefix.cache import PrefixCache
from ..prefix.chunks import KvRecord, Section, run_through

if TYPE_CHECKING:
    from ..llama.kv_bytes import Blob


@dataclass(frozen=True)
class Aside:
    """One sequence that was laid aside: its keys and values, and the books of them."""

    record: KvRecord
    adapters: tuple[tuple[Adapter, float], ...]
    blob: "Blob"

    @property
    def size_bytes(self) -> int:
        """Of the keys and values."""
        return int(self.blob.size)


class LlamaRows:
    """A context made for this, and closed with it.

    Args:
        cache: restores and keeps the beginnings of prompts.
        owned: close it with this.
    """

    def __init__(self, context: Context, cache: PrefixCache, owned: bool = True) -> None:
        self._context = context
        self._cache = cache
        self._owned = owned
        # Whose logits there are: of the last step, or of the last chunk of a prompt
        self._sequences: Sequence[int] = ()
        self._records: dict[int, KvRecord] = {}
        # Of the tokens to come
        self._adapters: dict[int, tuple[tuple[Adapter, float], ...]] = {}

    @property
    def adapters(self) -> list[Adapter]:
        """Those with which the last prompt was computed."""
        return self._context.adapters

    @property
    def beginnings_bytes(self) -> int:
        """Kept beginnings of prompts in memory, beside the rows."""
        return self._cache.store.snapshots_bytes

    @property
    def n_evicted(self) -> int:
        """Kept beginnings of prompts that went for want of room."""
        return self._cache.store.n_evicted

    @property
    def held_tokens(self) -> int:
        """Whose keys and values the sequences hold."""
        return sum(len(record.tokens) for record in self._records.values())

    def kept(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section], fast: bool) -> int:
        """How many tokens of a prompt a sequence holds that need not be computed."""
        record = self._records.get(sequence)
        if record is None:
            return 0
        return self._cache.kept(self._context, record, prompt, sections, sequence=sequence, fast=fast)

    def fill(
        self,
        sequence: int,
        prompt: Sequence[int],
        sections: Sequence[Section],
        fast: bool = False,
        flag: AbortFlag | None = None,
    ) -> Iterator[int]:
        """Computes a prompt in a sequence chunk by chunk, see `PrefixCache.fill`; others may compute in between.

        Args:
            flag: once it is set, the chunk that is being computed ends at once.

        Raises:
            EngineError: llama.cpp fails, was stopped by the flag, or the output is no number; what the sequence held
                until then it holds still.
        """
        record = self._records.setdefault(sequence, KvRecord())
        self._adapters[sequence] = tuple(sections[-1].adapters)
        filling = self._cache.fill(self._context, record, prompt, sections, sequence=sequence, keep=True, fast=fast)
        while True:
            try:
                with stopped_by(flag, self._context):
                    at = next(filling, None)
            except BaseException:
                self._forget_from(sequence, len(record.tokens))
                raise
            if at is None:
                return
            self._sequences = (sequence,)
            yield at

    def _forget_from(self, sequence: int, place: int) -> None:
        """What was broken off is forgotten, and the whole sequence where the model cannot forget a part."""
        try:
            self._context.remove(sequence, place)
        except EngineError:
            self.release(sequence)

    def prefill(self, sequence: int, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt in an empty sequence; how many of its tokens were kept from before."""
        return run_through(self.fill(sequence, prompt, sections))

    def step(self, token_ids: Sequence[int], sequences: Sequence[int], flag: AbortFlag | None = None) -> None:
        """Computes one more token for each of several sequences, which rise and have the same adapters to come.

        Args:
            flag: once it is set, the step ends at once; the sequences are as they were.
        """
        records = [self._records[sequence] for sequence in sequences]
        self._sequences = sequences
        self._context.set_adapters(self._adapters[sequences[0]])
        places = [len(record.tokens) for record in records]
        try:
            with stopped_by(flag, self._context):
                if len(places) == 1:
                    self._context.decode_one(token_ids[0], places[0], sequences[0])
                else:
                    self._context.decode_step(token_ids, places, sequences)
        except EngineError:
            if flag is not None:
                for sequence, place in zip(sequences, places, strict=True):
                    self._forget_from(sequence, place)
            raise
        for token_id, record in zip(token_ids, records, strict=True):
            record.add_answer(token_id)

    def sample(self, sampler: Sampler, i: int) -> int:
        """Chooses a token from the logits of the i-th of the last step; -1: from those of the last prompt.

        Raises:
            EngineError: as `Sampler.sample`; the sequence is empty then, and its memory too.
        """
        try:
            return sampler.sample(self._context, i)
        except EngineError:
            if self._context.handle:
                self.release(self._sequences[i])
                self._context.zero_rest()
            raise

    def lay_aside(self, sequence: int) -> Aside:
        """Takes a sequence out, to be put back by `put_back`, bit for bit; it is empty then."""
        # Read before anything is lost
        aside = Aside(self._records[sequence], self._adapters[sequence], self._context.read_sequence(sequence))
        self.release(sequence)
        return aside

    def put_back(self, sequence: int, aside: Aside) -> None:
        """Puts what was laid aside into any sequence; EngineError if llama.cpp does not take it."""
        self.release(sequence)
        if not self._context.write_sequence(sequence, aside.blob):
            raise EngineError("llama.cpp does not take back the keys and values that were laid aside")
        self._records[sequence], self._adapters[sequence] = aside.record, aside.adapters

    def aside_bytes(self, sequence: int) -> int:
        """What `lay_aside` would hold."""
        return self._context.sequence_bytes(sequence)

    def has_room(self, n_bytes: int) -> bool:
        """Whether so much may be laid aside in all."""
        return n_bytes <= self._cache.store.budget_bytes

    def hold(self, n_bytes: int) -> None:
        """So much is laid aside in all, or will be next; kept beginnings give way to it."""
        self._cache.store.set_aside(n_bytes)

    def release(self, sequence: int) -> None:
        """Empties a sequence."""
        self._records.pop(sequence, None)
        # A session that was closed has freed its contexts.
        if self._context.handle:
            self._context.remove(sequence, 0)

    def flush(self) -> None:
        """Nobody waits for an answer: beginnings go to disk."""
        self._cache.flush()

    def close(self) -> None:
        """Frees the context, if it is this one's."""
        if self._owned:
            self._context.close()
