"""The proof that an adapter acts: a few tokens' logits with it differ from those without, and are numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InputError
from ..files.read import CHUNK_BYTES
from ..gguf.file import GgufFile
from .context import Context
from .model import Adapter, Model

if TYPE_CHECKING:
    from ..gguf.adapter import AdapterInfo

CANARY = "The answer is 42"


class Canary:
    """Tries adapters in a small context of its own, so that no session's KV cache is touched.

    The context lives only while it is needed: what an adapter of a small model costs to try is a few milliseconds.
    """

    def __init__(self, model: Model, threads: int | None) -> None:
        self._model = model
        self._threads = threads
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

    def check_kinds(self, info: "AdapterInfo", sha256: str) -> None:
        """Tries each kind of matrix of an adapter by itself, where it isn't known which of them llama.cpp adapts.

        What held is remembered in the cache, for this base and the installed llama.cpp.

        Args:
            info, sha256: of the adapter's file.

        Raises:
            InputError: kinds of matrices that load and do nothing; all are named.
        """
        import hashlib
        import re
        import tempfile

        from .first_load import held_before, remember_held

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


def check_numbers(logits: npt.NDArray[np.float32]) -> None:
    """Raises EngineError when logits, shape (n,), are no numbers, from which any token might be chosen."""
    # NaN is the maximum wherever it stands; minus infinity is a token that is left out.
    if not np.isfinite(logits.max()):
        raise EngineError(
            "the model's output is not a number",
            hint="values of the base or an adapter are damaged or overflow; slm-edge pack verify checks their bytes",
        )
