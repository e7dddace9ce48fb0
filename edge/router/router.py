"""Chooses the adapter for a prompt, or none of them, in well under a millisecond and without a second model.

    router = Router.open("my-pack/router.npz")
    decision = router.choose("A box has 12 eggs, 5 are used. How many are left?")
    decision.adapter, decision.confidence, decision.runner_up        # "math", 0.99, None

What a prompt is judged by is in `router_features`; every decision is a sum of weights times features, so `explain`
can say what decided. A class without an adapter in the pack counts as "none of these".
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ..gguf.chat_template import Message
from .features import Features, read_prompt
from .file import RouterModel, read_router
from .hashing import slot_names
from .words import NAMES

# In a conversation the adapter in use is left only for one whose odds are this many times better.
STAY_ODDS: Final = 4.0
_N_REASONS: Final = 12


@dataclass(frozen=True)
class Reason:
    """One feature's part in a decision.

    Attributes:
        feature: a name of `features.NAMES`, or the words behind a hashed feature, in quotes.
        value: how strongly the prompt has it.
        weight: log-odds that it adds for the decision against the runner-up; negative ones spoke against it.
    """

    feature: str
    value: float
    weight: float


@dataclass(frozen=True)
class Decision:
    """What the router chose.

    Attributes:
        adapter: name of the adapter; None for the base alone.
        confidence: estimated probability that this is right, 0 to 1.
        runner_up: the next best adapter; None for the base alone.
        runner_up_confidence: its probability.
        stayed: the adapter of the conversation was kept against a slightly better one.
        reasons: what decided, strongest first; filled by `explain`.
    """

    adapter: str | None
    confidence: float
    runner_up: str | None
    runner_up_confidence: float
    stayed: bool = False
    reasons: tuple[Reason, ...] = ()

    def text(self) -> str:
        """For people: the decision in a line, then its reasons."""
        other = f"; next {self.runner_up or 'none'}, {self.runner_up_confidence:.0%}"
        stayed = ", kept from the turn before" if self.stayed else ""
        lines = [f"adapter {self.adapter or 'none'}, confidence {self.confidence:.0%}{stayed}{other}"]
        lines += [f"  {reason.weight:+6.2f}  {reason.feature}" for reason in self.reasons]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: numbers rounded to four places, `reasons` only where they were asked for."""
        data: dict[str, Any] = {
            "adapter": self.adapter,
            "confidence": round(self.confidence, 4),
            "runner_up": self.runner_up,
            "runner_up_confidence": round(self.runner_up_confidence, 4),
            "stayed": self.stayed,
        }
        if self.reasons:
            data["reasons"] = [
                {"feature": reason.feature, "value": round(reason.value, 4), "weight": round(reason.weight, 4)}
                for reason in self.reasons
            ]
        return data


