"""The adapters of a session: each is checked, loaded and proved to act when it is first used; and which act on what.

    sections_of([(loaded, 1.0)], token_ids, n_shared_tokens=0, vocab=vocab)
    activation_start([1, 2, 7, 8, 3], (7, 8))       # 2
    activation_start([1, 2], (7, 8))                # None

Those that were used stay loaded, `MOST_LOADED` of them and within a budget of bytes; then the one used longest ago
goes, unless it is pinned or an answer is being made with it. What was checked once is only hashed when it is loaded
again.

An activated LoRA (aLoRA) acts from its invocation tokens on, inclusive. What stands before is computed by the base
alone, so its keys and values serve the base and every aLoRA: taking one up in the middle of a conversation costs only
what follows. As in PEFT (peft/tuners/lora/variants.py), the last whole match counts, and what the model writes itself
does not activate anything.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..answer.engine import CANARY
from ..errors import DoesNotFitError, EngineError, InputError, SlmEdgeError, UnsupportedError
from ..files import cache
from ..files.read import CHUNK_BYTES
from ..gguf.adapter import AdapterInfo, check_adapter
from ..gguf.base import BaseInfo
from ..gguf.file import GgufFile
from ..llama.binding import lib, prompt_kernels
from ..llama.context import Context
from ..llama.model import Adapter, Model, cpu_features
from ..llama.vocab import Vocab
from ..options import MOST_LOADED, Swap
from ..pack.pack import PackedAdapter, check_packed, find_adapter
from ..prefix.chunks import AdapterState, Section
from ..written import human_bytes, meant_hint

# What is tried has the engine in its key already.
_CANARY_ENGINE: Final = "canary"


class Canary:
    """The proof that an adapter acts: a few tokens' logits with it differ from those without, and are numbers.

    It tries adapters in a small context of its own, so that no session's KV cache is touched; that lives only while it
    is needed, which for a small model is a few milliseconds. `repack`: as the model was loaded.
    """

    def __init__(self, model: Model, threads: int | None, *, repack: bool = True) -> None:
        self._model = model
        self._threads = threads
        self._repack = repack
        # Now: another file may stand at its path when an adapter is tried.
        self._base_file = _file_facts(model.path)
        self._base_logits: npt.NDArray[np.float32] | None = None

    def check(self, adapter: Adapter, scale: float, *, must_act: bool = True) -> None:
        """Raises EngineError when the adapter gives NaN or infinity, or moves no logit where it must."""
        logits, base_logits = self._try(adapter, scale)
        if not np.isfinite(logits).all():
            raise EngineError(
                f"with this adapter at the scale {scale:g} the model's output is not a number",
                where=adapter.path,
                hint="its values overflow; take a smaller scale, or export it again as F32 or BF16",
            )
        if must_act and np.array_equal(logits, base_logits):
            raise EngineError(
                "the adapter changes nothing: all logits are the same with and without", where=adapter.path
            )

    def check_once(self, adapter: Adapter, sha256: str, scale: float) -> None:
        """As `check`, but for what held before: these bytes at this scale, on this base's file, by these kernels.

        It is remembered in the cache (`first-loads/`); where nothing can be written it is tried each time.

        Args:
            sha256: of the adapter's file, which was hashed just now.
        """
        files, kernels = (self._base_file, _file_facts(Path(lib()._lib._name))), prompt_kernels()
        how = (self._repack, kernels.name, kernels.sha256, sorted(cpu_features()))
        tried = hashlib.sha256(repr((CANARY, sha256, scale, files, how)).encode()).hexdigest()
        with contextlib.suppress(SlmEdgeError):
            if all(files) and cache.held_before(tried, _CANARY_ENGINE):
                return
        self.check(adapter, scale)
        with contextlib.suppress(SlmEdgeError, OSError):
            if all(files):
                cache.remember_held(tried, _CANARY_ENGINE)

    def check_kinds(self, info: AdapterInfo, sha256: str) -> None:
        """Tries each kind of matrix of an adapter by itself, where it isn't known which of them llama.cpp adapts.

        What held is remembered in the cache, for this base and the installed llama.cpp.

        Args:
            info, sha256: of the adapter's file.

        Raises:
            InputError: kinds of matrices that load and do nothing; all are named.
        """
        import re
        import tempfile

        from ..llama.first_load import held_before, remember_held

        tried = hashlib.sha256(f"{sha256} {info.fingerprint} {self._model.path.stat().st_size}".encode()).hexdigest()
        if held_before(tried):
            return
        kinds: dict[str, set[str]] = {}
        for target in info.targets:
            kinds.setdefault(re.sub(r"^blk\.\d+\.", "", target), set()).add(target)
        with tempfile.TemporaryDirectory() as folder:
            idle = [kind for kind, targets in kinds.items() if not self._acts(info.path, targets, Path(folder))]
        if idle:
            raise InputError(
                f"llama.cpp loads the pairs of {', '.join(sorted(idle))} and they change nothing",
                where=info.path,
                hint="leave these modules out of the adapter",
            )
        remember_held(tried)

    def _acts(self, path: Path, targets: set[str], folder: Path) -> bool:
        """Whether these pairs alone change anything; true of pairs that are zero."""
        import shutil

        alone = folder / "alone.gguf"
        shutil.copyfile(path, alone)
        file, is_zero = GgufFile.open(path), True
        with alone.open("r+b") as stream:
            for name, info in file.tensors.items():
                target, _, part = name.rpartition(".")
                if target in targets:
                    is_zero = is_zero and (part == "lora_a" or not file.raw(name).any())
                elif part == "lora_b":
                    # Zero bytes are zeros in every type that an adapter may have.
                    stream.seek(info.offset_bytes)
                    for at in range(0, info.size_bytes, CHUNK_BYTES):
                        stream.write(bytes(min(CHUNK_BYTES, info.size_bytes - at)))
        if is_zero:
            return True
        adapter = self._model.load_adapter(alone)
        try:
            logits, base_logits = self._try(adapter, 1.0)
        finally:
            adapter.close()
        return not np.array_equal(logits, base_logits)

    def _try(self, adapter: Adapter, scale: float) -> tuple[Any, Any]:
        """The last logits of a few tokens with an adapter, and without."""
        ids = self._model.vocab.encode(CANARY)
        n_tokens = len(ids)
        with Context(self._model, n_ctx_tokens=n_tokens, n_batch_tokens=n_tokens, threads=self._threads) as context:
            if self._base_logits is None:
                context.decode(ids, 0)
                self._base_logits = context.logits()
                context.clear()
            context.set_adapters([(adapter, scale)])
            context.decode(ids, 0)
            return context.logits(), self._base_logits


def _file_facts(path: Path) -> tuple[int, ...]:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino
    return ()


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
                    hint=(None if must_stay_bytes else meant_hint(self.budget_bytes))
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
                self._canary.check_once(adapter, packed.sha256, packed.card.scale)
                if not self._base.family.proved:
                    self._canary.check_kinds(info, packed.sha256)
        except BaseException:
            adapter.close()
            raise
        self._checked[packed.sha256] = info
        self._tried.add((packed.sha256, packed.card.scale))
        self._serial += 1
        return Loaded(adapter, info, packed.sha256, packed.size_bytes, self._serial)


def activation_start(token_ids: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where the last whole match of the invocation tokens begins; None if there is none."""
    wanted = list(invocation)
    for start in range(len(token_ids) - len(wanted), -1, -1):
        if list(token_ids[start : start + len(wanted)]) == wanted:
            return start
    return None


