"""What the KV cache of a context holds, and how much of it a next prompt may keep.

Keys and values depend on the adapters, so a prefix counts only under the adapter state that computed it. They also
depend, in their last bits, on how many tokens were computed at once. A prompt is therefore always computed in the
same chunks, `chunks_of(sections)`, and only whole chunks of the same extent are kept: what is kept is bit for bit
what would be computed anew. Its last chunk is always computed, for its logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..llama.model import Adapter
from ..options import BATCH_TOKENS, CHUNK_TOKENS


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