class Router:
    """A router over the adapters of a pack.

    Args:
        model: as read from its file.
        adapters: task of the router -> adapter's name in the pack; a task that is not named counts as none of these.
            None: adapters are called as the tasks are, and all are there. Added adapters have their own names.
    """

    def __init__(self, model: RouterModel, adapters: Mapping[str, str] | None = None) -> None:
        self.model = model
        names = adapters if adapters is not None else {name: name for name in (*model.tasks, *model.added)}
        self._names = [None, *(names.get(task) for task in model.tasks)]
        self._added = np.array([i for i, name in enumerate(model.added) if name in names.values()], dtype=np.int64)
        self._added_names = [model.added[i] for i in self._added]
        self._added_named = model.added_named[self._added]
        self._added_bias = model.added_bias[self._added]
        self._added_slots = model.added_slots[self._added]
        self._added_values = model.added_values[self._added]
        self.names: tuple[str, ...] = tuple(dict.fromkeys([*(n for n in self._names if n), *self._added_names]))
        # A None as the least confidence: the base needs none.
        self._least = {name: model.thresholds.get(task, 0.5) for task, name in names.items()}

    @classmethod
    def open(cls, path: str | os.PathLike[str], adapters: Mapping[str, str] | None = None) -> Self:
        """Reads a router's file; raises as `file.read_router`."""
        return cls(read_router(path), adapters)

    def choose(
        self,
        prompt: str | Sequence[Message],
        *,
        current: str | None = None,
        explain: bool = False,
    ) -> Decision:
        """Decides which adapter answers.

        Args:
            prompt: a user's text, or a conversation, whose last user message is judged.
            current: the adapter in use, where the conversation has had answers from it: it is kept unless another
                one (or none) is `STAY_ODDS` times likelier. None: the base has answered, or nobody yet.
            explain: fill `reasons`.
        """
        talk = not isinstance(prompt, str) and any(message["role"] == "assistant" for message in prompt)
        features = read_prompt(prompt if isinstance(prompt, str) else _last_user_text(prompt))
        trained, odds = self._trained(features), self._odds(features)
        shares = self._joined(trained, odds)
        choice, stayed = self._pick(trained, odds, shares, current if talk else None, talk)
        others = {name: share for name, share in shares.items() if name != choice}
        runner_up = max(others, key=lambda name: others[name]) if others else None
        reasons = self._reasons(features, choice, runner_up) if explain else ()
        second = others.get(runner_up, 0.0)
        return Decision(choice, shares[choice], runner_up, second, stayed, reasons=reasons)

    def explain(self, prompt: str | Sequence[Message]) -> Decision:
        """`choose` with its reasons."""
        return self.choose(prompt, explain=True)

    def shares(self, prompt: str) -> dict[str | None, float]:
        """The probability of each adapter, and of none of them under None; together 1."""
        features = read_prompt(prompt)
        return self._joined(self._trained(features), self._odds(features))

    def _pick(
        self,
        trained: dict[str | None, float],
        odds: NDArray[np.float64],
        shares: dict[str | None, float],
        current: str | None,
        talk: bool,
    ) -> tuple[str | None, bool]:
        # An added adapter takes a prompt or leaves it: one that it leaves is decided as if it were not there.
        at = int(odds.argmax()) if len(odds) else 0
        best: str | None
        if len(odds) and odds[at] / (1 + odds[at]) >= self._least.get(self._added_names[at], 0.5):
            best = self._added_names[at]
        else:
            best = max(trained, key=lambda name: trained[name])
            if best is not None and trained[best] < self._least.get(best, 0.5):
                best = None
        if talk and current in shares and current != best and shares[best] < STAY_ODDS * shares[current]:
            return current, True
        return best, False

    def _trained(self, features: Features) -> dict[str | None, float]:
        """Probabilities of the adapters of the tasks that were trained together, and of none; together 1."""
        model = self.model
        logits = model.bias + model.named @ features.named + features.values @ model.slots[features.slots]
        logits = np.exp((logits - logits.max()) / model.temperature)
        parts = logits / max(float(logits.sum()), 1e-30)
        shares: dict[str | None, float] = {None: 0.0}
        for name, part in zip(self._names, parts.tolist(), strict=True):
            shares[name] = shares.get(name, 0.0) + part
        return shares

    def _joined(self, trained: dict[str | None, float], odds: NDArray[np.float64]) -> dict[str | None, float]:
        """Probabilities with the added adapters: each has odds against all that was there before; together 1."""
        if not len(odds):
            return trained
        whole = 1 + float(odds.sum())
        shares = {name: part / whole for name, part in trained.items()}
        return shares | dict(zip(self._added_names, (odds / whole).tolist(), strict=True))

    def _odds(self, features: Features) -> NDArray[np.float64]:
        """Each added adapter's odds against all that was there before, [n_added]."""
        if not self._added_names:
            return np.zeros(0)
        dense = np.zeros(len(self.model.slots), dtype=np.float32)
        dense[features.slots] = features.values
        hashed = np.einsum("am,am->a", dense[self._added_slots], self._added_values)
        logits = self._added_bias + self._added_named @ features.named + hashed
        odds: NDArray[np.float64] = np.exp(np.clip(logits.astype(np.float64), -30, 30))
        return odds

    def _weights(self, name: str | None, features: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A class's part by named feature and by hashed place."""
        model = self.model
        if name in self._added_names:
            at = self._added_names.index(name)
            dense = np.zeros(len(model.slots), dtype=np.float32)
            np.add.at(dense, self._added_slots[at], self._added_values[at])
            return self._added_named[at] * features.named, dense[features.slots] * features.values
        at = self._names.index(name) if name in self._names else 0
        scale = np.float32(1 / model.temperature)
        return (
            model.named[at] * features.named * scale,
            model.slots[features.slots, at] * features.values * scale,
        )

    def _reasons(self, features: Features, choice: str | None, other: str | None) -> tuple[Reason, ...]:
        mine, theirs = self._weights(choice, features), self._weights(other, features)
        if choice in self._added_names or other in self._added_names:
            # An added adapter's weights are odds against everything else, and stand for themselves.
            added = mine if choice in self._added_names else tuple(-part for part in theirs)
            named, hashed = added[0], added[1]
        else:
            named, hashed = mine[0] - theirs[0], mine[1] - theirs[1]
        reasons = [
            Reason(name, float(value), float(part))
            for name, value, part in zip(NAMES, features.named, named, strict=True)
            if abs(part) > 0.01
        ]
        by_words: dict[str, float] = {}
        for words, part in zip(
            slot_names(features.slots, list(features.words), list(features.request_words)), hashed.tolist(), strict=True
        ):
            by_words[words] = by_words.get(words, 0.0) + part
        reasons += [Reason(words, 1.0, part) for words, part in by_words.items() if abs(part) > 0.01]
        return tuple(sorted(reasons, key=lambda reason: -abs(reason.weight))[:_N_REASONS])


def _last_user_text(messages: Sequence[Message]) -> str:
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
