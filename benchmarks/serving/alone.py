"""Answers of sessions of their own, one at a time, each with the very files that an answer was bound to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...edge.answer.settings import AdapterName
from ...edge.session.session import Session

# The tokens differ with the messages as lists of dictionaries
Conversation = Sequence[Mapping[str, str]]


class Alone:
    """Greedy answers, remembered.

    Args:
        files: adapters by their sha256.
    """

    def __init__(self, base: Path, files: Mapping[str, Path]) -> None:
        self._base, self._files = base, files
        self._key: tuple[tuple[str, str], ...] | None = None
        self._session: Session | None = None
        self._known: dict[str, list[bytes]] = {}

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None
        self._known.clear()

    def _open(self, digests: Mapping[str, str]) -> Session:
        """The session with these files; one at a time is open, so ask in the order of files."""
        key = tuple(sorted(digests.items()))
        if self._session is None or key != self._key:
            self._close()
            adapters: Any = {name: (self._files[digest], None) for name, digest in digests.items()}
            self._key, self._session = key, Session.of_files(self._base, adapters, threads=1)
        return self._session

    def tokens(
        self, digests: Mapping[str, str], scales: Mapping[str, float], prompt: Conversation, n_tokens: int
    ) -> list[bytes]:
        """The bytes of each token of the greedy answer.

        Args:
            digests: of the adapters, by name; none for the base alone.
            scales: of the adapters.
        """
        session, known = self._open(digests), repr((scales, prompt))
        if known not in self._known:
            answer = self._ask(session, scales, prompt, n_tokens)
            self._known[known] = [session.vocab.piece(one, special=True) for one in answer.token_ids]
        return self._known[known]

    def margin(self, digests: Mapping[str, str], scales: Mapping[str, float], prompt: Conversation, at: int) -> float:
        """How far apart the two likeliest tokens are at a place of the greedy answer."""
        session = self._open(digests)
        # What is kept would leave the context at another place.
        self._close()
        session = self._open(digests)
        self._ask(session, scales, prompt, at + 1)
        row = np.sort(session.context.logits())
        return float(row[-1] - row[-2])

    def _ask(self, session: Session, scales: Mapping[str, float], prompt: Conversation, n_tokens: int) -> Any:
        choice: AdapterName = dict(scales) if len(scales) > 1 else next(iter(scales), None)
        return session.ask([*prompt], adapter=choice, max_tokens=n_tokens, temperature=0)  # type: ignore[list-item]


def parts_at(tokens: Sequence[bytes], expected: Sequence[bytes], *, is_whole: bool) -> int | None:
    """The first place where tokens leave the expected ones; None if nowhere. What was left early is a beginning."""
    for at, (one, other) in enumerate(zip(tokens, expected, strict=False)):
        if one != other:
            return at
    if len(tokens) > len(expected) or (is_whole and len(tokens) < len(expected)):
        return min(len(tokens), len(expected))
    return None
