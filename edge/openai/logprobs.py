"""Tokens with their log-probabilities, as OpenAI has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scheduler.engine import Engine
    from ..scheduler.ticket import Piece


@dataclass(frozen=True)
class Spoken:
    """The bytes of tokens, by id."""

    by_id: Mapping[int, bytes]

    @classmethod
    def of(cls, engine: "Engine", pieces: "Sequence[Piece]") -> "Spoken":
        """Of all tokens that these pieces name."""
        ids = {piece.token_id for piece in pieces if piece.token_id is not None}
        ids |= {token_id for piece in pieces for token_id, _ in piece.top}
        known = sorted(ids)
        return cls(dict(zip(known, engine.token_bytes(known), strict=True)))

    def text(self, token_id: int) -> str:
        """The text of one; half a letter is U+FFFD."""
        return self.by_id[token_id].decode("utf-8", "replace")


def entries(pieces: "Sequence[Piece]", spoken: Spoken) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat answer."""
    made = []
    for piece in pieces:
        if piece.token_id is None or piece.logprob is None:
            continue
        entry = _entry(piece.token_id, piece.logprob, spoken)
        made.append({**entry, "top_logprobs": [_entry(one, logprob, spoken) for one, logprob in piece.top]})
    return made


def _entry(token_id: int, logprob: float, spoken: Spoken) -> dict[str, Any]:
    return {
        "token": spoken.text(token_id),
        "logprob": max(logprob, -9999.0),
        "bytes": list(spoken.by_id[token_id]),
    }


def legacy(pieces: "Sequence[Piece]", spoken: Spoken) -> dict[str, Any]:
    """`logprobs` of a completion, as /v1/completions has them: four lists, one entry for each token."""
    tokens, values, tops, places, place = [], [], [], [], 0
    for piece in pieces:
        if piece.token_id is None or piece.logprob is None:
            continue
        text = spoken.text(piece.token_id)
        tokens.append(text)
        values.append(max(piece.logprob, -9999.0))
        tops.append({spoken.text(one): max(logprob, -9999.0) for one, logprob in piece.top})
        places.append(place)
        place += len(text)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": places}
