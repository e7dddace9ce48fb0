"""How a text is cut before llama.cpp tokenises it: at special tokens, and in long runs of letters.

llama.cpp looks for each special token by itself, the longest first; what it costs grows with the square of how many it
finds. The same is done here in linear time, so that what reaches llama.cpp holds none.

It splits a text into words by regular expressions. A few of them it computes with loops of its own; the others go
through std::regex, whose depth is the length of a match: some 26,000 letters of one kind in a row fill 8 MiB of stack.
"""

import ctypes
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from .binding import lib

# enum llama_token_attr of llama.h
UNKNOWN: Final = 1
CONTROL: Final = 1 << 3
USER_DEFINED: Final = 1 << 4
LSTRIP: Final = 1 << 7
RSTRIP: Final = 1 << 8
# What C's isspace takes for space
_SPACE: Final = b" \t\n\v\f\r"

# Natural text has no such run, but for writing without spaces, which is cut at its punctuation.
MOST_LETTERS: Final = 512
# Values of tokenizer.ggml.pre whose expressions are all computed by loops or match a few letters at most
# (unicode_regex_split_custom in src/unicode.cpp of llama.cpp); each holds 400,000 letters.
# fmt: off
SAFE: Final = frozenset((
    "a.x-4.0", "chameleon", "chatglm-bpe", "codeshell", "command-r", "dbrx", "deepseek-r1-qwen", "exaone", "exaone4",
    "f2llmv2", "falcon-h1", "falcon3", "gemma4", "gigachat", "glm4", "glm5", "gpt-2", "granite-docling",
    "granite-embed-multi-311m", "grok-2", "hunyuan", "jais", "jina-de", "jina-es", "jina-v1-en", "jina-v2-code",
    "jina-v2-de", "jina-v2-es", "jina-v5-nano", "kimi-k2", "kormo", "laguna", "lfm2", "llama-bpe", "llama-v3",
    "llama3", "megrez", "mellum", "mellum2", "midm-2.0", "minerva-7b", "modern-bert", "mpt", "olmo", "phi-2",
    "pixtral", "qwen2", "qwen35", "refact", "roberta-bpe", "sarvam-moe", "smaug-bpe", "smollm", "solar-open",
    "stablelm2", "starcoder", "trillion",
))
# fmt: on
# Here spaces between words belong to the match.
_WITH_SPACES: Final = frozenset({"exaone-moe"})
_RUNS: Final = re.compile(rf"\S{{{MOST_LETTERS + 1},}}|\s{{{MOST_LETTERS + 1},}}")
_RUNS_WITH_SPACES: Final = re.compile(rf"[\w ]{{{MOST_LETTERS + 1},}}|{_RUNS.pattern}")
# A word ends before: what is neither letter, digit, space nor apostrophe, behind a letter or digit
_WORD_END: Final = re.compile(r"(?<=\w)(?=[^\w\s'’])|(?<=\w)(?= \w)")


@dataclass(frozen=True)
class SpecialToken:
    """One special token.

    Attributes:
        text: as it stands in the vocabulary, UTF-8.
        attributes: bits as above.
    """

    id: int
    text: bytes
    attributes: int

    @property
    def is_control(self) -> bool:
        """Only read where special tokens are asked for; the others (user-defined) everywhere."""
        return bool(self.attributes & (CONTROL | UNKNOWN))


@dataclass(frozen=True)
class Spelled:
    """The text of a special token that is to be written with other tokens."""

    text: bytes


Piece = int | bytes | Spelled


def special_tokens(vocab: Any, n_tokens: int) -> list[SpecialToken]:
    """All special tokens of a `llama_vocab`, in the order in which llama.cpp looks for them: the longest first."""
    llama = lib()
    handle = ctypes.cast(vocab, ctypes.c_void_p)
    wanted = CONTROL | UNKNOWN | USER_DEFINED
    attributes = map(llama.llama_vocab_get_attr, repeat(handle), range(n_tokens))
    found = [
        SpecialToken(token_id, llama.llama_vocab_get_text(handle, token_id), bits)
        for token_id, bits in enumerate(attributes)
        if bits & wanted
    ]
    return sorted((one for one in found if one.text), key=lambda one: -len(one.text))


