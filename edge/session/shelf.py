"""The adapters of a session: each is checked, loaded and proved to act when it is first used.

Those that were used stay loaded, `MOST_LOADED` of them and within a budget of bytes; then the one used longest ago
goes, unless it is pinned or an answer is being made with it. What was checked once is only hashed when it is loaded
again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import DoesNotFitError, EngineError, InputError
from ..gguf.adapter import AdapterInfo, check_adapter
from ..gguf.base import BaseInfo
from ..llama.canary import Canary
from ..llama.model import Adapter, Model
from ..options import MOST_LOADED
from ..pack.pack import PackedAdapter, check_packed, find_adapter
from ..sizes import human_bytes, meant_hint


@dataclass(frozen=True)
class Loaded:
    """An adapter in memory.

    Attributes:
        serial: counts loadings, so that each has its own.
    """

    adapter: Adapter
    info: AdapterInfo
    sha256: str
    size_bytes: int
    serial: int


def pinned_of(adapters: Mapping[str, PackedAdapter], also: Sequence[str] = ()) -> list[str]:
    """The names of those whose task cards say so, and `also`."""
    return list(dict.fromkeys([*also, *(name for name, packed in adapters.items() if packed.card.pinned)]))


class Shelf:
    """Adapters by name over one model.

    Args:
        base: of `model`; adapters are checked against it before llama.cpp sees them.
        canary: tries each one.
        budget_bytes: loaded adapters hold at most this, counted as their files; None: no limit.
        pinned: names that stay once they are loaded.
        in_use: adapters with which answers are being made.
        held: names of more that must stay.

    Raises:
        InputError: a pinned name is not there, or the budget is negative.
    """

    def __init__(
        self,
        model: Model,
        base: BaseInfo,
        canary: Canary,
        adapters: Mapping[str, PackedAdapter],
        *,
        budget_bytes: int | None = None,
        pinned: Sequence[str] = (),
        in_use: Callable[[], Collection[Adapter]] = tuple,
        held: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._model = model
        self._base = base
        self._canary = canary
        self.adapters = adapters
        if budget_bytes is not None and budget_bytes < 0:
            raise InputError(f"the budget for adapters is {budget_bytes} bytes; it must not be negative")
        self.budget_bytes = budget_bytes
        self._pinned = frozenset(find_adapter(self.adapters, name).name for name in pinned)
        self._in_use = in_use
        self._held = held
        # By name, the one used last at the end.
        self._loaded: dict[str, Loaded] = {}
        # By sha256, and the scales at which they were tried.
        self._checked: dict[str, AdapterInfo] = {}
        self._tried: set[tuple[str, float]] = set()
        self._serial = 0

    @property
    def loaded(self) -> dict[str, int]:
        """Bytes of those in memory by name, the one used last at the end."""
        return {name: one.size_bytes for name, one in self._loaded.items()}

    def packed(self, name: str) -> PackedAdapter:
        """The adapter of that name; raises as `find_adapter`."""
        return find_adapter(self.adapters, name)

    def load(self, names: Sequence[str]) -> list[Loaded]:
        """These adapters in memory, all at once.

        Raises:
            InputError: there is no such adapter, or its file is not valid for the base; all faults are named.
            DamagedError: the file's bytes changed since it was packed.
            DoesNotFitError: the budget is too small for them beside those that must stay.
            EngineError: it does nothing to the base's output, or makes it no number.
        """
        wanted = [self.packed(name) for name in names]
        for packed in wanted:
            if packed.name in self._loaded:
                self._loaded[packed.name] = self._loaded.pop(packed.name)
        for packed in wanted:
            if packed.name not in self._loaded:
                self._make_room(packed, names)
                self._loaded[packed.name] = self._open(packed)
        return [self._loaded[name] for name in names]

    def forget(self, name: str) -> None:
        """Frees one, if it is in memory."""
        if name in self._loaded:
            self._loaded.pop(name).adapter.close()

    def try_scales(self, scales: Sequence[tuple[str, float]]) -> None:
        """Tries loaded adapters at scales that are not their cards'; EngineError where output is no number then."""
        for name, scale in scales:
            one = self._loaded[name]
            if (one.sha256, scale) not in self._tried:
                self._canary.check(one.adapter, scale, must_act=False)
                self._tried.add((one.sha256, scale))

    def _make_room(self, packed: PackedAdapter, names: Sequence[str]) -> None:
        """Frees what was used longest ago until `packed` fits; nothing is freed when it cannot."""
        in_use = {id(adapter) for adapter in self._in_use()}
        must_stay = {*self._pinned, *names, *self._held()}
        may_go = [name for name, one in self._loaded.items() if name not in must_stay and id(one.adapter) not in in_use]
        if self.budget_bytes is not None:
            must_stay_bytes = sum(one.size_bytes for name, one in self._loaded.items() if name not in may_go)
            if must_stay_bytes + packed.size_bytes > self.budget_bytes:
                beside = f" beside {human_bytes(must_stay_bytes)} that must stay" if must_stay_bytes else ""
                raise DoesNotFitError(
                    f"the adapter {packed.name!r} needs {human_bytes(packed.size_bytes)}{beside}; "
                    f"the budget for adapters is {human_bytes(self.budget_bytes)}",
                    where=packed.path,
                    hint=meant_hint(self.budget_bytes)
                    or "raise the budget, pin fewer adapters, or read or close the answer that is being made",
                )
            while sum(one.size_bytes for one in self._loaded.values()) + packed.size_bytes > self.budget_bytes:
                self._loaded.pop(may_go.pop(0)).adapter.close()
        while may_go and len(self._loaded) >= MOST_LOADED:
            self._loaded.pop(may_go.pop(0)).adapter.close()

    def _open(self, packed: PackedAdapter) -> Loaded:
        info = self._checked.get(packed.sha256) or check_adapter(packed.path, self._base)
        check_packed(packed.path, packed.sha256)
        adapter = self._model.load_adapter(packed.path)
        try:
            if adapter.n_tensors not in (None, 2 * info.n_pairs):
                raise EngineError(
                    f"llama.cpp tied {adapter.n_tensors} of {2 * info.n_pairs} tensors to the base", where=packed.path
                )
            if (packed.sha256, packed.card.scale) not in self._tried:
                self._canary.check(adapter, packed.card.scale)
                if not self._base.family.proved:
                    self._canary.check_kinds(info, packed.sha256)
        except BaseException:
            adapter.close()
            raise
        self._checked[packed.sha256] = info
        self._tried.add((packed.sha256, packed.card.scale))
        self._serial += 1
        return Loaded(adapter, info, packed.sha256, packed.size_bytes, self._serial)
