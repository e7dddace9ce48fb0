"""What callers' threads do with a session's parts that never change: render, tokenize, choose, make samplers.

llama.cpp's tokenizer may be used beside its decoding; all of it stands under one lock, which the engine's thread takes
only to close.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..answer.base import SessionBase
from ..answer.settings import Settings, arguments_of, request_of, turn_of
from ..answer.thinking import thinking_of
from ..errors import EngineError, InputError
from ..gguf.chat_template import Message, Turn, checked_messages, messages_of
from ..llama.abort import AbortFlag
from ..pack.card import TaskCard
from ..prefix.chunks import Section
from ..router.router import Decision, Router
from .adapters import Bound
from .job import MOST_LOGPROBS, Job
from .sticky import Conversations
from .ticket import Ticket

if TYPE_CHECKING:
    from ..grammar.rules import Rules

# A prompt: a user message's text, a conversation, or token ids as they are, without template and system message.
Prompt = str | Sequence[Message] | Sequence[int]
# What the model may call, as {"type": "function", "function": {…}} each
Tools = Sequence[Mapping[str, Any]]
_PLAIN_RULES: Final = 'root ::= "a"'


class Rendered(NamedTuple):
    """A prompt as token ids; how many of them every prompt with its system message begins with, and whether that
    message is the pack's own, so that everyone may know that it was computed."""

    ids: list[int]
    n_shared_tokens: int
    is_public: bool


