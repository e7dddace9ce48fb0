"""A context that computes prompts over the weights as they are stored, and single tokens over copies in another layout.

    stored = StoredModel(model)
    context = TwoLayouts(model, stored, n_ctx_tokens=2048)      # used as any `context.Context`

Some CPUs have faster kernels for one token in llama.cpp's copied layout and for many in the stored one: with AVX-512
VNNI, weights in Q4_K take 0.85 of the time for a token when they are copied, and 0.66 for a prompt when they are not
(Qwen2.5-Coder-1.5B; docs/measurements/2026-11-26.md). Both layouts together take more memory: `memory/plan.py` counts
it and `memory/fit.py` decides.

Which layout computes a chunk follows from its length and the number of adapters alone, so that the same prompt gives
the same bits each time. Keys and values go from one KV cache to the other where the other one goes on: a copy of some
milliseconds.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from ..options import CHUNK_TOKENS
from .context import Context, Outputs
from .kv_bytes import Blob
from .model import Adapter, Model

# Shorter chunks stay with the copies: opening the base once more takes as long as computing these saves.
LEAST_TOKENS: Final = CHUNK_TOKENS
# llama.cpp sizes its graphs by the adapters of the model that they were loaded for, and these are another's: the room
# that it leaves for all models, 8 nodes for each tensor, holds two at least.
MOST_ADAPTERS: Final = 1


class StoredModel:
    """The base of a model once more, in the layout of its file, mapped when it is first asked for (Linux).

    Args:
        model: closed after this.

    Raises:
        OSError: the base cannot be opened.
    """

    def __init__(self, model: Model) -> None:
        self._of = model
        # By this the same file is found when another one has taken its name.
        self._file = os.open(model.path, os.O_RDONLY)
        self._model: Model | None = None

    def open(self) -> Model:
        """The model; raises as `Model.load`."""
        if self._model is None:
            self._model = Model.load(Path(f"/proc/self/fd/{self._file}"), mmap=True, repack=False)
            self._model.path = self._of.path
            self._model.lender = self._of
        return self._model

    def close(self) -> None:
        """Frees it with its contexts. Calling it twice does nothing."""
        if self._model is not None:
            self._model.close()
        if self._file >= 0:
            handle, self._file = self._file, -1
            os.close(handle)

    def __enter__(self) -> "StoredModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TwoLayouts(Context):
    """A context with a second one over the stored layout, which holds one sequence: the one that it computed last.

    Of that sequence one of the two contexts has everything, and the other one a beginning.

    Args:
        options: as of `Context`.

    Attributes:
        prompts: the second context, made when it is first needed.
    """

    def __init__(self, model: Model, stored: StoredModel, **options: Any) -> None:
        super().__init__(model, **options)
        self.prompts: Context | None = None
        self._stored = stored
        self._options = options
        self._guest = 0
        # Whether `prompts` has more of the guest than this context.
        self._ahead = False
        # Whether the last output is there.
        self._there = False

    def decode(
        self,
        token_ids: Sequence[int],
        position: int,
        *,
        sequence: int = 0,
        outputs: Outputs = "last",
        steady: bool = False,
    ) -> None:
        """As `Context.decode`, over the layout that is faster for so many tokens."""
        if len(token_ids) < LEAST_TOKENS or outputs == "all" or len(self._active) > MOST_ADAPTERS:
            self._take_over()
            super().decode(token_ids, position, sequence=sequence, outputs=outputs, steady=steady)
            return
        self._alive()
        self._kept_rows = None
        prompts = self._with_guest(sequence, position)
        self._there = True
        try:
            prompts.decode(token_ids, position, outputs=outputs)
        except BaseException:
            prompts.remove(0, position)
            raise
        self._ahead = True

    def decode_one(self, token_id: int, position: int, sequence: int = 0) -> None:
        """As `Context.decode_one`."""
        self._take_over()
        super().decode_one(token_id, position, sequence)

    def decode_step(self, token_ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """As `Context.decode_step`."""
        self._take_over()
        super().decode_step(token_ids, positions, sequences)

    def drop_adapter(self, adapter: Adapter) -> None:
        """As `Context.drop_adapter`."""
        super().drop_adapter(adapter)
        if self.prompts is not None:
            self.prompts.drop_adapter(adapter)

    def remove(self, sequence: int, start: int, end: int = -1) -> None:
        """As `Context.remove`."""
        prompts = self.prompts
        if prompts is None or sequence != self._guest:
            super().remove(sequence, start, end)
            return
        if end != -1:
            self._settle()
        prompts.remove(0, start)
        super().remove(sequence, start, end)
        self._ahead = super().length(sequence) < prompts.length(0)

    def length(self, sequence: int) -> int:
        """As `Context.length`."""
        self._settle()
        return super().length(sequence)

    def sequence_bytes(self, sequence: int) -> int:
        """As `Context.sequence_bytes`."""
        self._settle()
        return super().sequence_bytes(sequence)

    @property
    def handles(self) -> list[Any]:
        """As `Context.handles`."""
        return [self.handle] if self.prompts is None else [self.handle, self.prompts.handle]

    def beside(self, **options: Any) -> Context:
        """As `Context.beside`."""
        return TwoLayouts(self._model, self._stored, **options)

    def clear(self) -> None:
        """As `Context.clear`."""
        super().clear()
        self._ahead = False
        if self.prompts is not None:
            self.prompts.clear()

    @property
    def output_handle(self) -> Any:
        """As `Context.output_handle`."""
        return self.prompts.handle if self._there and self.prompts is not None else self.handle

    def logits_view(self, i: int = -1) -> npt.NDArray[np.float32]:
        """As `Context.logits_view`."""
        if self._there and self.prompts is not None:
            self._alive()
            return self.prompts.logits_view(i)
        return super().logits_view(i)

    def close(self) -> None:
        """As `Context.close`."""
        if self.prompts is not None:
            self.prompts.close()
        super().close()

    def _with_guest(self, sequence: int, position: int) -> Context:
        """The second context with the first `position` tokens of a sequence, and the adapters that are set here."""
        prompts = self.prompts
        if prompts is None:
            options = {**self._options, "n_ctx_tokens": self.n_ctx_seq_tokens, "n_seq_max": 1, "n_outputs_max": 1}
            prompts = self.prompts = Context(self._stored.open(), **options)
        if sequence != self._guest:
            self._settle()
            prompts.clear()
            self._guest = sequence
        if prompts.length(0) < position:
            _carry(super().read_sequence(sequence), prompts.write_sequence, 0)
        # A batch that failed may have left something behind.
        prompts.remove(0, position)
        prompts.set_adapters(self._active)
        return prompts

    def _take_over(self) -> None:
        """What comes next is computed here."""
        self._settle()
        self._there = False

    def _settle(self) -> None:
        """Brings here what only the second context has."""
        if self._ahead and self.prompts is not None:
            self._ahead = False
            super().remove(self._guest, 0)
            _carry(self.prompts.read_sequence(0), self._put, self._guest)


def _carry(blob: Blob, write: Callable[[int, Blob], bool], sequence: int) -> None:
    if not write(sequence, blob):
        raise EngineError("llama.cpp does not take keys and values from one context into another")
