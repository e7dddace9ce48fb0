"""llama.cpp's own tokenizer of a GGUF model, loaded without the weights.

with Vocab.open("base.gguf") as vocab:
    vocab.encode("<|im_start|>user\\n")      # special tokens are parsed
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

from ..errors import EngineError, InputError
from .binding import NotCopied, lib, quiet_logs


class Vocab(NotCopied):
    """A tokenizer over a `llama_vocab`. Opened by itself (`open`) or lent by a loaded model (`of`).

    Attributes:
        n_tokens: size of the vocabulary.
        bos_id, eos_id: token ids; -1 if the model has none.
    """

    def __init__(self, handle: Any, owned_model: Any = None) -> None:
        llama = lib()
        self._vocab = handle
        self._model = owned_model
        self._llama = llama
        self.n_tokens: int = llama.llama_vocab_n_tokens(handle)
        self.bos_id: int = llama.llama_vocab_bos(handle)
        self.eos_id: int = llama.llama_vocab_eos(handle)
        # Asked for every token of an answer, where a look into a table is quicker than a call
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._buffer = ctypes.create_string_buffer(512)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Vocab":
        """Loads the tokenizer of a GGUF model.

        Raises:
            EngineError: llama.cpp cannot load it (its own words are in the message).
        """
        llama = lib()
        params = llama.llama_model_default_params()
        params.vocab_only = True
        with quiet_logs() as log:
            model = llama.llama_model_load_from_file(os.fspath(path).encode(), params)
        if not model:
            raise EngineError("llama.cpp cannot load the tokenizer", where=path, problems=log.errors())
        return cls(llama.llama_model_get_vocab(model), owned_model=model)

    @classmethod
    def of(cls, model: Any) -> "Vocab":
        """The tokenizer of a loaded `llama_model`, valid while the model lives."""
        return cls(lib().llama_model_get_vocab(model))

    @property
    def handle(self) -> Any:
        """The `llama_vocab` pointer, for calls that have no method here; EngineError once it was closed."""
        self.check()
        return self._vocab

    def check(self) -> None:
        """Raises EngineError once it was closed: what llama.cpp made with it must not be used either."""
        if self._vocab is None:
            raise EngineError("the tokenizer is closed", hint="open the session, or the tokenizer, again")

    def close(self) -> None:
        """Ends its use, and frees the model that `open` loaded. Calling it twice does nothing."""
        self._vocab = None
        # What the tables know would be answered as if it were open.
        self._pieces.clear()
        self._ends.clear()
        if self._model is not None:
            model, self._model = self._model, None
            self._llama.llama_model_free(model)

    def __enter__(self) -> "Vocab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, text: str, *, special: bool = True, add_bos: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            special: texts of special tokens become those tokens.
            add_bos: add what the model adds by default (BOS, for most).

        Raises:
            InputError: the text holds half a surrogate pair.
            EngineError: the tokenizer is closed.
        """
        try:
            data = text.encode("utf-8", errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(f"the text is no Unicode: {text[error.start]!r} at letter {error.start}") from None
        size = len(data) + 8
        ids = (ctypes.c_int32 * size)()
        n_tokens = self._llama.llama_tokenize(self.handle, data, len(data), ids, size, add_bos, special)
        if n_tokens < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:n_tokens])

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes of one token; special tokens are empty unless `special`."""
        if special:
            return self._piece(token_id, special=True)
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._piece(token_id, special=False)
        return known

    def _piece(self, token_id: int, *, special: bool) -> bytes:
        buffer = self._buffer
        length = self._llama.llama_token_to_piece(self.handle, token_id, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = self._buffer = ctypes.create_string_buffer(-length)
            length = self._llama.llama_token_to_piece(self.handle, token_id, buffer, len(buffer), 0, special)
        return ctypes.string_at(buffer, length)

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        """The bytes of every token, and which of them are special: no text of an answer, and here by their names."""
        pieces, specials = [self._piece(i, special=False) for i in range(self.n_tokens)], []
        for i in (i for i, piece in enumerate(pieces) if not piece):
            pieces[i] = self._piece(i, special=True)
            if pieces[i]:
                specials.append(i)
        return pieces, specials

    def ends(self) -> list[int]:
        """All tokens that end a generation."""
        return [i for i in range(self.n_tokens) if self._llama.llama_vocab_is_eog(self.handle, i)]

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.piece(token_id, special=special) for token_id in ids).decode("utf-8", errors="replace")

    def is_end(self, token_id: int) -> bool:
        """Whether the token ends a generation (EOS, end of turn, …)."""
        known = self._ends.get(token_id)
        if known is None:
            known = self._ends[token_id] = bool(self._llama.llama_vocab_is_eog(self.handle, token_id))
        return known


def n_same(*rows: Sequence[int]) -> int:
    """How many leading tokens all rows have in common."""
    same = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        same += 1
    return same
