"""Conversations as token ids: control tokens come from the chat template alone, never from what a message says.

    encoder = PromptEncoder(base.file, template, vocab)
    encoder.encode([{"role": "user", "content": "What does <|im_end|> mean?"}])

Where a message holds what a special token may begin with, marks are put in behind it and the conversation is rendered
once more: what a mark parts in the text is not read as a special token. A template may look at its messages ("does it
begin with <think>?"); so the text without the marks must be the text that was rendered without them. Where it is not,
marks are put elsewhere, message by message, and last, places are told by what stands around them. Ids are those of the
whole text wherever no message holds the text of a special token.

`SystemPrefix` says how many tokens are the same for every prompt with that system message. It is where the chat
template puts the first user's text, found by rendering two texts that begin differently. The prompt is cut there, so
that what stands before is kept, whatever the question that follows.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import DoesNotFitError, InputError, SlmEdgeError
from ..gguf.chat_template import ChatTemplate, Message, Turn
from ..gguf.file import GgufFile
from .vocab import SHORT_BYTES, n_same

if TYPE_CHECKING:
    from .text_pieces import SpecialToken

# GGUF's tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
# Letters of the private use areas, in which no text is written; the first that neither messages nor template hold
_MARKS: Final = "\ue3f7\uf5a1\U000f3e71\U0010a5c3"
# Marked one by one up to here; more messages are told by what stands around
_MOST_TEXTS: Final = 64
# Letters to each side of a special token's text by which a place is told
_AROUND: Final = 16
# With more, none of the token's places in the rendered text are read: looking for each would take its time
_MOST_SIDES: Final = 256
# What a role is made of; anything else is text
_ROLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}")
# User-defined tokens that mark turns and the like; others, such as runs of spaces or <table>, are ordinary text
_MARKER: Final = re.compile(r"<[|｜].*|.*[|｜]>|</?\w+[_▁]\w+>|\[/?[A-Z_]{3,}\]|</?(s|bos|eos|pad|unk|eot|think)>")
# Held by tokens that llama.cpp takes for control tokens by their text, whatever the file says of them
_ALWAYS: Final = "<["


class Tokenizer(Protocol):
    """What conversations are encoded with: `vocab.Vocab`, or a twin of it on another tokenizer."""

    @property
    def special_tokens(self) -> "list[SpecialToken]":
        """All of them."""

    @property
    def control_ids(self) -> frozenset[int]:
        """Those that are read only where the template wrote them."""

    @property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token."""

    def encode(self, text: str, *, breaks: Sequence[int] = (), apart: Collection[int] = frozenset()) -> list[int]:
        """As `Vocab.encode`."""


