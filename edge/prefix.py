"""What the KV cache of a context holds, and how much of it a next prompt may keep.

Keys and values depend on the adapter, so a prefix counts only under the adapter state (sha256 and scale) that
computed it. They also depend, in their last bits, on how many tokens were computed at once. A prompt is therefore
always computed in the same chunks, `chunk_ends(n)`, and only whole chunks of the same extent are kept: what is kept
is bit for bit what would be computed anew. Its last chunk is always computed, for its logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

# Tokens computed at once. Small enough to keep most of a shared prefix, and to answer Ctrl-C soon on a slow board;
# at 64 and more llama.cpp's attention takes its fast path for prompts.
CHUNK_TOKENS: Final = 128


@dataclass(frozen=True)
class AdapterState:
    """Under which adapter something was computed; None for the base alone."""

    sha256: str | None = None
    scale: float = 1.0


def chunk_ends(n_tokens: int) -> list[int]:
    """Where the chunks of a prompt end: 300 -> [128, 256, 300]."""
    return [*range(CHUNK_TOKENS, n_tokens, CHUNK_TOKENS), n_tokens] if n_tokens else []


@dataclass
class KvRecord:
    """The tokens of one sequence whose keys and values are in the cache.

    Attributes:
        state: the adapter under which all of them were computed.
        tokens: token ids by position.
        ends: where each chunk of them ends; generated tokens are chunks of one.
    """

    state: AdapterState = AdapterState()
    tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def reusable(self, state: AdapterState, prompt: Sequence[int]) -> int:
        """How many leading tokens of `prompt` are in the cache exactly as they would be computed now."""
        if state != self.state:
            return 0
        kept = 0
        for known, wanted in zip(self.ends, chunk_ends(len(prompt))[:-1], strict=False):
            if known != wanted or self.tokens[kept:known] != list(prompt[kept:wanted]):
                break
            kept = known
        return kept

    def cut(self, n_tokens: int, state: AdapterState) -> None:
        """Forgets everything after the first `n_tokens`, the end of a chunk."""
        self.state = state
        del self.tokens[n_tokens:]
        self.ends = [end for end in self.ends if end <= n_tokens]

    def add(self, token_ids: Sequence[int]) -> None:
        """Takes in a chunk that has been computed."""
        self.tokens += token_ids
        self.ends.append(len(self.tokens))
