"""The adapters of a session: each is checked, loaded and proved to act when it is first used."""

from collections.abc import Mapping

from .adapter import check_adapter
from .base_info import BaseInfo
from .canary import Canary
from .engine import Adapter, Model
from .errors import DamagedError, EngineError, InputError, UnsupportedError
from .files import sha256_file
from .names import did_you_mean
from .pack import PackedAdapter


def find_adapter(adapters: Mapping[str, PackedAdapter], name: str) -> PackedAdapter:
    """The adapter of that name.

    Raises:
        InputError: there is none; the hint has those that there are, the nearest first.
    """
    packed = adapters.get(name)
    if packed is None:
        known = did_you_mean(name, adapters)
        raise InputError(
            f"there is no adapter {name!r}",
            hint=f"there are: {', '.join([*known, 'none'])}" if known else "there are none",
        )
    return packed


class Shelf:
    """Adapters by name over one model; those that were used stay loaded.

    Args:
        base: of `model`; adapters are checked against it before llama.cpp sees them.
        canary: tries each one.
    """

    def __init__(self, model: Model, base: BaseInfo, canary: Canary, adapters: Mapping[str, PackedAdapter]) -> None:
        self._model = model
        self._base = base
        self._canary = canary
        self.adapters = dict(adapters)
        self._loaded: dict[str, Adapter] = {}

    def packed(self, name: str) -> PackedAdapter:
        """The adapter of that name; raises as `find_adapter`."""
        return find_adapter(self.adapters, name)

    def load(self, name: str) -> Adapter:
        """The adapter in memory.

        Raises:
            InputError: there is no such adapter, or its file is not valid for the base; all faults are named.
            UnsupportedError: it is an activated LoRA.
            DamagedError: the file's bytes changed since it was packed.
            EngineError: it does nothing to the base's output, or makes it no number.
        """
        packed = self.packed(name)
        if name not in self._loaded:
            self._loaded[name] = self._checked(packed)
        return self._loaded[name]

    def _checked(self, packed: PackedAdapter) -> Adapter:
        info = check_adapter(packed.path, self._base)
        if info.alora_tokens:
            raise UnsupportedError(
                "is an activated LoRA (aLoRA), which acts from its invocation tokens on; sessions cannot do that yet",
                where=packed.path,
            )
        if sha256_file(packed.path) != packed.sha256:
            raise DamagedError("its bytes changed since it was packed", where=packed.path, hint="copy the pack again")
        adapter = self._model.load_adapter(packed.path)
        try:
            if adapter.n_tensors not in (None, 2 * info.n_pairs):
                raise EngineError(
                    f"llama.cpp tied {adapter.n_tensors} of {2 * info.n_pairs} tensors to the base", where=packed.path
                )
            self._canary.check(adapter, packed.card.scale)
        except BaseException:
            adapter.close()
            raise
        return adapter
