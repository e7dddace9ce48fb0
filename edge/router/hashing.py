"""Hashed features of a prompt: its words and neighbours, those of its request, and the request's letter groups.

slots, values = hashed(["sort", "a", "list"], ["sort", "a", "list"], "sort a list", [])

Each block is a set of places, of length 1 together, so that long prompts weigh no more than short ones.
Letter groups (four bytes of UTF-8) bear typos and languages whose words stand together.
"""

import itertools
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

WORD_SLOTS: Final = 1 << 14
REQUEST_SLOTS: Final = 1 << 13
LETTER_SLOTS: Final = 1 << 13
TEXT_SLOTS: Final = 1 << 13
_LETTERS_AT: Final = WORD_SLOTS + REQUEST_SLOTS
_TEXT_AT: Final = _LETTERS_AT + LETTER_SLOTS
N_SLOTS: Final = _TEXT_AT + TEXT_SLOTS
# Odd constants that spread 32 bits (2^32 over the golden ratio, and the second prime of xxHash)
_SPREAD: Final = np.uint32(0x9E3779B1)
_SPREAD_NEXT: Final = np.uint32(0x85EBCA77)


def hashed(
    words: list[str], request_words: list[str], request: str, on_text: list[str]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Places (int32 [n], each once) and their values (float32 [n]) of a prompt.

    `on_text`: words of the request or question if a text stands beside it; they have further places of their own then.
    """
    blocks = [
        np.unique(_words_and_pairs(words, 1, WORD_SLOTS)),
        np.unique(_words_and_pairs(request_words, 2, REQUEST_SLOTS)) + WORD_SLOTS,
        np.unique(_letter_groups(request)) + _LETTERS_AT,
    ]
    if on_text:
        blocks.append(np.unique(_words_and_pairs(on_text, 3, TEXT_SLOTS)) + _TEXT_AT)
    values = [np.full(len(block), 1 / max(len(block), 1) ** 0.5, dtype=np.float32) for block in blocks]
    return np.concatenate(blocks).astype(np.int32), np.concatenate(values)


def slot_names(slots: NDArray[np.int32], words: list[str], request_words: list[str]) -> list[str]:
    """What stands behind each place: "sort", "sort list" or "in the request: sort"; letter groups are not named."""
    names: dict[int, str] = {}
    for at, seed, n_slots, before, some in (
        (0, 1, WORD_SLOTS, "", words),
        (WORD_SLOTS, 2, REQUEST_SLOTS, "in the request: ", request_words),
        (_TEXT_AT, 3, TEXT_SLOTS, "in the request on a text: ", request_words),
    ):
        texts = [*some, *(f"{a} {b}" for a, b in itertools.pairwise(some))]
        for place, text in zip(_words_and_pairs(some, seed, n_slots).tolist(), texts, strict=True):
            names.setdefault(at + place, f"{before}“{text}”")
    return [names.get(slot, "letters of the request") for slot in slots.tolist()]


def _words_and_pairs(words: list[str], seed: int, n_slots: int) -> NDArray[np.int64]:
    """Places of all words, then of all neighbours."""
    codes = [zlib.crc32(word.encode("utf-8", "surrogatepass"), seed) for word in words]
    one = np.array(codes, dtype=np.uint32)
    two = one[:-1] * _SPREAD + one[1:] * _SPREAD_NEXT
    both = np.concatenate([one, two ^ (two >> np.uint32(15))])
    return (both % np.uint32(n_slots)).astype(np.int64)


def _letter_groups(request: str) -> NDArray[np.int64]:
    data = np.frombuffer(f" {' '.join(request.split())} ".encode("utf-8", "surrogatepass"), dtype=np.uint8)
    code = data.astype(np.uint32)
    four = code[:-3] + (code[1:-2] << np.uint32(8)) + (code[2:-1] << np.uint32(16)) + (code[3:] << np.uint32(24))
    places: NDArray[np.int64] = ((four * _SPREAD >> np.uint32(13)) % np.uint32(LETTER_SLOTS)).astype(np.int64)
    return places
