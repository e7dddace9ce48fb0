"""llama.cpp's own tokenizer of a GGUF model, loaded without the weights.

with Vocab.open("base.gguf") as vocab:
    vocab.encode("<|im_start|>user\\n")      # special tokens are parsed
"""

import ctypes
import os
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from ..errors import EngineError, InputError
from .binding import NotCopied, lib, quiet_logs

if TYPE_CHECKING:
    from .text_pieces import SpecialToken

# llama.cpp counts bytes in 32 bits.
MOST_BYTES: Final = (1 << 31) - 1024
# Up to here llama.cpp's own search for special tokens costs nothing, and their list need not be known.
SHORT_BYTES: Final = 16 << 10
# Nor is a run of letters looked for in a text that is no longer than one that is cut (`text_pieces.MOST_LETTERS`).
SHORT_LETTERS: Final = 512


class Vocab(NotCopied):
    """A tokenizer over a `llama_model`. Opened by itself (`open`) or lent by a loaded model (`of`).

    Attributes:
        n_tokens: size of the vocabulary.
        bos_id, eos_id: token ids; -1 if the model has none.
    """

    def __init__(self, model: Any, owned: bool = False) -> None:
        llama = lib()
        handle = llama.llama_model_get_vocab(model)
        self._vocab = handle
        self._keys_of = model
        self._model = model if owned else None
        self._llama = llama
        self.n_tokens: int = llama.llama_vocab_n_tokens(handle)
        self.bos_id: int = llama.llama_vocab_bos(handle)
        self.eos_id: int = llama.llama_vocab_eos(handle)
        # Asked for every token of an answer, where a look into a table is quicker than a call
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._spellings: dict[bytes, list[int]] = {}

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
        return cls(model, owned=True)

    @classmethod
    def of(cls, model: Any) -> "Vocab":
        """The tokenizer of a loaded `llama_model`, valid while the model lives."""
        return cls(model)

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

    @cached_property
    def special_tokens(self) -> "list[SpecialToken]":
        """All special tokens, the longest first."""
        from .text_pieces import special_tokens

        return special_tokens(self.handle, self.n_tokens)

    @cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes of a text."""
        texts = map(self._llama.llama_vocab_get_text, [self.handle] * self.n_tokens, range(self.n_tokens))
        return max(map(len, texts), default=1)

    def _model_value(self, key: str) -> str:
        """A key of the GGUF, "" where it has none."""
        buffer = ctypes.create_string_buffer(256)
        length = self._llama.llama_model_meta_val_str(self._keys_of, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if length >= 0 else ""

    @cached_property
    def _is_bpe(self) -> bool:
        return bool(self._llama.llama_vocab_type(self.handle) == self._llama.LLAMA_VOCAB_TYPE_BPE)

    @cached_property
    def _pre(self) -> str:
        return self._model_value("tokenizer.ggml.pre") or "default"

    @cached_property
    def _ends_added(self) -> tuple[list[int], list[int]]:
        """What the model adds by default in front and behind."""
        added = self._call(b"", add_bos=True)
        n_front = int(bool(added) and bool(self._llama.llama_vocab_get_add_bos(self.handle)))
        return added[:n_front], added[n_front:]

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Special tokens that stand for no text."""
        return frozenset(token.id for token in self.special_tokens if token.is_control)

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        """Byte -> the token `<0xNN>` of it, for vocabularies that have these."""
        get, found = self._llama.llama_vocab_get_text, {}
        names = {b"<0x%02X>" % byte: byte for byte in range(256)}
        for token_id in range(self.n_tokens):
            byte = names.get(get(self.handle, token_id))
            if byte is not None:
                found[byte] = token_id
        return found

    def encode(
        self,
        text: str,
        *,
        special: bool = True,
        add_bos: bool = False,
        breaks: Sequence[int] = (),
        apart: Collection[int] = frozenset(),
    ) -> list[int]:
        """Token ids of a text, as llama.cpp has them, in time that grows with its length alone.

        Very long runs of letters are cut where llama.cpp would recurse over them (`text_pieces.py`).

        Args:
            special: texts of special tokens become those tokens.
            add_bos: add what the model adds by default (BOS, for most).
            breaks: places in the text, sorted, across which no token of `apart` is read: it becomes plain text.
            apart: ids of special tokens.

        Raises:
            InputError: the text holds half a surrogate pair, or has 2 GiB.
            EngineError: the tokenizer is closed.
        """
        try:
            data = text.encode("utf-8", errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(f"the text is no Unicode: {text[error.start]!r} at letter {error.start}") from None
        if len(data) > MOST_BYTES:
            raise InputError(f"a text of {len(data)} bytes; llama.cpp takes {MOST_BYTES}")
        if breaks and len(data) != len(text):
            starts = [0, *breaks]
            parts = [text[a:b] for a, b in zip(starts, breaks, strict=False)]
            breaks = list(accumulate(len(part.encode("utf-8", errors="surrogateescape")) for part in parts))
        if special and not breaks and len(data) <= SHORT_BYTES and not self._has_long_run(text):
            return self._call(data, add_bos=add_bos, special=True)
        # Most prompts need none of it.
        from .text_pieces import Spelled, pieces_of

        pieces = pieces_of(data, self.special_tokens, control=special, breaks=breaks, apart=apart)
        # What is plain text here must not become a control token by merging its letters either.
        plain_only = bool(breaks) or not special
        ids: list[int] = []
        after_spelled = False
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            elif isinstance(piece, Spelled):
                ids += self._spelled(piece.text)
            else:
                found = self._plain(piece, plain_only)
                ids += self._without_space(found, piece) if after_spelled else found
            after_spelled = isinstance(piece, Spelled)
        if not add_bos:
            return ids
        front, behind = self._ends_added
        return [*front, *ids, *behind]

    def _has_long_run(self, text: str) -> bool:
        if len(text) <= SHORT_LETTERS or not self._is_bpe:
            return False
        from .text_pieces import has_long_run

        return has_long_run(text, self._pre)

    def _plain(self, data: bytes, plain_only: bool) -> list[int]:
        """Token ids of a text without special tokens to be read."""
        if self._is_bpe:
            from .text_pieces import cut_long_runs

            text = data.decode("utf-8", errors="surrogateescape")
            parts = [part.encode("utf-8", errors="surrogateescape") for part in cut_long_runs(text, self._pre)]
        else:
            parts = [data]
        ids = [token_id for part in parts for token_id in self._call(part)]
        if not plain_only or self.control_ids.isdisjoint(ids):
            return ids
        texts = {token.id: token.text for token in self.special_tokens}
        spelled = [self._spelled(texts[one]) if one in self.control_ids else [one] for one in ids]
        return [token_id for some in spelled for token_id in some]

    def _spelled(self, text: bytes) -> list[int]:
        """A special token's text letter by letter, so that no special token comes of it."""
        known = self._spellings.get(text)
        if known is None:
            known = self._spellings[text] = self._spell(text)
        return known

    def _spell(self, text: bytes) -> list[int]:
        if not self._is_bpe and len(self._byte_ids) == 256:
            return [self._byte_ids[byte] for byte in text]
        letters = [
            letter.encode("utf-8", errors="surrogateescape") for letter in text.decode("utf-8", "surrogateescape")
        ]
        return [token_id for letter in letters for token_id in self._call(letter)]

    def _without_space(self, ids: list[int], data: bytes) -> list[int]:
        """Token ids of a plain text without the space that SPM puts in front of it."""
        if self._is_bpe or not ids or len(self._byte_ids) < 256:
            return ids
        first = self.piece(ids[0])
        if not first.startswith(b" ") or data.startswith(b" "):
            return ids
        return [*(self._byte_ids[byte] for byte in first[1:]), *ids[1:]]

    def _call(self, data: bytes, *, add_bos: bool = False, special: bool = False) -> list[int]:
        """llama.cpp's own answer."""
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
        # One for each call: an engine's threads spell tokens at the same time.
        buffer = ctypes.create_string_buffer(512)
        length = self._llama.llama_token_to_piece(self.handle, token_id, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
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

    @cached_property
    def _end_ids(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.n_tokens) if self._llama.llama_vocab_is_eog(self.handle, i))

    def ends(self) -> list[int]:
        """All tokens that end a generation."""
        return list(self._end_ids)

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