class PromptEncoder:
    """Renders conversations and encodes them.

    Args:
        file: the base, or the keys of its vocabulary alone.
        template, vocab: of the base.
        allow_special: texts of special tokens in messages become these tokens.
    """

    def __init__(
        self,
        file: GgufFile | Mapping[str, Any],
        template: ChatTemplate,
        vocab: Tokenizer,
        *,
        allow_special: bool = False,
    ) -> None:
        self._template = template
        self._vocab = vocab
        self._allow_special = allow_special
        tokens: list[str] = file.get("tokenizer.ggml.tokens", [])
        types: list[int] = file.get("tokenizer.ggml.token_type", [])
        # No list of pairs: 49,152 of them make the collector of cycles run, which takes longer than all else here.
        special = [text for text, kind in zip(tokens, types, strict=False) if kind in (_UNKNOWN, _CONTROL)]
        special += [
            text for text, kind in zip(tokens, types, strict=False) if kind == _USER_DEFINED and self._is_marker(text)
        ]
        # What a special token that is kept out of messages begins with; SPM writes a space as ▁
        begins = {text.lstrip("▁")[:1] for text in special} - {""} | set(_ALWAYS)
        self._begin = re.compile("[" + "".join(map(re.escape, sorted(begins))) + "]")

    def encode(
        self,
        messages: Sequence[Message],
        *,
        turn: Turn = "new",
        most_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            turn: how it ends.
            tools, arguments: as in `ChatTemplate.render`; special tokens are kept out of their texts too.
            most_tokens: a conversation that must have more is refused before anything is computed.

        Raises:
            DoesNotFitError: it is longer than `most_tokens` tokens can be.
            InputError, UnsupportedError: as `ChatTemplate.render`, and for an argument that the template never reads.
        """
        told = {**(arguments or {}), **({} if tools is None else {"tools": list(tools)})}
        self._template.check_arguments(told)
        # What the arguments say is marked as a further message would be.
        given: list[Any] = [*messages, told]
        texts = [text for one in given for text in _texts_of(one)]
        self._check_length(texts, most_tokens)

        def render(changed: Sequence[Any]) -> str:
            return self._template.render(
                changed[:-1], turn == "new", arguments=changed[-1], continue_final_message=turn == "open"
            )

        plain = render(given)
        if self._allow_special or not any(map(self._begin.search, texts)):
            return self._vocab.encode(plain)
        breaks = self._breaks(given, texts, plain, render)
        return self._vocab.encode(plain, breaks=breaks, apart=self._apart_ids)

    def _is_marker(self, text: str) -> bool:
        """Whether a user-defined token acts as a control token: the template writes it, or it looks like one."""
        return bool(text.strip(" \t\r\n▁")) and (text in self._template.source or _MARKER.fullmatch(text) is not None)

    @cached_property
    def _apart(self) -> dict[str, int]:
        """Text -> id of the special tokens that are kept out of messages, the longest first."""
        named = ((one.text.decode("utf-8", errors="surrogateescape"), one) for one in self._vocab.special_tokens)
        return {text: one.id for text, one in named if one.is_control or self._is_marker(text)}

    @cached_property
    def _apart_ids(self) -> frozenset[int]:
        return frozenset(self._apart.values())

    @cached_property
    def _control(self) -> frozenset[str]:
        return frozenset(text for text, token_id in self._apart.items() if token_id in self._vocab.control_ids)

    def _check_length(self, texts: Sequence[str], most_tokens: int | None) -> None:
        n_letters = sum(map(len, texts))
        if most_tokens is None or n_letters <= SHORT_BYTES:
            return
        most_bytes = most_tokens * self._vocab.longest_token_bytes
        if n_letters > most_bytes:
            raise DoesNotFitError(
                f"the prompt has {n_letters} letters; {most_tokens} tokens, which the context holds, "
                f"stand for at most {most_bytes} bytes",
                hint="shorten it",
            )

    def _breaks(
        self, messages: Sequence[Any], texts: Sequence[str], plain: str, render: Callable[[Sequence[Any]], str]
    ) -> list[int]:
        """Places in the rendered text across which no special token is read."""
        mark = next((one for one in _MARKS if one not in plain and not any(one in text for text in texts)), None)
        if mark is None:
            raise InputError("the prompt holds every letter that could mark its messages", hint="leave them out")

        def places(marked: Sequence[str]) -> list[int] | None:
            try:
                text = render(_with_texts(messages, iter(marked)))
            except SlmEdgeError:
                # The template refuses what it does not know, as a marked word
                return None
            parts = text.split(mark)
            if "".join(parts) != plain:
                return None
            return list(accumulate(map(len, parts[:-1])))

        dense = [self._begin.sub(lambda found: found[0] + mark, text) for text in texts]
        found = places(dense)
        if found is not None:
            return found
        chosen = list(texts)
        # Texts with special tokens whose places are not known yet
        untold: list[tuple[str, Collection[str]]] = []
        n_tried = 0
        for i, text in enumerate(texts):
            if dense[i] == text:
                continue
            left: Collection[str] = self._apart
            if n_tried < _MOST_TEXTS:
                for marked, told in self._ways_to_mark(text, dense[i], mark):
                    if places([*chosen[:i], marked, *chosen[i + 1 :]]) is not None:
                        chosen[i], left = marked, self._apart.keys() - told
                        break
            n_tried += 1
            untold.append((text, left))
        around = [place for text, left in untold for place in self._places_around(text, left, plain)]
        return sorted({*(places(chosen) or ()), *around})

    def _ways_to_mark(self, text: str, dense: str, mark: str) -> Iterator[tuple[str, Collection[str]]]:
        """Ways to mark a message, for templates that look for some tokens in it; with the tokens that each tells."""
        yield dense, self._apart.keys()
        held = [one for one in self._apart if one in text]
        for some, told in ((held, self._apart.keys()), ([one for one in held if one in self._control], self._control)):
            pattern = "|".join(map(re.escape, some))
            yield re.sub(pattern, lambda found: found[0][:1] + mark + found[0][1:], text) if some else text, told

    def _places_around(self, text: str, tokens: Collection[str], plain: str) -> Iterator[int]:
        """Where special tokens of a message stand in the rendered text, by the letters around them."""
        for known in tokens:
            sides = set(_sides(text, known))
            few = sides if len(sides) <= _MOST_SIDES else set()
            places = {place for before, behind in few for place in _told_by(before, known, behind, plain)}
            # Where the template wrote it in another way: better none of them than one of a stranger's
            if len(sides) > _MOST_SIDES or (sides and not places and known in self._control):
                places = set(_all_places(plain, known))
            yield from (place + 1 for place in places)


def _sides(text: str, known: str) -> Iterator[tuple[str, str]]:
    """What stands before and behind each place of a token's text in a message."""
    for start in _all_places(text, known):
        end = start + len(known)
        yield text[max(start - _AROUND, 0) : start].lstrip(), text[end : end + _AROUND].rstrip()


def _told_by(before: str, known: str, behind: str, plain: str) -> list[int]:
    """Where the token stands between these in the rendered text; a template may have cut off one side."""
    for one, other in ((before, behind), *(side for side in ((before, ""), ("", behind)) if any(side))):
        found = [place + len(one) for place in _all_places(plain, one + known + other)]
        if found:
            return found
    return []


def _texts_of(value: Any, key: str = "") -> Iterator[str]:
    """Every text in a message but its keys and plain roles."""
    if isinstance(value, str):
        if key != "role" or not _ROLE.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts_of(inner, str(name))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts_of(inner)


def _with_texts(value: Any, texts: Iterator[str], key: str = "") -> Any:
    """The same with other texts, in the order of `_texts_of`."""
    if isinstance(value, str):
        return next(texts) if key != "role" or not _ROLE.fullmatch(value) else value
    if isinstance(value, Mapping):
        return {name: _with_texts(inner, texts, str(name)) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [_with_texts(inner, texts) for inner in value]
    return value


def _all_places(text: str, wanted: str) -> Iterator[int]:
    at = text.find(wanted)
    while at >= 0:
        yield at
        at = text.find(wanted, at + 1)


# A shorter one is computed anew in no time; cutting there would only make the prompt slower.
MIN_TOKENS: Final = 32
_PROBES: Final = ("0", "Why", "\n#")
_MOST_KNOWN: Final = 64


class SystemPrefix:
    """Lengths by system message, each found once.

    Args:
        prompts: of the base.
    """

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts
        self._known: dict[tuple[str | None, str], list[int]] = {}

    def length(
        self, messages: Sequence[Message], token_ids: Sequence[int], arguments: Mapping[str, Any] | None = None
    ) -> int:
        """Tokens of the system part of a rendered conversation; 0 if it is short or does not stand by itself.

        Args:
            arguments: of the template, as it was rendered with: tools stand in the system part too.
        """
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        key = system, json.dumps(arguments, sort_keys=True) if arguments else ""
        prefix = self._known.get(key)
        if prefix is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            prefix = self._known[key] = self._found(system, arguments)
        n_tokens = len(prefix)
        return n_tokens if MIN_TOKENS <= n_tokens < len(token_ids) and token_ids[:n_tokens] == prefix else 0

    def _found(self, system: str | None, arguments: Mapping[str, Any] | None) -> list[int]:
        first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        asked: list[list[Message]] = [[*first, {"role": "user", "content": probe}] for probe in _PROBES]
        try:
            rows = [self._prompts.encode(one, arguments=arguments) for one in asked]
        except SlmEdgeError:
            return []
        return rows[0][: n_same(*rows)]
