"""How many tokens of a prompt are the same for every prompt with that system message.

It is where the chat template puts the first user's text, found by rendering two texts that begin differently. The
prompt is cut there, so that what stands before is kept, whatever the question that follows.
"""

from collections.abc import Sequence
from typing import Final

from ..errors import SlmEdgeError
from ..gguf.chat_template import Message
from ..llama.prompt import PromptEncoder
from ..llama.vocab import n_same

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
        self._known: dict[str | None, list[int]] = {}

    def length(self, messages: Sequence[Message], token_ids: Sequence[int]) -> int:
        """Tokens of the system part of a rendered conversation; 0 if it is short or does not stand by itself."""
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        prefix = self._known.get(system)
        if prefix is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            prefix = self._known[system] = self._found(system)
        n_tokens = len(prefix)
        return n_tokens if MIN_TOKENS <= n_tokens < len(token_ids) and token_ids[:n_tokens] == prefix else 0

    def _found(self, system: str | None) -> list[int]:
        first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        try:
            rows = [self._prompts.encode([*first, {"role": "user", "content": probe}]) for probe in _PROBES]
        except SlmEdgeError:
            return []
        return rows[0][: n_same(*rows)]