class Front:
    """Made on the engine's thread, used on any.

    Attributes:
        router: of the pack; None if it has none.
    """

    def __init__(self, session: SessionBase[Any]) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._closed = False
        self._conversations = Conversations()
        self.router: Router | None = None
        try:
            self.router = session.router
        except InputError:
            # Told where someone asks for it.
            self._no_router = "there is no router, which 'auto' needs"

    def choose(self, prompt: Prompt, key: str) -> Decision:
        """What the router chooses, in a conversation with what answered so far; raises InputError where there is none.

        Args:
            key: whose conversation it is.
        """
        if self.router is None:
            raise InputError(self._no_router, hint="name an adapter, or open a pack with a router")
        if _is_tokens(prompt):
            raise InputError("'auto' chooses by a text, and the prompt is token ids", hint="name an adapter")
        messages = checked_messages(prompt)  # type: ignore[arg-type]
        current = self._conversations.adapter(key, messages)
        with self._lock:
            return self.router.choose(messages, current=current)

    def ended(self, job: Job) -> None:
        """A request has ended."""
        answer = job.ticket.answer
        if job.talk is not None and answer is not None:
            talk: list[Message] = [*job.talk, {"role": "assistant", "content": answer.text}]
            self._conversations.note(job.ticket.key, talk, job.bound.name)

    def rendered(
        self,
        prompt: Prompt,
        system: str | None,
        card: TaskCard,
        tools: Tools | None = None,
        template_args: Mapping[str, Any] | None = None,
        turn: Turn = "new",
    ) -> Rendered:
        """A prompt as token ids."""
        if _is_tokens(prompt):
            if template_args or turn != "new":
                raise InputError("the chat template is told something beside token ids, which are taken as they are")
            return Rendered(self._checked_ids(prompt, system), 0, False)
        messages = messages_of(prompt, system, card.system)  # type: ignore[arg-type]
        arguments = arguments_of(card, template_args, tools)
        with self._lock:
            self._check()
            most = self._session.longest_tokens
            ids = self._session.prompts.encode(messages, turn=turn, most_tokens=most, arguments=arguments)
            n_shared_tokens = self._session.shared_tokens(messages, ids, arguments)
        first = messages[0]
        # What a caller gave the template stands in the beginning too.
        is_own = not tools and not template_args and (first["role"] != "system" or first.get("content") == card.system)
        return Rendered(ids, n_shared_tokens, is_own)

    def job(
        self,
        prompt: Prompt,
        bound: Bound,
        decision: Decision | None,
        number: int,
        *,
        system: str | None,
        key: str,
        n_top: int | None,
        settings: Settings,
        cancel: Callable[[Ticket], object],
        tools: Tools | None = None,
        salt: str = "",
    ) -> Job:
        """A request, checked as far as it can be without computing; errors as `Engine.submit`."""
        if n_top is not None and not 0 <= n_top <= MOST_LOGPROBS:
            raise InputError(f"logprobs is {n_top}; it must be between 0 and {MOST_LOGPROBS}")
        session, choice = self._session, bound.choice
        rendered = self.rendered(prompt, system, choice.card, tools, settings.get("template_args"), turn_of(settings))

        def sections() -> list[Section]:
            found = session.sections(choice, rendered.ids, rendered.n_shared_tokens)
            public = rendered.n_shared_tokens if rendered.is_public and not salt else 0
            return kept_apart(found, domain_of(key, salt), public)

        with self._lock:
            self._check()
            # Token ids are a text of any kind, which goes on.
            thinking = None
            if not _is_tokens(prompt):
                thinking = thinking_of(session.template, choice.card, session.vocab, rendered.ids)
        request = request_of(
            rendered.ids,
            choice,
            settings,
            sections,
            room_tokens=session.n_ctx_tokens,
            longest=session.longest,
            thinking=thinking,
        )
        with self._lock:
            self._check()
            sampler = request.sampler(session.vocab)
        sampler.tells = n_top is not None
        flag = AbortFlag()

        def stop(ticket: Ticket) -> None:
            flag.set()
            cancel(ticket)

        ticket = Ticket(number, key, bound.name, bound.digest, decision, len(rendered.ids), stop)
        if len(bound.choice.scales) == 1:
            ticket.scale = bound.choice.scales[0][1]
        talk = checked_messages(prompt) if decision is not None else None  # type: ignore[arg-type]
        return Job(ticket, request, bound, sampler, flag, n_top, talk=talk)

    def try_rules(self, rules: "Rules") -> None:
        """Reads rules and tries them where they cannot hold others up; raises as `grammar.matcher.Grammar`."""
        from ..grammar.matcher import Grammar

        with self._lock:
            self._check()
            # Reads the vocabulary; what follows does without.
            Grammar(_PLAIN_RULES, self._session.vocab)
        Grammar(rules, self._session.vocab)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token, special ones by their texts."""
        checked = self._checked_ids(ids, None)
        with self._lock:
            self._check()
            return [self._session.vocab.piece(one, special=True) for one in checked]

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of a text."""
        with self._lock:
            self._check()
            return self._session.vocab.encode(text, special=special)

    def decode(self, ids: Sequence[int], special: bool) -> str:
        """The text of token ids."""
        checked = self._checked_ids(ids, None)
        with self._lock:
            self._check()
            return self._session.vocab.decode(checked, special=special)

    def close(self) -> None:
        """Nothing more is done with the session."""
        with self._lock:
            self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed", hint="open another one")

    def _checked_ids(self, prompt: Any, system: str | None) -> list[int]:
        if system is not None:
            raise InputError("a system message is given beside token ids, which are taken as they are")
        n_vocab = self._session.vocab.n_tokens
        for i, token_id in enumerate(prompt):
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < n_vocab:
                raise InputError(f"token {i} is {token_id!r}; ids are whole numbers from 0 to {n_vocab - 1}")
        return list(prompt)


def domain_of(key: str, salt: str) -> str:
    """Whom the keys and values of a prompt serve; "" for everyone."""
    return f"{key}+{hashlib.sha256(salt.encode()).hexdigest()}" if salt else key


def kept_apart(sections: Sequence[Section], key: str, n_public_tokens: int) -> list[Section]:
    """The parts of a key's prompt, whose keys and values serve that key alone but for the public beginning."""
    return [
        part if not key or part.end <= n_public_tokens else replace(part, state=replace(part.state, domain=key))
        for part in sections
    ]


def _is_tokens(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], int)
