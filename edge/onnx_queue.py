"""Requests handed in to an ONNX session, answered one after the other: the twin of `batcher.Batcher`.

Our graph could hold several sequences, but a step of each would then cost as much as one step of the longest for all,
and prompts would have to be computed together to be bound in place; one after the other costs nothing more than asking.
"""

import time
from collections.abc import Callable

from .batcher import Pending
from .choice import Choice
from .errors import EngineError, SlmEdgeError
from .stream import Request, Stream, Worker
from .vocab import Vocab


class OnnxQueue:
    """Answers what is handed in, in order of arrival.

    Args:
        lane: of the session; whatever it was answering is given up when the next request begins.
    """

    def __init__(self, lane: Worker, vocab: Vocab) -> None:
        self._lane = lane
        self._vocab = vocab
        self._waiting: list[Pending] = []

    def submit(self, request: Request, choice: Choice, on_text: Callable[[str], object] | None = None) -> Pending:
        """Hands a request in; nothing is computed yet."""
        pending = Pending(self, request, choice, on_text)
        self._waiting.append(pending)
        return pending

    def run(self) -> None:
        """Answers everything that waits."""
        while self.advance():
            pass

    def advance(self) -> bool:
        """Answers the request that waits longest.

        Returns:
            Whether anything is left to do.
        """
        if self._waiting:
            pending = self._waiting.pop(0)
            try:
                stream = Stream(self._lane, self._vocab, pending.request, time.perf_counter())
                for text in stream:
                    if pending.on_text is not None:
                        pending.on_text(text)
                pending.answer = stream.answer
            except SlmEdgeError as error:
                pending.error = error
            except BaseException as error:
                pending.error = error
                raise
        return bool(self._waiting)

    def cancel(self, pending: Pending) -> None:
        """Takes a request out."""
        if not pending.done:
            pending.error = EngineError("the request was given up")
            self._waiting.remove(pending)

    def close(self) -> None:
        """What is not answered fails. Calling it twice does nothing."""
        for pending in list(self._waiting):
            self.cancel(pending)
