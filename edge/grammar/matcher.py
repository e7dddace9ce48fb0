"""Which tokens may come next: llguidance's matcher over a model's own vocabulary, the same for both engines."""

import weakref
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, InputError, UnsupportedError
from .rules import Rules, gbnf_grammar, part_grammar
from .trial import tried

# What one grammar may take. States cost 1 to 2 kB each; a mask stays within tenths of a second.
LIMITS: Final[dict[str, Any]] = {
    "max_items_in_row": 5_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 100_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
}
# Of so many schemas within a refused one it is seen which is at fault.
_MOST_PARTS: Final = 200
_MOST_PART_CHARS: Final = 4_000_000
_MOST_KNOWN: Final = 1000
# First byte of what llguidance takes for a special token; never the first byte of a character.
_MARK: Final = 0xFF


class Tokens(Protocol):
    """A vocabulary; `llama.vocab.Vocab` is one."""

    n_tokens: int

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        """The bytes of every token, and which of them are special."""

    def ends(self) -> list[int]:
        """The tokens that end an answer."""


class _Vocabulary:
    """What llguidance asks of a tokenizer. It never tokenizes: `no_forcing` is set in every grammar."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocab: Tokens) -> None:
        tokens, specials = vocab.token_bytes()
        special = set(specials)
        self.tokens = [b"" if piece[:1] == b"\xff" and i not in special else piece for i, piece in enumerate(tokens)]
        self.special_token_ids = specials
        self.ends = vocab.ends()
        if not self.ends:
            raise UnsupportedError("the model has no end token, so that no answer could end within a grammar")
        self.eos_token_id = self.ends[0]

    def __call__(self, text: bytes) -> list[int]:
        return []


class _Tokenizer:
    """llguidance's tokenizer of a vocabulary, and the grammars that were tried with it."""

    def __init__(self, vocab: Tokens) -> None:
        import llguidance

        vocabulary: Any = _Vocabulary(vocab)
        self.n_tokens = vocab.n_tokens
        self.ends = frozenset(vocabulary.ends)
        self.handle: Any = llguidance.LLTokenizer(vocabulary, eos_token=vocabulary.ends)
        self._limits: Any = llguidance.LLParserLimits(**LIMITS, verbose_errors=False)
        self._new: Any = llguidance.LLMatcher
        self._specials = {
            i: vocabulary.tokens[i].decode("utf-8", "replace") for i in vocabulary.special_token_ids[:_MOST_KNOWN]
        }
        self._passed: set[bytes] = set()

    def matcher(self, rules: Rules) -> Any:
        """A new matcher; InputError where llguidance refuses the rules or they allow no answer."""
        digest = sha256(rules.lark.encode()).digest()
        known = digest in self._passed
        if not (known or rules.plain):
            said = self._try([rules.lark])
            if isinstance(said, str):
                raise _refused(rules, said)
            if said[0] is not None:
                raise _refused(rules, said[0], self._at_fault(rules, said[0]))
        matcher = self._new(self.handle, rules.lark, log_level=0, limits=self._limits)
        if not (known or matcher.is_error()):
            # Rules that nothing keeps to are seen with the first mask.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(rules, matcher.get_error(), self._at_fault(rules, matcher.get_error()))
        if len(self._passed) >= _MOST_KNOWN:
            self._passed.clear()
        self._passed.add(digest)
        return matcher

    def _try(self, grammars: Sequence[str]) -> list[str | None] | str:
        return tried(grammars, LIMITS, self.n_tokens, self._specials)

    def _at_fault(self, rules: Rules, reason: str) -> str:
        """The path of the innermost schema that is refused for the same reason; "" where it is not found."""
        parts = list(rules.parts)[:_MOST_PARTS]
        if len(rules.lark) * len(parts) > _MOST_PART_CHARS:
            return ""
        said = self._try([part_grammar(part) for _, part in parts]) if parts else ""
        same = [
            path for (path, _), one in zip(parts, said, strict=False) if one and _sentence(one) == _sentence(reason)
        ]
        return same[-1] if same and not isinstance(said, str) else ""


