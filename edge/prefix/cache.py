"""Computes prompts, restoring every beginning that was computed before instead of computing it again.

    cache = PrefixCache(PrefixStore(64 << 20), disk=None)
    lane = Lane(context, cache)                 # one sequence, with the book of what its KV cache holds
    lane.begin(prompt, [Section(len(prompt))])
    lane.step(token_id)

Snapshots are taken when an adapter swap is about to throw keys and values away, so a session that never swaps pays
nothing. Shared beginnings (system prefixes) are offered to the disk as soon as they are computed. A memory that cannot
be cut (`llama/states.py`) keeps nothing of what an answer was added to: there a snapshot is taken where the next prompt
may go on, before the prompt's last chunk and behind shared beginnings, and it counts as a whole only.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import EngineError, InputError
from ..files.cache import user_path
from ..gguf.base import BaseInfo
from ..llama.context import Context, Outputs
from ..llama.sampling import Sampler, check_numbers
from ..options import DEFAULT_BUDGET_BYTES, DEFAULT_DISK_BYTES, EngineOptions
from .chunks import Chunk, KvRecord, PrefixStore, Section, Snapshot, chunk_ends, chunks_of, run_through

if TYPE_CHECKING:
    from .disk import PrefixDisk


class PrefixCache:
    """What the contexts of one session share: snapshots in memory, and on disk where asked.

    Attributes:
        store, disk: where they are; `disk` is None if nothing is kept beyond the process.
    """

    def __init__(self, store: PrefixStore, disk: "PrefixDisk | None" = None) -> None:
        self.store = store
        self.disk = disk
        # Of the first context that it is used with
        self._turns_long: bool | None = None

    def prefill(
        self,
        context: Context,
        record: KvRecord,
        prompt: Sequence[int],
        sections: Sequence[Section],
        *,
        sequence: int = 0,
        keep: bool = False,
        fast: bool = False,
    ) -> int:
        """Computes a prompt in a sequence of a context; the last output is that of its last token.

        Args:
            record: the book of the sequence. It is changed before the cache loses and after it gains, so that it
                never claims too much when an exception, Ctrl-C included, comes in between.
            sections: the last ends with the prompt.
            keep: take shared beginnings into memory at once; else at the next swap.
            fast: keep of the sequence whatever was computed of these tokens under these adapters, in whatever pieces.

        Returns:
            How many tokens of the prompt were not computed.

        Raises:
            EngineError: llama.cpp cannot compute it, or the output is no number.
        """
        filling = self.fill(context, record, prompt, sections, sequence=sequence, keep=keep, fast=fast)
        return run_through(filling)

    def fill(
        self,
        context: Context,
        record: KvRecord,
        prompt: Sequence[int],
        sections: Sequence[Section],
        *,
        sequence: int = 0,
        keep: bool = False,
        fast: bool = False,
    ) -> Iterator[int]:
        """As `prefill`, chunk by chunk; between two of them the context may compute for other sequences.

        Yields:
            How many tokens of the prompt the sequence holds: first what was kept, then after each chunk.
        """
        if self._turns_long is None:
            self._turns_long = context.turns_long
        if self._turns_long != context.turns_long:
            # What is kept here was turned at other speeds.
            yield from PrefixCache(PrefixStore(0)).fill(context, record, prompt, sections, sequence=sequence)
            return
        loaded: list[Snapshot] = []
        try:
            yield from self._fill(context, record, prompt, sections, sequence, keep, fast, loaded)
            return
        except EngineError:
            if not loaded or self.disk is None:
                raise
        # What another hand wrote fits by its name and digest alone; it must not fail every answer from now on.
        self.disk.drop(loaded[0])
        record.cut(0)
        context.remove(sequence, 0)
        yield from self._fill(context, record, prompt, sections, sequence, keep, False, None)

    def _fill(
        self,
        context: Context,
        record: KvRecord,
        prompt: Sequence[int],
        sections: Sequence[Section],
        sequence: int,
        keep: bool,
        fast: bool,
        loaded: list[Snapshot] | None,
    ) -> Iterator[int]:
        """As `fill`; what is read from the disk is put into `loaded`, None: nothing is."""
        wanted = chunks_of(sections)
        whole = not context.memory.cuttable
        kept = self.kept(context, record, prompt, sections, sequence=sequence, fast=fast)
        found = self.store.find(prompt, wanted[:-1], kept)
        if not whole and record.chunks and record.chunks[-1][1] != wanted[-1][1]:
            self._before_loss(context, record, kept, sequence, found[0] if found else None)
        if loaded is not None:
            on_disk = self._on_disk(prompt, sections, wanted, found[1] if found else kept)
            loaded += [on_disk[0]] if on_disk else []
            found = on_disk or found
        if found is not None:
            kept = self._restore(context, record, found, sequence)
            if not kept and loaded and self.disk is not None:
                self.disk.drop(loaded.pop())
        record.cut(kept)
        context.remove(sequence, kept)
        yield kept
        at = kept
        start = 0
        for section in sections:
            for end in (start + size for size in chunk_ends(section.end - start)):
                if end <= at:
                    continue
                context.set_adapters(section.adapters)
                chunk = prompt[at:end]
                outputs: Outputs = "last" if end == len(prompt) else "none"
                context.decode(chunk, at, sequence=sequence, outputs=outputs, steady=True)
                if outputs == "none":
                    context.settle(sequence)
                record.add(chunk, section.state)
                at = end
                if record.chunks[-1:] == [(at, section.state)]:
                    if whole and len(wanted) > 1 and at == wanted[-2][0]:
                        self._remember(context, record, sequence)
                    if section.shared and at == section.end:
                        self._shared(context, record, sequence, keep or whole)
                if at == len(prompt):
                    try:
                        check_numbers(context.logits_view())
                    except EngineError:
                        record.cut(0)
                        context.remove(sequence, 0)
                        context.zero_rest()
                        raise
                    before = wanted[-2][0] if len(wanted) > 1 else 0
                    record.n_stable_tokens = max((end for end, _ in record.chunks if end <= before), default=0)
                yield at
            start = section.end

    def kept(
        self,
        context: Context,
        record: KvRecord,
        prompt: Sequence[int],
        sections: Sequence[Section],
        *,
        sequence: int = 0,
        fast: bool = False,
    ) -> int:
        """How many leading tokens of a prompt a sequence holds that need not be computed; arguments as of `fill`."""
        kept = record.reusable(prompt, chunks_of(sections))
        if fast:
            kept = max(kept, record.common(prompt, sections))
        if not context.memory.cuttable and not kept == len(record.tokens) == context.length(sequence):
            return 0
        return kept

    def shrink(self, most_bytes: int) -> None:
        """Lowers the budget to `most_bytes` and evicts at once."""
        self.store.budget_bytes = min(self.store.budget_bytes, most_bytes)
        self.store.give_way(0)
        if self.disk is not None:
            self.disk.most_bytes = min(self.disk.most_bytes, most_bytes)

    def flush(self) -> None:
        """Writes to disk what waits for it; called when nobody waits for an answer."""
        if self.disk is not None:
            self.disk.flush()

    def _before_loss(
        self, context: Context, record: KvRecord, kept: int, sequence: int, next_up: Snapshot | None
    ) -> None:
        """Takes a snapshot of what is of use later, when more than `kept` tokens of it are about to go."""
        n_tokens = record.n_stable_tokens
        if n_tokens <= kept or not self.store.budget_bytes:
            return
        record.cut(n_tokens)
        context.remove(sequence, n_tokens)
        self._remember(context, record, sequence, next_up)

    def _remember(self, context: Context, record: KvRecord, sequence: int, next_up: Snapshot | None = None) -> None:
        """Takes the whole sequence into memory, unless it is there or does not fit beside what is used next."""
        if self.store.covers(record.tokens, record.chunks):
            return
        if self.store.make_room(context.sequence_bytes(sequence), next_up):
            self.store.add(Snapshot(list(record.tokens), list(record.chunks), context.read_sequence(sequence)))

    def _shared(self, context: Context, record: KvRecord, sequence: int, keep: bool) -> None:
        """A shared beginning has been computed: it fills the sequence."""
        if self.disk is not None and self.disk.wants(record.tokens, record.chunks, context.sequence_bytes(sequence)):
            self.store.give_way(context.sequence_bytes(sequence))
            self.disk.offer(Snapshot(list(record.tokens), list(record.chunks), context.read_sequence(sequence)))
        if keep:
            self._remember(context, record, sequence)

    def _on_disk(
        self, prompt: Sequence[int], sections: Sequence[Section], wanted: Sequence[Chunk], more_than: int
    ) -> tuple[Snapshot, int] | None:
        """The longest shared beginning that is on disk and longer than `more_than`, with its length."""
        if self.disk is None:
            return None
        for section in reversed(sections[:-1]):
            if section.shared and section.end > more_than and section.state.lasting:
                chunks = [chunk for chunk in wanted if chunk[0] <= section.end]
                snapshot = self.disk.load(list(prompt[: section.end]), chunks, self.store.give_way)
                if snapshot is not None:
                    return snapshot, section.end
        return None

    def _restore(self, context: Context, record: KvRecord, found: tuple[Snapshot, int], sequence: int) -> int:
        """Puts a snapshot into the sequence; returns how many tokens of it count, 0 when llama.cpp refuses it."""
        snapshot, n_tokens = found
        record.cut(0)
        if not context.write_sequence(sequence, snapshot.blob):
            self.store.drop(snapshot)
            return 0
        record.tokens = list(snapshot.tokens)
        record.chunks = list(snapshot.chunks)
        record.runs = list(snapshot.chunks)
        self.store.n_restored += 1
        return n_tokens


def open_prefix_cache(
    base: BaseInfo, context: Context, options: EngineOptions, most_bytes: int | None = None
) -> PrefixCache:
    """The cache that a session's options ask for.

    Args:
        most_bytes: there is no memory for more.

    Raises:
        InputError: a budget is negative, or the folder cannot be made.
    """
    budget_bytes = options.get("prefix_budget_bytes", DEFAULT_BUDGET_BYTES)
    cap_bytes = options.get("prefix_cache_bytes", DEFAULT_DISK_BYTES)
    for what, n_bytes in (("budget for prefixes", budget_bytes), ("cap of the prefix cache", cap_bytes)):
        if n_bytes < 0:
            raise InputError(f"the {what} is {n_bytes} bytes; it must not be negative")
    if most_bytes is not None:
        budget_bytes = min(budget_bytes, most_bytes)
    whole = not context.memory.cuttable
    place = options.get("prefix_cache")
    if place is None:
        return PrefixCache(PrefixStore(budget_bytes, whole=whole))
    from ..files.atomic import make_folder
    from .disk import PrefixDisk
    from .domain import kv_domain

    folder = make_folder(user_path(str(place)))
    domain = kv_domain(base, context, options, folder)
    return PrefixCache(PrefixStore(budget_bytes, whole=whole), PrefixDisk(folder, domain, cap_bytes, most_bytes))


class Lane:
    """Computes prompts and tokens, keeping of the cache what is the same bit for bit.

    Args:
        fast: keep more, whatever pieces it was computed in.

    Attributes:
        context: decodes sequence 0 for this lane alone.
        record: what is in its KV cache.
        turn: number of prompts begun; tells an answer that was left behind that the cache is no longer its own.
        busy: whether an answer is being made, so that its adapters must stay.
        n_drafted_tokens, n_accepted_tokens: none are guessed here; `speculation.DraftingLane` does.
    """

    n_drafted_tokens = 0
    n_accepted_tokens = 0

    def __init__(self, context: Context, cache: PrefixCache, fast: bool = False) -> None:
        self.context = context
        self.record = KvRecord()
        self.turn = 0
        self.busy = False
        self._cache = cache
        self._fast = fast

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache; the next one's position."""
        return len(self.record.tokens)

    def begin(self, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """Computes a prompt; the last output is that of its last token.

        Args:
            sections: parts of the prompt and the adapters of each; the last ends with the prompt, and its adapters
                are those of the tokens to come.

        Returns:
            How many tokens of the prompt were kept from before.

        Raises:
            EngineError: the output is no number.
        """
        self.turn += 1
        self.busy = True
        return self._cache.prefill(self.context, self.record, prompt, sections, fast=self._fast)

    def step(self, token_id: int) -> None:
        """Computes one more token."""
        self.context.decode_one(token_id, self.n_tokens)
        self.record.add_answer(token_id)

    def sample(self, sampler: Sampler) -> int:
        """Chooses the next token from the last output; errors as `Sampler.sample`."""
        try:
            return sampler.sample(self.context)
        except EngineError:
            self.spoiled()
            raise

    def spoiled(self) -> None:
        """Forgets everything: the cache may hold what is no number."""
        if self.context.handle:
            self.record.cut(0)
            self.context.remove(0, 0)
            self.context.zero_rest()

    def rest(self, turn: int) -> None:
        """The answer that began as `turn` needs nothing more; its adapters may go."""
        if turn == self.turn:
            self.busy = False

    def flush(self) -> None:
        """Writes to disk what waits for it; nobody is waiting for an answer."""
        self._cache.flush()
