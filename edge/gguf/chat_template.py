"""A model's own chat template, rendered in a sandbox.

The template is code from a file, so jinja2's immutable sandbox runs it. It writes the BOS token itself where
the model wants one; its text is therefore encoded without adding another.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from ..errors import InputError, UnsupportedError
from .file import GgufFile


class Message(TypedDict):
    """One turn. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


ROLES: Final = ("system", "user", "assistant")
_EXAMPLE: Final = 'a conversation is a list such as [{"role": "user", "content": "Hello"}]'


def _tojson(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes HTML; transformers' templates expect plain JSON.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja2 text as in `tokenizer.chat_template`.
        bos_token, eos_token: texts that the template may name.

    Raises:
        InputError: the text is not a valid template.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        from jinja2 import TemplateSyntaxError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise InputError(f"the chat template is not valid: {error}") from None

    @staticmethod
    def _refuse(reason: str) -> None:
        raise UnsupportedError(f"the model's chat template refuses these messages: {reason}")

    @classmethod
    def of(cls, file: GgufFile) -> "ChatTemplate":
        """The template of a base model.

        Raises:
            InputError: the file has none.
        """
        source = file.get("tokenizer.chat_template")
        if not source:
            raise InputError(
                "the model has no chat template",
                where=file.path,
                hint="give one when the base is exported: slm-edge export base … --chat-template FILE.jinja",
            )
        tokens: list[str] = file.get("tokenizer.ggml.tokens", [])

        def text(key: str) -> str:
            token_id = file.get(key)
            return tokens[token_id] if token_id is not None and token_id < len(tokens) else ""

        return cls(source, text("tokenizer.ggml.bos_token_id"), text("tokenizer.ggml.eos_token_id"))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, ready to be encoded with special tokens parsed and no BOS added.

        Raises:
            UnsupportedError: the template refuses these roles or their order.
            InputError: the template fails on them.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._tokens
            )
        except (TemplateError, TypeError) as error:
            raise InputError(f"the model's chat template fails: {error}") from None


def checked_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A user message's text as a conversation, or a conversation as it is.

    Raises:
        InputError: it is neither, or a message has another shape, another role, or text that is no Unicode.
    """
    given: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise InputError(f"the prompt is neither a text nor a conversation: {type(given).__name__}", hint=_EXAMPLE)
    for i, message in enumerate(given):
        text = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(text, str):
            raise InputError(f"message {i} of the conversation has no 'content' that is a text", hint=_EXAMPLE)
        if message.get("role") not in ROLES:
            raise InputError(
                f"message {i} of the conversation has the role {message.get('role')!r}",
                hint=f"possible are {', '.join(ROLES)}",
            )
        check_text(text, f"message {i}")
    return list(given)


def check_text(text: object, what: str) -> None:
    """Raises InputError for what is no text, or holds half of a surrogate pair, which no UTF-8 has."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {text!r}; it takes a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is no Unicode text: {text[error.start]!r} at letter {error.start}") from None


def messages_of(prompt: str | Sequence[Message], system: str | None, own_system: str | None) -> list[Message]:
    """A conversation from a user message's text or a conversation, with its system message in front.

    Args:
        system: what is asked; None: the conversation's own, else `own_system`; "" for none.
        own_system: of the adapter's task card.

    Raises:
        InputError: there is no text, two system messages, or as `checked_messages`.
    """
    messages = checked_messages(prompt)
    if system is not None:
        check_text(system, "the system message")
    if not any(message["content"].strip() for message in messages):
        raise InputError("the prompt is empty")
    has_system = messages[0]["role"] == "system"
    if system is not None and has_system:
        raise InputError("a system message is given twice: in the conversation and by itself")
    text = system if system is not None else None if has_system else own_system
    return [{"role": "system", "content": text}, *messages] if text else messages
