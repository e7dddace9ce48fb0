"""Speculation without a second model: guessed tokens are computed with the next one, and kept while they are right.

    drafting = Drafting(context, exactness, "exact")
    worker = drafting.worker(lane, choice, room_tokens)      # takes the lane's place in a `stream.Stream`

A guess (`ngrams.py`) is right when the sampler, asked after the token before it, chooses that very token. So sampling,
grammars, stop texts and the seed's draws are what they are without it. Wrong guesses are taken out of the KV cache.

Whether it changes anything rests with llama.cpp alone: computing several tokens at once may take other kernels than
computing one, and the smallest difference grows, through the quantised activations of every layer, to half a logit and
more, which changes about one greedy token in thirty where many are likely. "exact" therefore speculates only

- where the kernels are known to agree for the weights, the adapters and attention (`exactness.py`),
- and where they are seen to agree: the first guesses under an adapter are computed both ways and every logit is
  compared bit by bit. That finds what the rules cannot know, such as flash attention over F16 or F32 keys and values,
  which is split among the threads for one token, from 257 tokens in the cache on, and not for several.

"fast" accepts what `Session.submit` accepts as well: near ties may fall the other way.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..answer.engine import Worker
from ..answer.settings import Choice
from ..errors import EngineError
from ..llama.context import Context
from ..llama.sampling import Sampler
from ..options import MOST_AT_ONCE, Speculate
from ..prefix.cache import Lane
from ..prefix.chunks import AdapterState, Section
from .exactness import Exactness
from .ngrams import Ngrams

# Tokens computed at once, the guessed ones and the one before them, and how many must agree with what stood before.
# Kernels work on four rows at a time, so sizes between cost as much as the next one.
SIZES: Final = ((8, 8), (4, 5))
# So many rows of logits, equal bit for bit, are asked for: which kernels are taken follows from shapes alone, and is
# the same for 4 rows as for as many as `Exactness.most_at_once` allows.
PROOF_ROWS: Final = 8
PROOF_AT_ONCE: Final = 4
# From so many tokens in the cache on, llama.cpp splits attention among the threads.
SPLIT_TOKENS: Final = 256
# Where memory is no bottleneck a further token costs about half of the first one (measured, 1 thread: 0.45 to 0.55).
FURTHER_TOKEN_COST: Final = 0.5
# Once wrong guesses have cost so much more than right ones gained, in tokens' time, speculation rests: for so many
# tokens, and twice as many each time until the debt is paid.
MOST_DEBT: Final = 4.0
DEBT_AFTER_REST: Final = 2.0
FIRST_REST_TOKENS: Final = 16
LONGEST_REST_TOKENS: Final = 128

# What decides which kernels run: adapters, and whether attention may be split.
Kernels = tuple[AdapterState, bool]


class Drafting:
    """What a session knows about speculation.

    Args:
        mode: for all answers; None: as each task card says.
    """

    def __init__(self, context: Context, exactness: Exactness, mode: Speculate | None = None) -> None:
        self.exactness = exactness
        self._context = context
        self._mode = mode
        self._n_proved: Counter[Kernels] = Counter()
        self._differs: set[Kernels] = set()

    def worker(self, lane: Lane, choice: Choice, room_tokens: int) -> Worker:
        """The lane, or one that speculates over it, for an answer of `choice` in a context of `room_tokens`."""
        mode = self._mode or choice.card.speculate
        if mode == "off" or self._context.n_outputs_max < MOST_AT_ONCE:
            return lane
        memory = self._context.memory
        # A state cannot forget a wrong guess. Windows can, but their cells then lie in another order than without it.
        if memory.has_state or (mode == "exact" and not memory.cuttable):
            return lane
        if mode == "exact" and not self.exactness.possible(name for name, _ in choice.scales):
            return lane
        return DraftingLane(lane, self, room_tokens, exact=mode == "exact")

    def verdict(self, kernels: Kernels) -> bool | None:
        """Whether several tokens at once are computed as one by one; None while it isn't known."""
        if kernels in self._differs:
            return False
        return True if self._n_proved[kernels] >= PROOF_ROWS else None

    def saw(self, kernels: Kernels, equal: bool) -> None:
        """Adds the comparison of one row."""
        if equal:
            self._n_proved[kernels] += 1
        else:
            self._differs.add(kernels)


