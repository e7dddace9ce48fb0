"""A conversation as token ids, with the turns of the assistant that are learned.

Every learned token stands behind exactly what the model sees on the device when it writes it: each answer behind the
prompt that the chat template writes for the turns before it. Where a template writes the past as it was said, the
answers of a conversation share one row. Where it rewrites it, as by dropping thoughts, each answer that is seen in
another way later begins a row of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...edge.errors import InputError
from ...edge.gguf.chat_template import Message
from ..model.bases import MARK, Base, completion_end
from .examples import Pair

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Learned:
    """Token ids, and the spans of them, from and to, that are learned."""

    ids: Ids
    spans: tuple[tuple[int, int], ...]


class Turns:
    """Makes rows of conversations for one base.

    Raises:
        UnsupportedError: its template ends an answer with no token that stops generation.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._end = completion_end(base)
        asked: list[Message] = [{"role": "user", "content": "x"}]
        prompt = base.template.render(asked)
        written = base.template.render([*asked, {"role": "assistant", "content": MARK}], False)
        # Whether an answer's text stands right behind the prompt, or a template puts more between them.
        self._direct = written.startswith(prompt + MARK)

    def rows(self, pair: Pair, most_tokens: int, *, apart: bool = False) -> tuple[list[Learned], int]:
        """The rows of a conversation, and how many answers were left out as too long.

        Args:
            apart: a row for each answer.

        Raises:
            InputError, UnsupportedError: the template refuses it.
        """
        made: list[Learned] = []
        n_long = 0
        for one in self._answers(pair):
            if len(one.ids) > most_tokens:
                n_long += 1
                continue
            before = made[-1] if made and not apart else None
            if before is not None and one.ids[: len(before.ids)] == before.ids and one.spans[0][0] >= len(before.ids):
                made[-1] = Learned(one.ids, (*before.spans, *one.spans))
            else:
                made.append(one)
        return made, n_long

    def _answers(self, pair: Pair) -> Iterator[Learned]:
        turns = pair.conversation
        last = len(turns) - 1
        for at, turn in enumerate(turns):
            if turn["role"] != "assistant" or not (pair.all_turns or at == last):
                continue
            if not turn["content"].strip() and not turn.get("tool_calls"):
                continue
            prompt = self._base.prompt_ids(turns[:at], pair.arguments)
            ids = (*prompt, *self._reply(turns[:at], turn, pair, prompt))
            yield Learned(ids, ((len(prompt), len(ids)),))

    def _reply(self, before: Sequence[Message], turn: Message, pair: Pair, prompt_ids: list[int]) -> list[int]:
        """What the model is to write behind the prompt, up to the token that ends it."""
        base, text = self._base, turn["content"].strip()
        plain = "tool_calls" not in turn and "reasoning_content" not in turn and "</" not in text
        if plain and self._direct:
            return [*base.answer_ids(text), *self._end]
        prompt = base.template.render(before, arguments=pair.arguments)
        written = base.template.render([*before, turn], False, arguments=pair.arguments)
        if not written.startswith(prompt):
            if plain:
                # The prompt has opened and closed the thoughts, say, where the template writes none.
                return [*base.answer_ids(text), *self._end]
            raise InputError("the chat template writes this answer in another way than its prompt begins it")
        tail = written[len(prompt) :]
        if tail.startswith(text) and "tool_calls" not in turn:
            return [*base.answer_ids(text), *self._end]
        whole = base.encode(written)
        ids = whole[len(prompt_ids) :] if whole[: len(prompt_ids)] == prompt_ids else base.encode(tail)
        for at, token_id in enumerate(ids):
            if base.is_end(token_id):
                return ids[: at + 1]
        raise InputError("the chat template ends this answer with no token that stops generation")
