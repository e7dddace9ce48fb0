"""Turns the bytes of tokens into text to show: never half a character, never a part of a stop text, no thoughts.

out = TextOut(stop=["\\n\\nQuestion:"])
out.feed(b"12\\n\\nQues")      # "12"; the rest may become a stop text and is held back
out.feed(b"t")               # "\\n\\nQuest"? no: still a beginning of the stop text, so ""
out.finish()                 # what was held back, when the answer ends without the stop text
"""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..llama.vocab import Vocab
    from .thinking import Thinking


class TextOut:
    """Decodes UTF-8, takes thoughts out, and looks for stop texts across token boundaries.

    Args:
        stop: texts that end an answer; empty ones are ignored. They are never part of what is shown, and thoughts may
            hold them.
        thinking: how thoughts are told; None: all is the answer.

    Attributes:
        stopped: a stop text was met; whatever is fed later is dropped.
        thought: what the last piece added to the thoughts.
    """

    def __init__(self, stop: Sequence[str] = (), thinking: "Thinking | None" = None) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._thoughts = thinking.thoughts() if thinking is not None else None
        self._thought: list[str] = []
        self.thought = ""
        self.stopped = False

    @property
    def thinking(self) -> str:
        """All thoughts so far, without the blanks around them."""
        return "".join(self._thought).strip()

    def take(self, token_id: int, vocab: "Vocab") -> str:
        """The text that can be shown by a further token."""
        piece = vocab.piece(token_id)
        if not piece and self._thoughts is not None and not self._thoughts.is_over:
            piece = self._thoughts.markers.get(token_id, piece)
        return self.feed(piece)

    def feed(self, piece: bytes) -> str:
        """The text that can be shown now."""
        if self.stopped:
            return ""
        return self._release(self._said(self._decoder.decode(piece)))

    def finish(self) -> str:
        """What was held back, once the answer has ended. A cut character becomes U+FFFD."""
        self.thought = ""
        if self.stopped:
            return ""
        said = self._said(self._decoder.decode(b"", final=True))
        if self._thoughts is not None:
            thought, rest = self._thoughts.finish()
            said += rest
            self._thought.append(thought)
            self.thought += thought
        text = self._release(said)
        held, self._held = self._held, ""
        return text + held

    def _said(self, text: str) -> str:
        """The part of a text that is the answer's; its thoughts are kept."""
        if self._thoughts is None:
            return text
        self.thought, said = self._thoughts.feed(text)
        if self.thought:
            self._thought.append(self.thought)
        return said

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(longest_beginning(self._held, stop) for stop in self._stop)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def longest_beginning(text: str, mark: str) -> int:
    """Length of the longest end of a text with which a mark begins."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