class DraftingLane:
    """One answer's worker: a lane, whose book holds accepted tokens alone.

    Attributes:
        n_drafted_tokens, n_accepted_tokens: guesses that were computed, and those that were right.
    """

    def __init__(self, lane: Lane, drafting: Drafting, room_tokens: int, *, exact: bool) -> None:
        self.n_drafted_tokens = 0
        self.n_accepted_tokens = 0
        self._lane = lane
        self._context = lane.context
        self._drafting = drafting
        self._room_tokens = room_tokens
        self._exact = exact
        self._most_at_once = (drafting.exactness.most_at_once if exact else None) or MOST_AT_ONCE
        self._ngrams = Ngrams()
        self._sampler: Sampler | None = None
        # What the last decode computed, which row of it the next token is sampled from.
        self._batch: Sequence[int] = ()
        self._row = -1
        # Rows that were computed at once, to be compared with those computed one by one.
        self._proof: list[tuple[int, npt.NDArray[np.float32]]] = []
        self._proved_kernels: Kernels = (AdapterState(), False)
        self._debt = 0.0
        self._rest_tokens = 0
        self._next_rest_tokens = FIRST_REST_TOKENS

    @property
    def turn(self) -> int:
        """Number of prompts begun in the lane."""
        return self._lane.turn

    @property
    def n_tokens(self) -> int:
        """Tokens in the cache, those that are only guessed not counted."""
        return self._lane.n_tokens

    def begin(self, prompt: Sequence[int], sections: Sequence[Section]) -> int:
        """As `Lane.begin`."""
        kept = self._lane.begin(prompt, sections)
        self._ngrams = Ngrams(prompt)
        return kept

    def sample(self, sampler: Sampler) -> int:
        """Chooses the next token; a guess before it was right, or it is the last output. Errors as `Lane.sample`."""
        self._sampler = sampler
        try:
            return sampler.sample(self._context, self._row)
        except EngineError:
            self._batch, self._row = (), -1
            self._lane.spoiled()
            raise

    def step(self, token_id: int) -> None:
        """Makes the output after one more token ready: computed already if it was guessed, else now."""
        self._ngrams.add(token_id)
        after = self._row + 1
        if 0 < after < len(self._batch) and self._batch[after] == token_id:
            self._row = after
            self.n_accepted_tokens += 1
            self._lane.record.add_answer(token_id)
            return
        self._settle()
        guess = [] if self._proof else self._guess()
        if guess and self._exact:
            kernels = self._kernels()
            verdict = self._drafting.verdict(kernels)
            if verdict is None:
                self._begin_proof((token_id, *guess)[:PROOF_AT_ONCE], kernels)
            guess = guess if verdict else []
        if not guess:
            self._lane.step(token_id)
            self._compare(token_id)
            return
        batch = (token_id, *guess)
        self._context.decode(batch, self.n_tokens, outputs="all")
        self.n_drafted_tokens += len(guess)
        if not np.isfinite(self._context.logits_view(0).max()):
            # Without flash attention a guess that overflows reaches the rows before it.
            self._forget([self._context.logits_view(0)])
            self._lane.step(token_id)
            return
        self._lane.record.add_answer(token_id)
        self._batch, self._row = batch, 0

    def rest(self, turn: int) -> None:
        """As `Lane.rest`; wrong guesses leave the cache."""
        if turn == self.turn and self._context.handle:
            self._settle()
        self._lane.rest(turn)

    def flush(self) -> None:
        """As `Lane.flush`."""
        self._lane.flush()

    def _settle(self) -> None:
        """Ends the last batch: forgets its wrong guesses, and weighs what it was worth."""
        n_batch, n_right = len(self._batch), self._row
        self._batch, self._row = (), -1
        if not n_batch:
            return
        if n_right + 1 < n_batch:
            self._forget([self._context.logits_view(row) for row in range(n_right + 1, n_batch)])
        self._debt = max(0.0, self._debt + FURTHER_TOKEN_COST * (n_batch - 1) - n_right)
        if not self._debt:
            self._next_rest_tokens = FIRST_REST_TOKENS
        elif self._debt >= MOST_DEBT:
            self._debt = DEBT_AFTER_REST
            self._rest_tokens = self._next_rest_tokens
            self._next_rest_tokens = min(2 * self._next_rest_tokens, LONGEST_REST_TOKENS)

    def _guess(self) -> list[int]:
        """The tokens to compute along with the next one; none where it is unlikely to pay."""
        if self._rest_tokens:
            self._rest_tokens -= 1
            return []
        guess, n_same = self._ngrams.guess(MOST_AT_ONCE - 1)
        if self._sampler is not None:
            # What the grammar does not allow would be computed for nothing.
            guess = guess[: self._sampler.n_allowed(guess)]
        at = self.n_tokens
        for size, n_least in SIZES:
            if size > self._most_at_once:
                continue
            if len(guess) >= size - 1 and n_same >= n_least and at + size <= self._room_tokens:
                # Rows of one batch on both sides of the border would be proved by one side's kernels alone.
                across = self._context.pace.now > 1 and at < SPLIT_TOKENS < at + size
                return [] if across else guess[: size - 1]
        return []

    def _kernels(self) -> Kernels:
        return self._lane.record.chunks[-1][1], self._is_split(self.n_tokens)

    def _is_split(self, at: int) -> bool:
        """Whether attention of a single token at that position is split among threads."""
        return self._context.pace.now > 1 and at >= SPLIT_TOKENS

    def _begin_proof(self, batch: Sequence[int], kernels: Kernels) -> None:
        """Computes a batch and forgets it; the tokens are then computed one by one, as long as they are right."""
        at = self.n_tokens
        self._context.decode(batch, at, outputs="all")
        self._proof = [(token_id, self._context.logits(row)) for row, token_id in enumerate(batch)]
        self._proved_kernels = kernels
        self._forget([row for _, row in self._proof])

    def _forget(self, rows: Sequence[npt.NDArray[np.float32]]) -> None:
        """Takes what is behind the book's last token out of the cache.

        Args:
            rows: the logits that were computed with it.
        """
        self._context.remove(0, self.n_tokens)
        # A wrong guess may overflow where the right token does not.
        if not np.isfinite([row.max() for row in rows]).all():
            self._context.zero_rest()

    def _compare(self, token_id: int) -> None:
        """Compares the row after a token that was computed by itself with that of the proof, if one is going on."""
        if not self._proof:
            return
        expected, row = self._proof.pop(0)
        # With another number of threads the row comes from other kernels than those that the proof is about.
        if expected != token_id or self._is_split(self.n_tokens - 1) != self._proved_kernels[1]:
            self._proof = []
            return
        equal = np.array_equal(row.view(np.uint32), self._context.logits_view().view(np.uint32))
        self._drafting.saw(self._proved_kernels, equal)
        if not equal:
            self._proof = []
