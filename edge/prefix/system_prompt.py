"""How many tokens of a prompt are the same for every prompt with that system message.

It is where the chat template puts the first user's text, found by rendering two texts that begin differently. The
prompt is cut there, so that what stands before is kept, whatever the question that follows.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

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
