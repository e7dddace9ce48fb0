"""Computed prefixes in memory, within a budget of bytes: the least recently used is evicted first.

    store = PrefixStore(64 << 20)
    store.add(Snapshot(tokens, chunks, blob))
    found = store.find(prompt, wanted_chunks)       # (snapshot, how many of its tokens count) or None

A snapshot is found by exactly what its bits depend on: the token ids, in which chunks they were computed, and under
which adapters at which scale. Base, KV type and all else are those of the one session that owns the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .chunks import Chunk, same_chunks

if TYPE_CHECKING:
    from ..llama.kv_bytes import Blob


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The keys and values of a prompt's first tokens.

    Attributes:
        tokens, chunks: as in `chunks.KvRecord`.
        blob: from `engine.Context.read_sequence`.
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
    """

    def __init__(self, budget_bytes: int, *, whole: bool = False) -> None:
        self.budget_bytes = budget_bytes
        self.whole = whole
        self.n_restored = 0
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
        return True

    def give_way(self, n_bytes: int) -> None:
        """Evicts snapshots for a temporary one of `n_bytes`, even if that exceeds the whole budget."""
        while self._snapshots and self.used_bytes + n_bytes > self.budget_bytes:
            self._snapshots.pop(0)

    def drop(self, snapshot: Snapshot) -> None:
        """Evicts one."""
        if snapshot in self._snapshots:
            self._snapshots.remove(snapshot)
