"""A model's own chat template, rendered in a sandbox.

The template is code from a file, so jinja2's immutable sandbox runs it. It writes the BOS token itself where
the model wants one; its text is therefore encoded without adding another.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal, NotRequired, TypedDict, cast

from ..errors import InputError, UnsupportedError
from .file import GgufFile


class Message(TypedDict):
    """One turn. `role` is "system", "user", "assistant", or "tool" for what a tool that was called gave back.

    tool_calls: of an assistant, as {"type": "function", "function": {"name": …, "arguments": {…}}} each.
    tool_call_id: which call a tool's message answers.
    reasoning_content: what an assistant thought before its content; the template decides whether it is written.
    """

    role: str
    content: str
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


# How a rendered conversation ends: with the beginning of an answer, behind its last message, or in the middle of that
Turn = Literal["new", "closed", "open"]
ROLES: Final = ("system", "user", "assistant", "tool")
_EXAMPLE: Final = 'a conversation is a list such as [{"role": "user", "content": "Hello"}]'


OTHER_TEMPLATE: Final = "give one when the base is exported: slm-edge export base … --chat-template FILE.jinja"
# Beyond the largest real one by a factor of five
MOST_SOURCE_BYTES: Final = 256 << 10
# What opens and closes thinking: Qwen3, DeepSeek R1, SmolLM3 and most others; EXAONE Deep; Magistral; Seed-OSS;
# Command R7B; Gemma 4
THINKING_FORMS: Final = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
)
# What switches thinking on and off, in the templates that can
THINKING_SWITCHES: Final = ("enable_thinking", "thinking")
# Tells where the last message ends; transformers has the same, with the blank by which trimming is seen.
_END_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "
_SPECIAL_TOKENS: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# GGUF's names of the keys, where they are others
_GGUF_NAMES: Final = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
# Conversations that every template is tried on before it is packed; it may refuse all but one
_SAMPLES: Final = (
    (("system", "You are brief."), ("user", "Hello")),
    (("user", "Hello"),),
    (("user", "2 + 2?"), ("assistant", "4"), ("user", "Thanks!")),
)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja2 text as in `tokenizer.chat_template`.
        bos_token, eos_token: texts that the template may name.
        tokens: further ones, such as `pad_token`.

    Raises:
        InputError: the text is not a valid template.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        from .template_limits import limited_environment, limits

        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, **(tokens or {})}
        self._date: datetime.date | None = None
        self._dated = False
        if len(source) > MOST_SOURCE_BYTES:
            raise InputError(f"the chat template has {len(source)} letters; {MOST_SOURCE_BYTES} are taken")
        try:
            with limits():
                self._template = limited_environment(self._refuse, self._now).from_string(source)
        # Python compiles what jinja2 wrote, and each of the two fails in ways of its own.
        except Exception as error:  # noqa: BLE001
            raise InputError(f"the chat template is not valid: {_reason(error)}") from None

    @cached_property
    def _variables(self) -> frozenset[str]:
        """What the template reads from outside: names that it never sets, and those that it asks after first."""
        from .template_limits import limits, names_from_outside

        with limits():
            return names_from_outside(self._template.environment.parse(self.source))

    @cached_property
    def argument_names(self) -> frozenset[str]:
        """What the template can be told beside messages, such as "tools".

        "date" is the day that it takes for today, "think" whatever it calls its switch for thinking.
        """
        own = {"messages", "add_generation_prompt", "strftime_now", *(f"{name}_token" for name in _SPECIAL_TOKENS)}
        dated = {"date"} if {"strftime_now", "date_string"} & self._variables else set()
        return (self._variables - own) | dated | ({"think"} if self._switch is not None else set())

    @property
    def _switch(self) -> str | None:
        return next((name for name in THINKING_SWITCHES if name in self._variables), None)

    @property
    def thinking_form(self) -> tuple[str, str] | None:
        """What opens and closes the model's thinking; None where its template knows of none."""
        # Some templates take thoughts out of what was said, and write no opening mark themselves.
        return next((form for form in THINKING_FORMS if form[1].strip() in self.source), None)

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raises InputError for a name that the template never reads: it would change nothing, in silence."""
        for name in arguments:
            if name not in self.argument_names:
                known = ", ".join(sorted(self.argument_names))
                raise InputError(
                    f"the model's chat template knows no argument {name!r}",
                    hint=f"it knows: {known}" if known else "it knows none",
                )

    def _told(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The variables that the arguments stand for."""
        told = {"tools": None, "documents": None, **arguments}
        if arguments.get("date") is not None:
            from .template_arguments import day_of

            midnight = datetime.datetime.combine(day_of(arguments["date"]), datetime.time(0))
            told["strftime_now"] = midnight.strftime
            if "strftime_now" not in self._variables:
                # Llama 3.1 has a fixed day in place of today's.
                told.setdefault("date_string", midnight.strftime("%d %b %Y"))
        if "think" in arguments and self._switch is not None:
            told.setdefault(self._switch, arguments["think"])
        return told

    def _now(self) -> datetime.datetime:
        self._dated = True
        now = datetime.datetime.now()
        return now if self._date is None else datetime.datetime.combine(self._date, datetime.time(0))

    def fix_date(self, date: datetime.date | None) -> None:
        """From now on the template is told that this is today; None: today."""
        self._date = date

    @property
    def is_dated(self) -> bool:
        """Whether what it writes for the sample conversations depends on the day."""
        self._dated = False
        self.check()
        return self._dated

    def check(self, arguments: Mapping[str, Any] | None = None) -> None:
        """Renders sample conversations: with a system message, without one, and a longer one.

        Args:
            arguments: as in `render`.

        Raises:
            InputError: the template takes none of them, or does not write what a user says.
        """
        faults: list[str] = []
        for sample in _SAMPLES:
            messages = [cast(Message, {"role": role, "content": content}) for role, content in sample]
            try:
                text = self.render(messages, arguments=arguments)
            except (InputError, UnsupportedError) as error:
                faults.append(error.message)
                continue
            if messages[-1]["content"] not in text:
                raise InputError("the chat template does not write what the user says")
        if len(faults) == len(_SAMPLES):
            raise InputError(f"the chat template takes no conversation: {faults[1]}")

    @staticmethod
    def _refuse(reason: str) -> None:
        raise UnsupportedError(f"the model's chat template refuses these messages: {in_a_line(reason)}")

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
                hint=OTHER_TEMPLATE,
            )
        tokens: list[str] = file.get("tokenizer.ggml.tokens", [])

        special: dict[str, str] = {}
        for name in _SPECIAL_TOKENS:
            token_id = file.get(f"tokenizer.ggml.{_GGUF_NAMES.get(name, name)}_token_id")
            if token_id is not None and token_id < len(tokens):
                special[f"{name}_token"] = tokens[token_id]
        try:
            return cls(source, tokens=special)
        except InputError as error:
            raise InputError(error.message, where=file.path, hint=OTHER_TEMPLATE) from None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        continue_final_message: bool = False,
    ) -> str:
        """The text of a conversation, ready to be encoded with special tokens parsed and no BOS added.

        Args:
            tools: what the model may call, as {"type": "function", "function": {…}} each; the template writes them.
            arguments: what else the template is told, as {"enable_thinking": False}; see `template_arguments.py`.
            continue_final_message: leave out all that the template writes behind the last message's text.

        Raises:
            UnsupportedError: the template refuses these roles or their order.
            InputError: the template fails on them, or does not write the text of a message that stays open.
        """
        from .template_limits import check_letters, limits

        given: list[dict[str, Any]] = [dict(message) for message in messages]
        if continue_final_message:
            given[-1]["content"] += _END_TAG
        told = self._told(
            {**(arguments or {}), **({"tools": [dict(one) for one in tools]} if tools is not None else {})}
        )
        try:
            n_letters = sum(len(str(value)) for message in given for value in message.values())
            with limits(n_letters + sum(len(str(value)) for value in told.values() if value is not None)):
                text = self._template.render(
                    **{**told, **self._tokens},
                    messages=given,
                    add_generation_prompt=add_generation_prompt,
                )
                check_letters(len(text))
        except UnsupportedError:
            raise
        # A template is a stranger's program: it may divide by zero, recurse, or ask for all memory.
        except Exception as error:  # noqa: BLE001
            raise InputError(f"the model's chat template fails: {_reason(error)}") from None
        return _open_end(text, messages[-1]["content"]) if continue_final_message else text


