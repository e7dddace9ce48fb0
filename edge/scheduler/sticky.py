"""Which adapter answered in a conversation so far, where the router chose it, so that it is left only for a reason.

known.note("key", talk_with_answer, "math")
known.adapter("key", [*talk_with_answer, {"role": "user", "content": "And then?"}])     # "math"
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from ..gguf.chat_template import Message

_MOST_KNOWN: Final = 1024


class Conversations:
    """By key and text, the ones that went on last; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, str | None] = OrderedDict()

    def adapter(self, key: str, messages: Sequence[Message]) -> str | None:
        """What gave the last answer of a conversation that goes on; None for the base alone, or if nobody knows."""
        answered = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not answered:
            return None
        name = _name(key, messages[: answered[-1] + 1])
        with self._lock:
            if name in self._known:
                self._known.move_to_end(name)
            return self._known.get(name)

    def note(self, key: str, messages: Sequence[Message], adapter: str | None) -> None:
        """What gave the last answer of these, which is their last message."""
        name = _name(key, messages)
        with self._lock:
            self._known[name] = adapter
            self._known.move_to_end(name)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)


def _name(key: str, messages: Sequence[Message]) -> bytes:
    """The key is part of it: nobody steers another one's conversation by saying the same."""
    texts = [[message["role"], str(message.get("content") or "").strip()] for message in messages]
    return hashlib.blake2b(json.dumps([key, texts]).encode(errors="surrogatepass"), digest_size=16).digest()
