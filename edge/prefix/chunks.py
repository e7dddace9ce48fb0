"""What the KV cache of a context holds, how much of it a next prompt may keep, and the snapshots of it in memory.

    store = PrefixStore(64 << 20)
    store.add(Snapshot(tokens, chunks, blob))
    found = store.find(prompt, wanted_chunks)       # (snapshot, how many of its tokens count) or None

Keys and values depend on the adapters, so a prefix counts only under the adapter state that computed it. They also
depend, in their last bits, on how many tokens were computed at once. A prompt is therefore always computed in the
same chunks, `chunks_of(sections)`, and only whole chunks of the same extent are kept: what is kept is bit for bit
what would be computed anew. Its last chunk is always computed, for its logits.

A snapshot is found by exactly what its bits depend on: the token ids, in which chunks they were computed, and under
which adapters at which scale. Base, KV type and all else are those of the one session that owns the store, which
evicts the least recently used first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..llama.model import Adapter
from ..options import BATCH_TOKENS, CHUNK_TOKENS

if TYPE_CHECKING:
    from ..llama.kv_bytes import Blob


@dataclass(frozen=True)
class AdapterState:
    """Under which adapters something was computed.

    Attributes:
        adapters: (sha256, scale) of each, in the order in which they were set; none for the base alone.
        loads: which loading of each it was; given for several only. llama.cpp adds several up in an order that
            follows their addresses, so what one loading computed is not, to the last bit, what the next one would.
        domain: whose text it is, where others must not find that out by the time of an answer; "" for anyone's.
    """

    adapters: tuple[tuple[str, float], ...] = ()
    loads: tuple[int, ...] = ()
    domain: str = ""

    @property
    def lasting(self) -> bool:
        """Whether another process would compute the same bits, and may know of them."""
        return not self.loads and not self.domain


# Where a chunk of tokens ends, and what it is computed under.
Chunk = tuple[int, AdapterState]


@dataclass(frozen=True)
class Section:
    """A part of a prompt that ends where a chunk must end.

    Attributes:
        end: the first token after it.
        adapters, state: what it is computed under, and the name of that in the books.
        shared: the prompt up to `end` begins other prompts too, and is worth a place on disk.
    """

    end: int
    state: AdapterState = AdapterState()
    adapters: tuple[tuple[Adapter, float], ...] = ()
    shared: bool = False


def chunk_ends(n_tokens: int) -> list[int]:
    """Where the chunks of a section end: 600 -> [128, 256, 512, 600]."""
    ends = [CHUNK_TOKENS, *range(BATCH_TOKENS, n_tokens, BATCH_TOKENS)]
    return [*(end for end in ends if end < n_tokens), n_tokens] if n_tokens else []


def run_through(filling: Iterator[int]) -> int:
    """Computes a prompt to its end, as `PrefixCache.fill` goes through it; how many tokens were kept from before."""
    kept = at = next(filling)
    for n_tokens in filling:
        if n_tokens <= at:
            # It began again, without what the disk had.
            kept = n_tokens
        at = n_tokens
    return kept


def chunks_of(sections: Sequence[Section]) -> list[Chunk]:
    """The chunks of a prompt, each section cut by itself."""
    chunks: list[Chunk] = []
    at = 0
    for section in sections:
        chunks += [(at + end, section.state) for end in chunk_ends(section.end - at)]
        at = section.end
    return chunks


def same_chunks(
    known_tokens: Sequence[int], known: Sequence[Chunk], tokens: Sequence[int], wanted: Sequence[Chunk]
) -> int:
    """How many leading tokens stand in the same chunks, under the same adapters, on both sides."""
    same = 0
    for mine, other in zip(known, wanted, strict=False):
        end = mine[0]
        if mine != other or known_tokens[same:end] != tokens[same:end]:
            break
        same = end
    return same


@dataclass
class KvRecord:
    """The tokens of one sequence whose keys and values are in the cache.

    Attributes:
        tokens: token ids by position.
        chunks: in which they were computed; tokens of an answer, computed one by one or several at once, are in none,
            nor is what was computed after them.
        n_stable_tokens: how many of them a later prompt can have use for: whole chunks before the prompt's last.
        runs: where the tokens of each adapter state end, however they were computed.
    """

    tokens: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    n_stable_tokens: int = 0
    runs: list[Chunk] = field(default_factory=list)

    def reusable(self, prompt: Sequence[int], wanted: Sequence[Chunk]) -> int:
        """How many leading tokens of `prompt` are in the cache exactly as they would be computed now."""
        return same_chunks(self.tokens, self.chunks, list(prompt), wanted[:-1])

    def common(self, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """How many leading tokens of `prompt`, its last one not among them, are in the cache under the same adapters.

        They may have been computed in other pieces, as an answer for one; so their last bits may differ.
        """
        most = min(len(self.tokens), len(prompt) - 1)
        most = next((i for i in range(most) if self.tokens[i] != prompt[i]), most)
        at, run, section = 0, 0, 0
        while at < most and self.runs[run][1] == sections[section].state:
            at = min(self.runs[run][0], sections[section].end)
            run += at == self.runs[run][0]
            section += at == sections[section].end
        return min(at, most)

    def cut(self, n_tokens: int) -> None:
        """Forgets everything after the first `n_tokens`."""
        del self.tokens[n_tokens:]
        self.chunks = [chunk for chunk in self.chunks if chunk[0] <= n_tokens]
        starts = [0, *(end for end, _ in self.runs)]
        self.runs = [
            (min(end, n_tokens), state)
            for (end, state), start in zip(self.runs, starts, strict=False)
            if start < n_tokens
        ]
        self.n_stable_tokens = min(self.n_stable_tokens, n_tokens)

    def add(self, token_ids: Sequence[int], state: AdapterState) -> None:
        """Adds what has been computed at once: a chunk, if it stands behind chunks alone."""
        is_chunk = len(self.tokens) == (self.chunks[-1][0] if self.chunks else 0)
        self.tokens += token_ids
        if is_chunk:
            self.chunks.append((len(self.tokens), state))
        if self.runs and self.runs[-1][1] == state:
            self.runs.pop()
        self.runs.append((len(self.tokens), state))

    def beginning(self, n_tokens: int) -> "KvRecord":
        """The record of another sequence that gets the first `n_tokens`, the end of a chunk."""
        record = KvRecord(list(self.tokens), list(self.chunks), self.n_stable_tokens, list(self.runs))
        record.cut(n_tokens)
        return record

    def add_answer(self, token_id: int) -> None:
        """Adds a token of an answer: no prompt is computed in such pieces, so none can keep it."""
        self.tokens.append(token_id)
        if self.runs:
            self.runs[-1] = len(self.tokens), self.runs[-1][1]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The keys and values of a prompt's first tokens.

    Attributes:
        tokens, chunks: as in `KvRecord`.
        blob: from `llama.context.Context.read_sequence`.
    """

    tokens: list[int]
    chunks: list[Chunk]
    blob: "Blob"

    @property
    def size_bytes(self) -> int:
        """Of the keys and values; the books beside them are a hundredth of that."""
        return int(self.blob.size)