# Making one takes some tenths of a second.
_TOKENIZERS: Final[weakref.WeakKeyDictionary[Tokens, _Tokenizer]] = weakref.WeakKeyDictionary()


class Grammar:
    """The state of an answer in the making.

    Args:
        rules: a text is GBNF.
        vocab: of the model that answers.

    Raises:
        InputError: the rules are not valid, or too much to be kept.
        UnsupportedError: the model has no end token.
    """

    def __init__(self, rules: Rules | str, vocab: Tokens) -> None:
        rules = gbnf_grammar(rules) if isinstance(rules, str) else rules
        tokenizer = _TOKENIZERS.get(vocab)
        if tokenizer is None:
            tokenizer = _TOKENIZERS[vocab] = _Tokenizer(vocab)
        self._n_tokens = tokenizer.n_tokens
        self._ends = tokenizer.ends
        self._matcher: Any = tokenizer.matcher(rules)

    def allows(self, token_id: int) -> bool:
        """Whether the answer may go on with this token, or end with it."""
        return self.n_allowed([token_id]) == 1

    def n_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may follow, one after the other; the state stays as it is."""
        ids = [int(token_id) for token_id in token_ids]
        if self._matcher.is_stopped():
            return int(bool(ids) and ids[0] in self._ends and not self._matcher.is_error())
        return int(self._matcher.validate_tokens(ids))

    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token of the vocabulary, (n_tokens,), whether it may come next; errors as `allowed_of`."""
        return np.unpackbits(self._bits(), count=self._n_tokens, bitorder="little").view(np.bool_)

    def allowed_of(self) -> Callable[[npt.NDArray[np.intp]], npt.NDArray[np.bool_]]:
        """Tells which of some tokens may come next, for as long as none is accepted.

        Raises:
            EngineError: no token may, or the grammar has become too much to go on with.
        """
        bits = self._bits()
        most = 8 * len(bits) - 1

        def allowed(ids: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
            known = np.minimum(ids, most)
            one: npt.NDArray[np.bool_] = (bits[known >> 3] >> (known & 7).astype(np.uint8) & 1).astype(np.bool_)
            return one & (ids < self._n_tokens)

        return allowed

    def _bits(self) -> npt.NDArray[np.uint8]:
        """One bit for each token."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            ends = np.zeros(-(-self._n_tokens // 8) * 8, np.bool_)
            ends[list(self._ends)] = True
            return np.packbits(ends, bitorder="little")
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise EngineError(
                "no token of the vocabulary continues the grammar, or it has become too much to go on with",
                problems=[_sentence(self._matcher.get_error())],
                hint="change the grammar or the schema",
            )
        return bits

    def mask(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits, shape (n_vocab,), with minus infinity for what may not come next; errors as `allowed`."""
        allowed = self.allowed()
        masked = np.full(len(logits), -np.inf, np.float32)
        n = min(len(logits), self._n_tokens)
        np.copyto(masked[:n], logits[:n], where=allowed[:n])
        return masked

    def accept(self, token_id: int) -> None:
        """Goes on with a token; EngineError where it is none that `allows`."""
        if self._matcher.is_stopped() and token_id in self._ends:
            return
        if not self._matcher.consume_token(token_id):
            raise EngineError("a token was accepted that the grammar does not allow")

    def close(self) -> None:
        """Nothing is held that would not go by itself."""


def _sentence(text: str) -> str:
    """What llguidance said, without where in the Lark that it never shows, its grammar and its own trace."""
    lines = [line.strip() for line in text.split("<backtrace>")[0].splitlines()]
    said = " ".join(line for line in lines if line and not line[:1].isdigit() and set(line) - {"^"})
    said = said.removeprefix("panic: ").replace("<non-verbose/>", "")
    head, found, rest = said.partition("): ")
    said = rest if found and head.startswith("at ") else said
    return said.removeprefix("failed to compile JSON schema: ").strip()[:300] or "it is not valid"


def _refused(rules: Rules, reason: str, path: str = "") -> InputError:
    said = _sentence(reason)
    if said == "NoExtensionBias":
        said = "nothing keeps to it"
    return InputError(f"the {rules.kind} cannot be used", problems=[f"{path}: {said}" if path else said])