def _open_end(text: str, last: str) -> str:
    """What is before the tag at the end of the last message's text, as transformers cuts it."""
    at = text.rfind(_END_TAG.strip())
    if at < 0 or last.strip() not in text:
        raise InputError(
            "the model's chat template does not write the last message as it is", where="continue_final_message"
        )
    # A template that trims texts would have trimmed this one.
    return text[:at] if text.startswith(_END_TAG, at) else text[:at].rstrip()


def in_a_line(text: object) -> str:
    """An error's text, short and in one line."""
    return " ".join(str(text).split())[:300]


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    from jinja2 import TemplateError

    text = in_a_line(error)
    return text if text and isinstance(error, TemplateError) else in_a_line(f"{type(error).__name__}: {text}")


def checked_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A user message's text as a conversation, or a conversation as it is.

    Raises:
        InputError: it is neither, or a message has another shape, another role, or text that is no Unicode.
    """
    given: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise InputError(f"the prompt is neither a text nor a conversation: {type(given).__name__}", hint=_EXAMPLE)
    return [_checked_message(message, i) for i, message in enumerate(given)]


def _checked_message(message: Any, i: int) -> Message:
    """One of `checked_messages`, with the content "" where an assistant only calls tools."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    text = message.get("content") if isinstance(message, Mapping) else None
    if calls and text is None:
        text = ""
    if not isinstance(text, str):
        raise InputError(f"message {i} of the conversation has no 'content' that is a text", hint=_EXAMPLE)
    role = message.get("role")
    if role not in ROLES:
        raise InputError(
            f"message {i} of the conversation has the role {role!r}",
            hint=f"possible are {', '.join(ROLES)}",
        )
    check_text(text, f"message {i}")
    for key in ("tool_call_id", "reasoning_content"):
        if message.get(key) is not None:
            check_text(message[key], f"the {key} of message {i}")
    if not calls:
        return cast(Message, message)
    if role != "assistant" or not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InputError(f"message {i} of the conversation has tool_calls that are no list, or is no assistant's")
    return cast(Message, {**message, "content": text, "tool_calls": [_checked_call(one, i) for one in calls]})


def _checked_call(call: Any, i: int) -> dict[str, Any]:
    """A call with its arguments as a table, which is how templates take them; OpenAI's clients send their JSON."""
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    arguments = function.get("arguments", {}) if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise InputError(
            f"message {i} of the conversation has a tool call without a function's name and arguments",
            hint='a call is {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}',
        )
    return dict(call) | {"function": {"name": name, "arguments": arguments}}


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