class PrefixStore:
    """Snapshots, the one used last at the end.

    Args:
        budget_bytes: they hold at most this; 0 keeps none.
        whole: a snapshot counts with all of its tokens only, as the memory it is put into cannot be cut.

    Attributes:
        n_restored: how often a snapshot spared a computation.
        n_evicted: how many snapshots went for want of room.
    """

    def __init__(self, budget_bytes: int, *, whole: bool = False) -> None:
        self.budget_bytes = budget_bytes
        self.whole = whole
        self.n_restored = 0
        self.n_evicted = 0
        self._aside_bytes = 0
        self._snapshots: list[Snapshot] = []

    @property
    def used_bytes(self) -> int:
        """What the snapshots hold, and what was set aside."""
        return self.snapshots_bytes + self._aside_bytes

    @property
    def snapshots_bytes(self) -> int:
        """What the snapshots hold."""
        return sum(snapshot.size_bytes for snapshot in self._snapshots)

    def set_aside(self, n_bytes: int) -> None:
        """Leaves so much of the budget to something else, in all."""
        self._aside_bytes = n_bytes
        self.give_way(0)

    def __len__(self) -> int:
        return len(self._snapshots)

    def find(self, prompt: Sequence[int], wanted: Sequence[Chunk], more_than: int = 0) -> tuple[Snapshot, int] | None:
        """The snapshot with the longest beginning of `prompt` as `wanted`, and that length in tokens.

        Args:
            wanted: the chunks that may be kept.
            more_than: shorter ones are of no use.
        """
        best: tuple[Snapshot, int] | None = None
        prompt = list(prompt)
        for snapshot in self._snapshots:
            n_tokens = same_chunks(snapshot.tokens, snapshot.chunks, prompt, wanted)
            if n_tokens <= more_than or (self.whole and n_tokens < len(snapshot.tokens)):
                continue
            if best is None or (n_tokens, -snapshot.size_bytes) > (best[1], -best[0].size_bytes):
                best = snapshot, n_tokens
        if best is not None:
            self._snapshots.remove(best[0])
            self._snapshots.append(best[0])
        return best

    def covers(self, tokens: Sequence[int], chunks: Sequence[Chunk]) -> bool:
        """Whether a snapshot holds all of these; it then counts as used."""
        return bool(chunks) and self.find(tokens, chunks, len(tokens) - 1) is not None

    def add(self, snapshot: Snapshot) -> None:
        """Takes a snapshot in, in place of those that it covers; others go where it does not fit beside them."""
        self._snapshots = [
            known
            for known in self._snapshots
            if (self.whole and len(known.tokens) < len(snapshot.tokens))
            or same_chunks(snapshot.tokens, snapshot.chunks, known.tokens, known.chunks) < len(known.tokens)
        ]
        if self.make_room(snapshot.size_bytes):
            self._snapshots.append(snapshot)

    def make_room(self, n_bytes: int, keep: Snapshot | None = None) -> bool:
        """Evicts snapshots until `n_bytes` more fit; called before those are read, so that both never take memory.

        Args:
            keep: this one stays; it is about to be used.

        Returns:
            Whether they fit; else nothing went.
        """
        must_stay_bytes = self._aside_bytes + (keep.size_bytes if keep is not None else 0)
        if must_stay_bytes + n_bytes > self.budget_bytes:
            return False
        may_go = [snapshot for snapshot in self._snapshots if snapshot is not keep]
        while self.used_bytes + n_bytes > self.budget_bytes:
            self._snapshots.remove(may_go.pop(0))
            self.n_evicted += 1
        return True

    def give_way(self, n_bytes: int) -> None:
        """Evicts snapshots for a temporary one of `n_bytes`, even if that exceeds the whole budget."""
        while self._snapshots and self.used_bytes + n_bytes > self.budget_bytes:
            self._snapshots.pop(0)
            self.n_evicted += 1

    def drop(self, snapshot: Snapshot) -> None:
        """Evicts one."""
        if snapshot in self._snapshots:
            self._snapshots.remove(snapshot)