def pieces_of(
    data: bytes,
    tokens: Sequence[SpecialToken],
    *,
    control: bool,
    breaks: Sequence[int] = (),
    apart: Collection[int] = frozenset(),
) -> list[Piece]:
    """A text in pieces: token ids, plain texts that hold no special token to be read, texts to be spelled.

    Args:
        tokens: of the vocabulary, from `special_tokens`.
        control: control tokens are read too; else the user-defined alone, as llama.cpp does.
        breaks: places in `data`, sorted; a token of `apart` is not read across one of them.
    """
    taken = bytearray(len(data))
    found: list[tuple[int, int, Piece]] = []
    for token in tokens:
        if token.is_control and not control:
            continue
        across = breaks if token.id in apart else ()
        for start, end in _places(data, token.text, taken):
            if _crosses(start, end, across):
                if token.is_control:
                    # Plain text like what stands around it
                    continue
                piece: Piece = Spelled(token.text)
            else:
                piece = token.id
                if token.attributes & LSTRIP:
                    while start and data[start - 1] in _SPACE and not taken[start - 1]:
                        start -= 1
                if token.attributes & RSTRIP:
                    while end < len(data) and data[end] in _SPACE and not taken[end]:
                        end += 1
            taken[start:end] = b"\1" * (end - start)
            found.append((start, end, piece))
    pieces: list[Piece] = []
    at = 0
    for start, end, piece in sorted(found, key=lambda one: one[0]):
        if at < start:
            pieces.append(data[at:start])
        pieces.append(piece)
        at = end
    if at < len(data):
        pieces.append(data[at:])
    return pieces


def _places(data: bytes, text: bytes, taken: bytearray) -> Iterator[tuple[int, int]]:
    """Where a text stands in what is not taken, from left to right; the caller takes places meanwhile."""
    at = 0
    while (start := data.find(text, at)) >= 0:
        end = start + len(text)
        occupied = taken.rfind(1, start, end)
        if occupied < 0:
            yield start, end
            at = end
        else:
            # Behind what is taken there
            at = taken.find(0, occupied)
            if at < 0:
                return


def _crosses(first: int, end: int, breaks: Sequence[int]) -> bool:
    """Whether a break lies inside of first..end, not at its ends."""
    place = bisect_right(breaks, first)
    return place < len(breaks) and breaks[place] < end


def cut_long_runs(text: str, pre: str) -> Iterator[str]:
    """The text in parts that no pre-tokenizer recurses too deep over; itself where there is nothing to cut.

    Args:
        pre: the model's `tokenizer.ggml.pre`.
    """
    at = 0
    if pre not in SAFE and len(text) > MOST_LETTERS:
        for run in _runs(pre).finditer(text):
            for place in _cuts_in(run[0]):
                yield text[at : run.start() + place]
                at = run.start() + place
    yield text[at:]


def has_long_run(text: str, pre: str) -> bool:
    """Whether `cut_long_runs` would cut anything."""
    return pre not in SAFE and len(text) > MOST_LETTERS and _runs(pre).search(text) is not None


def _runs(pre: str) -> re.Pattern[str]:
    return _RUNS_WITH_SPACES if pre in _WITH_SPACES else _RUNS


def _cuts_in(run: str) -> Iterator[int]:
    """Where a run is cut: at the end of its last word within reach, else after `MOST_LETTERS`."""
    at = 0
    while len(run) - at > MOST_LETTERS:
        ends = [found.start() for found in _WORD_END.finditer(run, at + 1, at + MOST_LETTERS + 1)]
        # Digits are read in groups of three from the left.
        at = ends[-1] if ends else at + MOST_LETTERS // 3 * 3
        yield at