def swap_of(loaded: Sequence[Loaded], asked: Swap | None = None) -> Swap:
    """How the adapters are taken up in the middle of a conversation.

    "recompute": the whole conversation is computed under them, exactly as if they had been there from the start.
    "activated": an aLoRA; what stands before its invocation tokens is the base's and stays.

    Raises:
        UnsupportedError: another way is asked than that of these adapters, or an aLoRA with others.
    """
    activated = [one for one in loaded if one.info.alora_tokens]
    if activated and len(loaded) > 1:
        raise UnsupportedError(
            "is an activated LoRA (aLoRA), which acts on a part of the prompt; it cannot be added up with others",
            where=activated[0].adapter.path,
        )
    own: Swap = "activated" if activated else "recompute"
    if asked is not None and asked != own:
        what = "an activated LoRA (aLoRA), trained on the base's keys and values" if activated else "a plain LoRA"
        why = "" if activated else "; all keys and values depend on it, so the base's cannot be kept"
        raise UnsupportedError(
            f"the swap {asked!r} is asked of {what}{why}",
            where=loaded[0].adapter.path if loaded else None,
            hint=f"its swap is {own!r}",
        )
    return own


def sections_of(
    loaded: Sequence[tuple[Loaded, float]], token_ids: Sequence[int], n_shared_tokens: int, vocab: Vocab
) -> list[Section]:
    """The parts of a prompt and what each is computed under.

    Args:
        loaded: the adapters with their scales.
        n_shared_tokens: of the beginning that other prompts share; 0 for none.
        vocab: for messages.

    Raises:
        InputError: the prompt does not hold an aLoRA's invocation tokens, so that the adapter would do nothing.
    """
    n_tokens = len(token_ids)
    adapters = tuple((one.adapter, scale) for one, scale in loaded)
    loads = tuple(one.serial for one, _ in loaded) if len(loaded) > 1 else ()
    state = AdapterState(tuple((one.sha256, scale) for one, scale in loaded), loads)
    start = 0
    for one, _ in loaded:
        if one.info.alora_tokens:
            found = activation_start(token_ids, one.info.alora_tokens)
            if found is None:
                text = vocab.decode(list(one.info.alora_tokens), special=True)
                raise InputError(
                    f"the prompt does not hold the invocation {text!r} of this activated LoRA, so it would do nothing",
                    where=one.adapter.path,
                    hint="put it at the end of the message that it shall answer",
                )
            start = found
    ends = {end: end == n_shared_tokens for end in (n_shared_tokens, start) if 0 < end < n_tokens}
    sections = [
        Section(end, shared=shared) if end <= start else Section(end, state, adapters, shared)
        for end, shared in sorted(ends.items())
    ]
    return [*sections, Section(n_tokens, state, adapters)]
