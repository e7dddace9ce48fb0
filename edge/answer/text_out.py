"""Turns the bytes of tokens into text to show: never half a character, never a part of a stop text.

out = TextOut(stop=["\\n\\nQuestion:"])
out.feed(b"12\\n\\nQues")      # "12"; the rest may become a stop text and is held back
out.feed(b"t")               # "\\n\\nQuest"? no: still a beginning of the stop text, so ""
out.finish()                 # what was held back, when the answer ends without the stop text
"""

import codecs
from collections.abc import Sequence


class TextOut:
    """Decodes UTF-8 and looks for stop texts across token boundaries.

    Args:
        stop: texts that end an answer; empty ones are ignored. They are never part of what is shown.

    Attributes:
        stopped: a stop text was met; whatever is fed later is dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that can be shown now."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, once the answer has ended. A cut character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(self._longest_beginning(stop) for stop in self._stop)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _longest_beginning(self, stop: str) -> int:
        """Length of the longest end of the held text with which `stop` begins."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
