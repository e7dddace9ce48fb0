"""The base's own hidden state behind a prompt, which the router's second stage reads.

    row = hidden_state(context, prompt_ids[-1], len(prompt_ids))        # after the prompt was decoded

    with StateReader("base.gguf", threads=1) as reader:
        reader.read("How many legs have 3 cats?")                       # float32 [n_embd]

llama.cpp gives out hidden states only of batches of which every token is an output, and a row of logits comes with
each. So the prompt is decoded as always, and then its last token once more behind it, alone; that one's state is read,
and it is forgotten. Keys and values of the prompt stay as they were, to the bit.
"""

import contextlib
import os
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from .base_info import BaseInfo
from .chat import ChatTemplate
from .engine import Context, Model
from .errors import EngineError
from .llama import lib
from .system_prefix import n_same

State = npt.NDArray[np.float32]
# Tokens of a longer text that `StateReader` reads: half of them from its beginning, half from its end
READ_TOKENS: Final = 96


def hidden_state(context: Context, token_id: int, position: int) -> State:
    """The final hidden state (after the last norm) of a token decoded at `position` of sequence 0, shape (n_embd,).

    What stands before `position` stays in the KV cache; the last output is lost.

    Raises:
        DoesNotFitError: there is no room for one more token.
        EngineError: llama.cpp gives none.
    """
    llama = lib()
    llama.llama_set_embeddings(context.handle, True)
    try:
        context.decode((token_id,), position)
        pointer = llama.llama_get_embeddings_ith(context.handle, -1)
        if not pointer:
            raise EngineError("llama.cpp gives no hidden state")
        n_embd = llama.llama_model_n_embd(llama.llama_get_model(context.handle))
        row: State = np.ctypeslib.as_array(pointer, (n_embd,)).copy()
    finally:
        llama.llama_set_embeddings(context.handle, False)
    context.remove(0, position)
    return row


class StateReader:
    """Hidden states of many texts, each as the base's only message, cut to `READ_TOKENS`: for training and measuring.

    Raises:
        SlmEdgeError: as `BaseInfo.open`, `Model.load` and `Context` do.
    """

    def __init__(self, base_path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.base = BaseInfo.open(base_path)
        self._template = ChatTemplate.of(self.base.file)
        with contextlib.ExitStack() as stack:
            self._model = stack.enter_context(Model.load(base_path))
            self._context = stack.enter_context(Context(self._model, n_ctx_tokens=512, threads=threads))
            self._owned = stack.pop_all()
        one, other = self._encode("a"), self._encode("b")
        # What every prompt ends with: the template's own tokens.
        self._n_after = n_same(one[::-1], other[::-1])
        self._cached: list[int] = []

    def read(self, text: str) -> State:
        """The state behind a text, shape (n_embd,)."""
        ids = self._encode(text)
        n_before = n_same(ids, self._encode("b" if text.startswith("a") else "a"))
        if len(ids) > n_before + READ_TOKENS + self._n_after:
            half = READ_TOKENS // 2
            ids = ids[: n_before + half] + ids[len(ids) - half - self._n_after :]
        # The beginning that all prompts share stays in the cache.
        kept = min(n_same(ids, self._cached), n_before)
        self._context.remove(0, kept)
        self._context.decode(ids[kept:], kept, outputs="none")
        self._cached = ids
        return hidden_state(self._context, ids[-1], len(ids))

    def close(self) -> None:
        """Frees the base. Calling it twice does nothing."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, text: str) -> list[int]:
        return self._model.vocab.encode(self._template.render([{"role": "user", "content": text}]))
