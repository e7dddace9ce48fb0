"""Finds llama.cpp's pre-tokenizer for a tokenizer by trying: the one whose token ids agree everywhere is right.

    found = find_pretokenizer(tokenizer, "llama")      # Found(name="qwen2", texts=812, differences=0)

A published table of hashes would only know the tokenizers that someone has met. Here each candidate is written into
a vocabulary-only GGUF, loaded by llama.cpp and compared with the reference on texts of many scripts and on a sample
of the vocabulary itself.
"""

import itertools
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...edge.errors import EngineError, InputError, UnsupportedError
from ...edge.llama.vocab import Vocab
from ..files.gguf_writer import Value, text, write_gguf
from .corpus import sample_texts
from .tokenizer import ReadTokenizer

# Each splits text in its own way (llama-vocab.cpp); of names that split alike one stands here. The second value:
# a word that is a token is taken whole, whatever its merges.
CANDIDATES: Final = {
    "llama-bpe": True,
    "qwen2": False,
    "smollm": False,
    "gpt-2": False,
    "smaug-bpe": False,
    "tekken": True,
    "gpt-4o": False,
    "qwen35": False,
    "deepseek-llm": False,
    "deepseek-coder": False,
    "deepseek-v3": False,
    "falcon": False,
    "default": False,
    "minicpm5": True,
    "seed-coder": False,
    "bailingmoe": False,
    "exaone-moe": False,
    "granite-embed-multi-97m": True,
    "jais-2": False,
    "poro-chat": False,
    "viking": False,
    "tiny_aya": False,
    "superbpe": False,
    "youtu": True,
    "ufakzeka": False,
    "kimi-k2": False,
    "afmoe": False,
    "glm4": True,
}
# Expressions from which llama.cpp made a pre-tokenizer of its own, though not an exact one: taken, and said.
MADE_FROM: Final = {
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
# What `forced` is called where there is no choice
SENTENCEPIECE: Final = "default"
SHOWN: Final = 5
# whole words of the vocabulary itself, which merges may not lead to
SAMPLED_TOKENS: Final = 800


@dataclass(frozen=True)
class Difference:
    """A text on which the two disagree, with the token ids of each."""

    text: str
    expected: list[int]
    found: list[int]

    def __str__(self) -> str:
        pairs = enumerate(zip(self.expected, self.found, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(self.expected), len(self.found)))
        start = max(0, at - 1)
        shown = self.text if len(self.text) <= 40 else self.text[:40] + "…"
        return (
            f"{shown!r}: from token {at} on {self.expected[start : start + 5]}, "
            f"llama.cpp says {self.found[start : start + 5]}"
        )


@dataclass(frozen=True)
class Found:
    """The result of a comparison.

    Attributes:
        name: for `tokenizer.ggml.pre`; None for SentencePiece tokenizers, which have none.
        n_texts: how many texts were compared.
        differences: where the two disagree; empty when it was found by trying.
    """

    name: str | None
    n_texts: int
    differences: tuple[Difference, ...] = ()

    def keys(self) -> dict[str, Value]:
        """The GGUF key."""
        return {} if self.name is None else {"tokenizer.ggml.pre": text(self.name)}


def comparison_texts(tokenizer: ReadTokenizer) -> list[str]:
    """Everything that the tokenizer is tried on."""
    texts = sample_texts(tokenizer.composes)
    step = max(1, len(tokenizer.tokens) // SAMPLED_TOKENS)
    pieces = []
    with _vocab_of(tokenizer, "default" if tokenizer.kind == "gpt2" else None, "llama") as vocab:
        for index in range(0, len(tokenizer.tokens), step):
            piece = vocab.piece(index).decode("utf-8", errors="replace")
            if piece.strip() and "\ufffd" not in piece and not piece.startswith("[PAD"):
                pieces.append(piece)
    probes = [*pieces, *(f"x {piece}" for piece in pieces[::4])]
    texts += [line for line in probes if not tokenizer.composes or unicodedata.is_normalized("NFC", line)]
    if tokenizer.parses_special:
        between = "x" if tokenizer.spaced_once else " x"
        texts += [line for token in tokenizer.added for line in (token, f"a{token}b", f"{token}\n{token}{between}")]
    return [line for line in texts if not (tokenizer.spaced_once and line.startswith((" ", "▁")))]


def _vocab_file(folder: Path, tokenizer: ReadTokenizer, pre: str | None, architecture: str) -> Path:
    path = folder / "vocab.gguf"
    keys = {"general.architecture": text(architecture)} | tokenizer.keys
    write_gguf(path, keys if pre is None else keys | {"tokenizer.ggml.pre": text(pre)}, [])
    return path


class _vocab_of:
    """Opens a tokenizer's vocabulary with one candidate, from a file that lives as long as the block."""

    def __init__(self, tokenizer: ReadTokenizer, pre: str | None, architecture: str) -> None:
        self._args = (tokenizer, pre, architecture)

    def __enter__(self) -> Vocab:
        with tempfile.TemporaryDirectory(prefix="slm-edge-") as folder:
            self._vocab = Vocab.open(_vocab_file(Path(folder), *self._args))
        return self._vocab

    def __exit__(self, *_: object) -> None:
        self._vocab.close()


def differences(vocab: Vocab, tokenizer: ReadTokenizer, texts: Iterable[str]) -> Iterator[Difference]:
    """The texts on which llama.cpp's token ids are not the reference's."""
    for line in texts:
        line = tokenizer.behind + line
        expected, got = tokenizer.encode(line), vocab.encode(line, special=tokenizer.parses_special)
        if expected != got:
            yield Difference(line, expected, got)


def compare(
    tokenizer: ReadTokenizer, name: str | None, architecture: str, texts: list[str], at_most: int | None = None
) -> Found:
    """Compares one candidate on all texts, or until it has `at_most` differences."""
    with _vocab_of(tokenizer, name, architecture) as vocab:
        found = itertools.islice(differences(vocab, tokenizer, texts), at_most)
        return Found(name, len(texts), tuple(found))


def find_pretokenizer(tokenizer: ReadTokenizer, architecture: str, forced: str | None = None) -> Found:
    """The pre-tokenizer with which llama.cpp and the reference agree on every text, else one of `MADE_FROM`.

    Args:
        forced: take this one, and only report where it differs.

    Raises:
        UnsupportedError: none agrees; the nearest and where it differs are in the message.
        InputError: a name for a tokenizer that has none.
    """
    texts = comparison_texts(tokenizer)
    if tokenizer.kind != "gpt2":
        # SentencePiece has no pre-tokenizer: the one name there is takes it as it is.
        if forced not in (None, SENTENCEPIECE):
            raise InputError(
                f"a SentencePiece tokenizer has no pre-tokenizer {forced!r}",
                hint=f"--pre-tokenizer {SENTENCEPIECE} takes it as it is, and says where it differs",
            )
        same = compare(tokenizer, None, architecture, texts)
        return _agreed(same) if forced is None else same
    if forced is not None:
        return compare(tokenizer, forced, architecture, texts)
    best: Found | None = None
    # Candidates that treat whole words as this tokenizer does come first; `sorted` keeps their order otherwise.
    for name in sorted(CANDIDATES, key=lambda name: CANDIDATES[name] != tokenizer.ignores_merges):
        try:
            # A candidate that is worse than the best so far need not be tried to its end.
            found = compare(tokenizer, name, architecture, texts, len(best.differences) if best else None)
        except EngineError:
            # An older or newer llama.cpp may not know a name.
            continue
        if not found.differences:
            return found
        if best is None or len(found.differences) < len(best.differences):
            best = found
    if best is None:
        raise EngineError("llama.cpp knows none of the pre-tokenizers that are tried")
    if best.differences and tokenizer.pattern in MADE_FROM:
        return compare(tokenizer, MADE_FROM[tokenizer.pattern], architecture, texts)
    return _agreed(best)


def _agreed(best: Found) -> Found:
    if not best.differences:
        return best
    name = f"the nearest, {best.name!r}," if best.name else "it"
    raise UnsupportedError(
        f"llama.cpp does not tokenize as the checkpoint's tokenizer does: {name} differs in "
        f"{len(best.differences)} of {best.n_texts} texts",
        problems=[str(difference) for difference in best.differences[:SHOWN]],
        hint=f"to take it nevertheless: --pre-tokenizer {best.name or SENTENCEPIECE}",
    )
