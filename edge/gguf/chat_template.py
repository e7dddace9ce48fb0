"""A model's own chat template, rendered in a sandbox.

The template is code from a file, so jinja2's immutable sandbox runs it. It writes the BOS token itself where
the model wants one; its text is therefore encoded without adding another.
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any, TypedDict

from ..errors import InputError, UnsupportedError
from .file import GgufFile


class Message(TypedDict):
    """One turn. `role` is "system", "user" or "assistant"."""

    role: str
    content: str


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


def messages_of(prompt: str | Sequence[Message], system: str | None, own_system: str | None) -> list[Message]:
    """A conversation from a user message's text or a conversation, with its system message in front.

    Args:
        system: what is asked; None: the conversation's own, else `own_system`; "" for none.
        own_system: of the adapter's task card.

    Raises:
        InputError: there is no text, or two system messages.
    """
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not any(message["content"].strip() for message in messages):
        raise InputError("the prompt is empty")
    has_system = messages[0]["role"] == "system"
    if system is not None and has_system:
        raise InputError("a system message is given twice: in the conversation and by itself")
    text = system if system is not None else None if has_system else own_system
    return [{"role": "system", "content": text}, *messages] if text else messages
