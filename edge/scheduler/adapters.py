"""The adapters of an engine while it runs: a name stands for one file at a time, an answer keeps the one it began with.

A replaced adapter stays in memory under a name of its own until the last answer that was admitted with it ends.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..answer.settings import AdapterName, Choice, choice_of
from ..errors import ConflictError
from ..pack.pack import PackedAdapter, find_adapter
from ..written import check_name


@dataclass(frozen=True)
class Bound:
    """What answers one request, for good.

    Attributes:
        choice: by the names that the session knows the adapters by.
        name: for the user; None for the base alone.
        digest: of the adapter's file, of a mix over all its parts; None for the base alone.
    """

    choice: Choice
    name: str | None
    digest: str | None


class Adapters:
    """Names with what they stand for. Used under the engine's lock.

    Args:
        session_adapters: the session's own, by its names; changed along.
    """

    def __init__(self, session_adapters: dict[str, PackedAdapter]) -> None:
        self._session = session_adapters
        # Public name -> the session's name
        self._keys = {name: name for name in session_adapters}
        self._uses: Counter[str] = Counter()

    @property
    def named(self) -> dict[str, PackedAdapter]:
        """By public name."""
        return {name: self._session[key] for name, key in self._keys.items()}

    def public_name(self, key: str) -> str:
        """The name that users know one of the session's by."""
        return next((name for name, known in self._keys.items() if known == key), key.partition("@")[0])

    def bind(self, name: AdapterName) -> Bound:
        """What a name, a mix or None stands for now; raises as `choice_of`."""
        chosen = choice_of(name, None, self.named)
        scales = tuple(sorted((self._keys[one], scale) for one, scale in chosen.scales))
        return Bound(Choice(scales, chosen.card), chosen.name, self._digest(scales))

    def _digest(self, scales: Iterable[tuple[str, float]]) -> str | None:
        parts = sorted((self._session[key].sha256, scale) for key, scale in scales)
        if len(parts) < 2:
            return parts[0][0] if parts else None
        return hashlib.sha256("".join(f"{sha256}:{scale!r}\n" for sha256, scale in parts).encode()).hexdigest()

    # Who uses what

    def hold(self, choice: Choice) -> None:
        """A request that was admitted with these."""
        self._uses.update(name for name, _ in choice.scales)

    def let_go(self, choice: Choice) -> list[str]:
        """It has ended; returns the session's names of what nobody can ask for any more."""
        self._uses.subtract(name for name, _ in choice.scales)
        return [name for name, _ in choice.scales if self._is_over(name)]

    def _is_over(self, key: str) -> bool:
        return self._uses[key] <= 0 and key not in self._keys.values() and key in self._session

    # What changes while the engine runs

    def check_expected(self, name: str, expect_digest: str | None) -> None:
        """Raises ConflictError unless the name stands for that digest; "" for a name that is free, None for any."""
        key = self._keys.get(name)
        digest = self._session[key].sha256 if key else ""
        if expect_digest is not None and expect_digest.removeprefix("sha256:") != digest:
            now = f"the file {digest}" if digest else "nothing"
            raise ConflictError(
                f"the adapter {name!r} stands for {now}, not for {expect_digest or 'nothing'}",
                hint="look at it again; someone else changed it",
            )

    def moved(self, packed: PackedAdapter) -> bool:
        """Whether the name stands for these bytes and this card already; from now on for the file where they are."""
        key = self._keys.get(packed.name)
        known = self._session[key] if key is not None else None
        if key is None or known is None or (known.sha256, known.card) != (packed.sha256, packed.card):
            return False
        self._session[key] = replace(packed, name=key)
        return True

    def candidate(self, packed: PackedAdapter) -> str:
        """Puts a file beside the others under a name of the session's own, for a trial; `adopt` or `drop` follows."""
        check_name(packed.name, "an adapter's name")
        key = packed.name if packed.name not in self._session else f"{packed.name}@{packed.sha256[:12]}"
        while key in self._session:
            key += "+"
        self._session[key] = replace(packed, name=key)
        return key

    def adopt(self, name: str, key: str) -> list[str]:
        """The name stands for that file from now on; returns as `let_go`."""
        before = self._keys.get(name)
        self._keys[name] = key
        return [before] if before is not None and self._is_over(before) else []

    def remove(self, name: str) -> list[str]:
        """Nobody can ask for the name any more; returns as `let_go`."""
        find_adapter(self.named, name)
        key = self._keys.pop(name)
        return [key] if self._is_over(key) else []

    def drop(self, key: str) -> None:
        """Takes one out of the session's; it must not be in memory any more."""
        self._session.pop(key, None)
        self._uses.pop(key, None)
