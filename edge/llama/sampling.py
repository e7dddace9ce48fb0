"""How the next token is chosen: the likeliest by numpy, else by llama.cpp's sampler chain; never walked in Python.

Top-p over a whole vocabulary (top-k off) is numpy's too: llama.cpp sorts up to all of its tokens for that, which
takes 0.5 to 20 ms (`docs/decisions.md`).

with Sampler(Sampling(temperature=0.7, seed=1)) as sampler:
    token_id = sampler.sample(context)
"""

import ctypes
import math
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InputError
from .binding import NotCopied, lib
from .context import Context

if TYPE_CHECKING:
    from ..grammar.matcher import Grammar

# Of a logit, whichever way: more changes nothing that less does not
MOST_PENALTY = 100.0
# Above this value llama.cpp draws a seed itself (LLAMA_DEFAULT_SEED), which would be lost to the user.
MAX_SEED = (1 << 32) - 2
# Of the likeliest one's probability: sorted are those above the first of these shares that the nucleus lies above.
_SHARES = (1e-2, 1e-3, 1e-4, 1e-5, 0.0)

# llama_token_data
_ROW = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
# So many logits of a row tell how the others lie.
_PART = 4096


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; the order of application is bias, penalties, rules, top-k, top-p, min-p, temperature, draw.

    Attributes:
        temperature: 0 always takes the likeliest token; the other values then do nothing.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest whose probabilities first add up to p; 1 keeps all.
        min_p: keep those with at least p times the likeliest's probability; 0 keeps all.
        seed: the same seed gives the same text; None draws one.
        frequency_penalty, presence_penalty: taken off a token's logit for each time that it is in the answer already,
            and once if it is; below 0 it becomes likelier.
        repeat_penalty: the logit of a token that is in the prompt or the answer is divided by it, or multiplied where
            it is below 0; 1 does nothing.
        repeat_last_n: so many tokens before the next one count for `repeat_penalty`; -1 for all.
        logit_bias: token id -> what is added to its logit; minus infinity for never.

    All but `temperature` to `seed` also count where the likeliest token is taken.

    Raises:
        InputError: values out of range; all are named.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature <= 100:
            problems.append(f"temperature is {self.temperature}; it must be between 0 and 100")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}; it cannot be negative")
        problems += [
            f"{name} is {value}; it must be between 0 and 1"
            for name, value in (("top_p", self.top_p), ("min_p", self.min_p))
            if not 0 <= value <= 1
        ]
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            problems.append(f"seed is {self.seed}; it must be between 0 and {MAX_SEED}")
        problems += [
            f"{name} is {value}; it must be between -{MOST_PENALTY:g} and {MOST_PENALTY:g}"
            for name, value in (
                ("frequency_penalty", self.frequency_penalty),
                ("presence_penalty", self.presence_penalty),
            )
            if not -MOST_PENALTY <= value <= MOST_PENALTY
        ]
        if not 0 < self.repeat_penalty <= MOST_PENALTY:
            problems.append(f"repeat_penalty is {self.repeat_penalty}; it must be above 0 and at most {MOST_PENALTY:g}")
        if self.repeat_last_n < -1:
            problems.append(f"repeat_last_n is {self.repeat_last_n}; it must be -1 or more")
        problems += [
            f"logit_bias of {token_id!r} is {bias!r}; token ids have numbers, or minus infinity"
            for token_id, bias in self.logit_bias.items()
            if not isinstance(token_id, int)
            or token_id < 0
            or not isinstance(bias, (int, float))
            or not bias < math.inf
        ][:3]
        if problems:
            raise InputError("the sampling settings are not valid", problems=problems)

    @property
    def bends(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        penalties = self.frequency_penalty, self.presence_penalty, self.repeat_penalty - 1
        return any(penalties) or bool(self.logit_bias)

    def check_tokens(self, n_vocab: int) -> None:
        """Raises InputError where a bias is for a token that there is not."""
        wrong = next((token_id for token_id in self.logit_bias if token_id >= n_vocab), None)
        if wrong is not None:
            raise InputError(f"there is no token {wrong}; ids are 0 to {n_vocab - 1}", where="logit_bias")


class _Bend:
    """Logits with the biases and the penalties for what was there before.

    Args:
        prompt: what `repeat_penalty` counts beside the answer.
        min_tokens, ends: as in `Sampler`.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], min_tokens: int = 0, ends: Sequence[int] = ()
    ) -> None:
        self._sampling = sampling
        self._n_early = min_tokens
        self._ends = np.fromiter(ends, np.intp)
        self._bias_ids = np.fromiter(sampling.logit_bias, np.intp)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32)
        self._said: Counter[int] = Counter()
        n_last = sampling.repeat_last_n if sampling.repeat_penalty != 1 else 0
        self._last = deque(prompt, None if n_last < 0 else n_last)
        self._recent = Counter(self._last)

    def of(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits, (n_vocab,), as they are to be chosen from."""
        bent = logits.copy()
        bent[self._bias_ids] += self._biases
        how = self._sampling
        if self._recent:
            ids = np.fromiter(self._recent, np.intp, len(self._recent))
            seen = bent[ids]
            bent[ids] = np.where(seen > 0, seen / np.float32(how.repeat_penalty), seen * np.float32(how.repeat_penalty))
        if self._said and (how.frequency_penalty or how.presence_penalty):
            ids = np.fromiter(self._said, np.intp, len(self._said))
            n_times = np.fromiter(self._said.values(), np.float32, len(self._said))
            bent[ids] -= np.float32(how.frequency_penalty) * n_times + np.float32(how.presence_penalty)
        if self._n_early:
            bent[self._ends] = -np.inf
        return bent

    def add(self, token_id: int) -> None:
        """It was chosen."""
        self._n_early = max(self._n_early - 1, 0)
        self._said[token_id] += 1
        if self._last.maxlen == 0:
            return
        if len(self._last) == self._last.maxlen:
            gone = self._last[0]
            self._recent[gone] -= 1
            if not self._recent[gone]:
                del self._recent[gone]
        self._last.append(token_id)
        self._recent[token_id] += 1


class Sampler(NotCopied):
    """Chooses the tokens of one answer.

    Args:
        grammar: what the answer must keep to; closed with the sampler.
        prompt: token ids before the answer, for `repeat_penalty`.
        min_tokens: so many tokens are chosen before one of `ends` may be.

    Attributes:
        seed: the one in use; None when greedy.
        tells: `chosen_from` is kept.
        chosen_from: the logits, (n_vocab,), that the last token was chosen from: with biases and penalties, and minus
            infinity for what the grammar did not allow. Valid until the next computation.
    """

    def __init__(
        self,
        sampling: Sampling,
        grammar: "Grammar | None" = None,
        prompt: Sequence[int] = (),
        *,
        min_tokens: int = 0,
        ends: Sequence[int] = (),
    ) -> None:
        self._grammar = grammar
        self._bend = _Bend(sampling, prompt, min_tokens, ends) if sampling.bends or min_tokens else None
        self.seed: int | None = None
        self.tells = False
        self.chosen_from: npt.NDArray[np.float32] | None = None
        # None: the likeliest is taken.
        self._chain: Any = None
        self._top_p: float | None = None
        self._top_k = sampling.top_k
        if sampling.temperature == 0:
            return
        self._sample = lib().llama_sampler_sample
        self.seed = secrets.randbelow(MAX_SEED) if sampling.seed is None else sampling.seed
        if sampling.top_k == 0 and sampling.top_p < 1:
            # Over the whole vocabulary: cut by us, before the chain
            self._top_p, sampling = sampling.top_p, replace(sampling, top_p=1.0)
        self._chain = new_chain(sampling, self.seed)

    def sample(self, context: Context, i: int = -1) -> int:
        """Chooses a token from the i-th logits of the last decode; -1 is the last output.

        Raises:
            EngineError: the logits are no numbers, or no token continues the grammar.
        """
        if self._grammar is not None or self._bend is not None:
            return self.sample_row(context.logits_view(i))
        if self.tells:
            self.chosen_from = context.logits_view(i)
        if self._chain is None or self._top_p is not None:
            # llama.cpp's greedy sampler would first write a row of 12 bytes for each of the vocabulary.
            return self._draw(context.logits_view(i))
        check_numbers(context.logits_view(i))
        return int(self._sample(self._chain, context.output_handle, i))

    def sample_row(self, logits: npt.NDArray[np.float32]) -> int:
        """As `sample`, from logits, shape (n_vocab,), that need not be llama.cpp's own."""
        bent = logits if self._bend is None else self._bend.of(logits)
        token_id = self._told(bent) if self.tells else self._within_rules(bent)
        if self._bend is not None:
            self._bend.add(token_id)
        return token_id

    def _told(self, logits: npt.NDArray[np.float32]) -> int:
        """As `_within_rules`; keeps the whole row that it chooses from."""
        self.chosen_from = masked = logits if self._grammar is None else self._grammar.mask(logits)
        token_id = self._draw(masked)
        if self._grammar is not None:
            self._grammar.accept(token_id)
        return token_id

    def _within_rules(self, logits: npt.NDArray[np.float32]) -> int:
        grammar = self._grammar
        if grammar is None:
            return self._draw(logits)
        if self._chain is not None and self._top_k and self._top_p is None:
            # No masked row is made where k tokens are all that is asked for.
            check_numbers(logits)
            token_id = draw(self._chain, logits, largest(logits, self._top_k, grammar.allowed_of()))
        elif self._chain is not None or not grammar.allows(token_id := _likeliest(logits)):
            # The likeliest of all is mostly allowed, and is then the likeliest of what is allowed.
            token_id = self._draw(grammar.mask(logits))
        grammar.accept(token_id)
        return token_id

    def n_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens the grammar would take next, one after the other; all without one."""
        return len(token_ids) if self._grammar is None else self._grammar.n_allowed(token_ids)

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        if self._chain is None:
            return _likeliest(logits)
        check_numbers(logits)
        # The chain cuts to these itself, out of all of the vocabulary.
        ids = largest(logits, self._top_k) if self._top_k else None
        return draw(self._chain, logits, ids if self._top_p is None else nucleus(logits, self._top_p))

    def close(self) -> None:
        """Frees what belongs to llama.cpp. Calling it twice does nothing."""
        if self._grammar is not None:
            self._grammar.close()
        if self._chain:
            chain, self._chain = self._chain, None
            lib().llama_sampler_free(chain)

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_chain(sampling: Sampling, seed: int) -> Any:
    """llama.cpp's links in the order that `Sampling` states; the caller frees it.

    Raises:
        EngineError: llama.cpp makes none.
    """
    llama = lib()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    if not chain:
        raise EngineError("llama.cpp cannot make a sampler")
    for link in (
        llama.llama_sampler_init_top_k(sampling.top_k),
        llama.llama_sampler_init_top_p(sampling.top_p, 1),
        llama.llama_sampler_init_min_p(sampling.min_p, 1),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(seed),
    ):
        llama.llama_sampler_chain_add(chain, link)
    return chain


def draw(chain: Any, logits: npt.NDArray[np.float32], ids: npt.NDArray[np.intp] | None = None) -> int:
    """A chain's choice.

    Args:
        logits: (n_vocab,).
        ids: of these tokens, the likeliest first; None: of all.

    Raises:
        EngineError: it chose none.
    """
    llama = lib()
    rows = np.empty(len(logits if ids is None else ids), _ROW)
    rows["id"], rows["logit"] = (np.arange(len(logits)), logits) if ids is None else (ids, logits[ids])
    first = ctypes.cast(rows.ctypes.data, llama.llama_token_data_p)
    candidates = llama.llama_token_data_array(data=first, size=len(rows), selected=-1, sorted=ids is not None)
    llama.llama_sampler_apply(chain, ctypes.byref(candidates))
    if candidates.selected < 0:
        raise EngineError("llama.cpp's sampler chose no token")
    token_id = int(candidates.data[candidates.selected].id)
    llama.llama_sampler_accept(chain, token_id)
    return token_id


def largest(
    logits: npt.NDArray[np.float32],
    k: int,
    allowed_of: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.bool_]] | None = None,
) -> npt.NDArray[np.intp]:
    """The k likeliest tokens, likeliest first; fewer where no more are possible.

    Args:
        logits: (n_vocab,); minus infinity for what is not possible.
        allowed_of: which of some tokens are possible; None for all.
    """
    # Where the first some hundred begin is seen from a part of the row; a row may be flat or steep.
    stride = max(1, len(logits) // _PART)
    part = np.sort(logits[::stride])
    for wanted in (8 * k, 64 * k):
        rank = -(-wanted // stride)
        if rank > len(part) or part[-rank] == -np.inf:
            break
        ids = np.flatnonzero(logits >= part[-rank])
        ids = ids if allowed_of is None else ids[allowed_of(ids)]
        if len(ids) >= k:
            return _first(logits, ids, k)
    ids = np.flatnonzero(logits > -np.inf)
    return _first(logits, ids if allowed_of is None else ids[allowed_of(ids)], k)


def _likeliest(logits: npt.NDArray[np.float32]) -> int:
    token_id = int(logits.argmax())
    # The first of those that are NaN, where some are.
    check_numbers(logits[token_id : token_id + 1])
    return token_id


def _first(logits: npt.NDArray[np.float32], ids: npt.NDArray[np.intp], k: int) -> npt.NDArray[np.intp]:
    """The k likeliest of some tokens, likeliest first."""
    return ids[np.argsort(-logits[ids], kind="stable")][:k]


def nucleus(logits: npt.NDArray[np.float32], top_p: float) -> npt.NDArray[np.intp]:
    """The likeliest tokens whose probabilities first add up to `top_p`, likeliest first, at least one.

    Args:
        logits: (n_vocab,).
    """
    weights = np.exp(logits - logits.max())
    needed = top_p * float(weights.sum(dtype=np.float64))
    ids = np.arange(0)
    for share in _SHARES:
        ids = np.flatnonzero(weights >= share)
        if float(weights[ids].sum(dtype=np.float64)) >= needed:
            break
    ids = ids[np.argsort(-weights[ids])]
    total = np.cumsum(weights[ids], dtype=np.float64)
    return ids[: int(np.searchsorted(total, needed)) + 1]


def check_numbers(logits: npt.NDArray[np.float32]) -> None:
    """Raises EngineError when logits, shape (n,), are no numbers, from which any token might be chosen."""
    # NaN is the maximum wherever it stands; minus infinity is a token that is left out.
    if not np.isfinite(logits.max()):
        raise EngineError(
            "the model's output is not a number",
            hint="values of the base or an adapter are damaged or overflow; slm-edge pack verify checks their bytes",
        )
