"""A folder's own tokenizer with special tokens read where the chat template wrote them alone, as on the device."""

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

from ...edge.llama.text_pieces import CONTROL, LSTRIP, RSTRIP, USER_DEFINED, SpecialToken, Spelled, pieces_of

# GGUF's tokenizer.ggml.token_type of what an export of the folder would write
_CONTROL_TYPE, _USER_DEFINED_TYPE = 3, 4
# Stands before a text that is not the beginning of one; no text holds it
_BEFORE: Final = "\U000f3e72"


class HfTokens:
    """What `edge.llama.prompt.PromptEncoder` asks of a tokenizer, on transformers'.

    Attributes:
        kinds: the added tokens as two keys of a GGUF have them.
        special_tokens: the same with their ids, the longest first.
        control_ids: ids of those that are special.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items() if token.content}
        self.kinds: dict[str, Any] = {
            "tokenizer.ggml.tokens": [token.content for token in added.values()],
            "tokenizer.ggml.token_type": [
                _CONTROL_TYPE if token.special else _USER_DEFINED_TYPE for token in added.values()
            ],
        }
        special = [
            SpecialToken(
                i,
                token.content.encode("utf-8", "surrogateescape"),
                (CONTROL if token.special else USER_DEFINED)
                | (LSTRIP if token.lstrip else 0)
                | (RSTRIP if token.rstrip else 0),
            )
            for i, token in added.items()
        ]
        self.special_tokens = sorted(special, key=lambda one: -len(one.text))
        self.control_ids = frozenset(one.id for one in special if one.is_control)

    @cached_property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token."""
        return max(len(token.encode("utf-8", "surrogateescape")) for token in self._tokenizer.get_vocab())

    def encode(
        self, text: str, *, special: bool = True, breaks: Sequence[int] = (), apart: Collection[int] = frozenset()
    ) -> list[int]:
        """Token ids without a BOS.

        Args:
            special: texts of control tokens become those tokens; else they are text like any other.
            breaks: places in the text, sorted, across which no token of `apart` is read.
        """
        data = text.encode("utf-8", "surrogateescape")
        held = any(one.text in data for one in self.special_tokens if one.is_control or breaks)
        # A tokenizer that is written in Python cannot be asked for less: it reads special tokens wherever they stand.
        if not held or (special and not breaks) or not self._tokenizer.is_fast:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        starts = [0, *breaks]
        parts = (text[a:b] for a, b in zip(starts, breaks, strict=False))
        places = list(accumulate(len(part.encode("utf-8", "surrogateescape")) for part in parts))
        ids: list[int] = []
        for piece in pieces_of(data, self.special_tokens, control=special, breaks=places, apart=apart):
            if isinstance(piece, int):
                ids.append(piece)
            elif isinstance(piece, Spelled):
                ids += self._spelled(piece.text.decode("utf-8", "surrogateescape"))
            else:
                ids += self._plain(piece.decode("utf-8", "surrogateescape"), begins=not ids)
        return ids

    @cached_property
    def _without_control(self) -> Any:
        """The same tokenizer without its control tokens."""
        from tokenizers import AddedToken, Tokenizer

        parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        parts |= {"truncation": None, "padding": None, "post_processor": None}
        parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["special"]]
        made = Tokenizer.from_str(json.dumps(parts))
        made.add_special_tokens([AddedToken(_BEFORE, normalized=False, special=True)])
        return made

    def _plain(self, text: str, *, begins: bool) -> list[int]:
        """Token ids of a text in which no special token is read."""
        if begins:
            found: list[int] = self._without_control.encode(text, add_special_tokens=False).ids
        else:
            found = self._without_control.encode(_BEFORE + text, add_special_tokens=False).ids[1:]
        if self.control_ids.isdisjoint(found):
            return found
        # The vocabulary itself may make one of its letters.
        texts = {one.id: one.text.decode("utf-8", "surrogateescape") for one in self.special_tokens}
        spelled = [self._spelled(texts[one]) if one in self.control_ids else [one] for one in found]
        return [one for some in spelled for one in some]

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        """SentencePiece's tokens of single bytes, where it has all of them."""
        vocab = self._tokenizer.get_vocab()
        found = {byte: vocab[f"<0x{byte:02X}>"] for byte in range(256) if f"<0x{byte:02X}>" in vocab}
        return found if len(found) == 256 else {}

    def _spelled(self, text: str) -> list[int]:
        """A special token's text letter by letter, so that no special token comes of it."""
        if self._byte_ids:
            return [self._byte_ids[byte] for byte in text.encode("utf-8", "surrogateescape")]
        return [one for letter in text for one in self._tokenizer.encode(letter, add_special_tokens=False)]
