"""What a model thinks before it answers, told apart from the answer.

    out = Thoughts(Thinking(("<think>", "</think>")))
    out.feed("<think>17 * 20 is 34")        # ("17 * 20 is 34", "")
    out.feed("0</think>\\n\\n391")            # ("0", "391")

Thinking stands at an answer's beginning alone. Where the prompt ends with the mark that opens it, as some templates
write it, the answer begins within.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..gguf.chat_template import THINKING_FORMS, ChatTemplate
from ..llama.vocab import Vocab
from ..pack.card import TaskCard
from .stream import longest_beginning

_TAIL_TOKENS: Final = 16


@dataclass(frozen=True)
class Thinking:
    """How an answer's thoughts are told.

    Attributes:
        form: the text that opens them, and the one that closes them.
        begun: the prompt has opened them already.
        markers: token id -> text, of the parts of `form` that a vocabulary does not show.
    """

    form: tuple[str, str]
    begun: bool = False
    markers: Mapping[int, bytes] = field(default_factory=dict)

    def thoughts(self) -> "Thoughts":
        """What splits one answer."""
        return Thoughts(self)


def form_of(template: ChatTemplate, card: TaskCard) -> tuple[str, str] | None:
    """What opens and closes a model's thinking, by the task card, else by its chat template; None for none."""
    if card.thinking is not None:
        return (card.thinking[0], card.thinking[1]) if card.thinking else None
    return template.thinking_form


def thinking_of(template: ChatTemplate, card: TaskCard, vocab: Vocab, ids: Sequence[int]) -> Thinking | None:
    """How the thoughts in the answer to a rendered prompt are told; None where the model has none."""
    form = form_of(template, card)
    if form is None:
        return None
    parts = {token_id for text in form for token_id in vocab.encode(text)}
    hidden = {token_id: vocab.piece(token_id, special=True) for token_id in parts if not vocab.piece(token_id)}
    tail = vocab.decode(list(ids[-_TAIL_TOKENS:]), special=True)
    return Thinking(form, tail.rstrip().endswith(form[0].rstrip()), hidden)


class Thoughts:
    """Splits the text of an answer as it comes.

    Attributes:
        is_over: what comes now is the answer.
    """

    def __init__(self, thinking: Thinking) -> None:
        self._open, self._close = thinking.form
        self.markers = thinking.markers
        self._inside = thinking.begun
        self._held = ""
        self.is_over = False
        self._is_answer = False

    def feed(self, text: str) -> tuple[str, str]:
        """The thoughts and the answer that are final by a further piece of text."""
        self._held += text
        thought = ""
        if not self._inside and not self.is_over:
            begin = self._held.lstrip()
            if begin.startswith(self._open):
                self._inside, self._held = True, begin[len(self._open) :]
            elif self._open.startswith(begin):
                return "", ""
            else:
                self.is_over = self._is_answer = True
        if self._inside:
            thought, closed, rest = self._held.partition(self._close)
            if not closed:
                thought = self._held[: len(self._held) - longest_beginning(self._held, self._close)]
                self._held = self._held[len(thought) :]
                return thought, ""
            self._inside, self.is_over, self._held = False, True, rest
        if not self._is_answer:
            self._held = self._held.lstrip()
            self._is_answer = bool(self._held)
        said, self._held = self._held, ""
        return thought, said

    def finish(self) -> tuple[str, str]:
        """What was held back, once the answer has ended."""
        held, self._held = self._held, ""
        return (held, "") if self._inside else ("", held)


def split(text: str, forms: Sequence[tuple[str, str]] = THINKING_FORMS) -> tuple[str, str]:
    """Thoughts and answer of a whole text whose template is not known, as servers give it."""
    for form in forms:
        begun = not text.lstrip().startswith(form[0]) and form[0] not in text and form[1] in text
        if begun or text.lstrip().startswith(form[0]):
            out = Thoughts(Thinking(form, begun))
            parts = out.feed(text), out.finish()
            return "".join(part[0] for part in parts).strip(), "".join(part[1] for part in parts)
    return "", text
