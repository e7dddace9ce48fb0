"""A conversation over a session: its messages, its commands, and what happens when the context is full.

    talk = Talk(session)
    talk.turn("How many legs have 3 cats?")       # streams the answer to stdout
    talk.turn("/adapter code")

When a conversation no longer fits, its oldest questions are dropped whole, each with its answer, until the new one has
a quarter of the context to be answered in (or the longest answer, if that is less); it is said how many went. The
system message stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...answer.base import SessionBase
from ...answer.settings import Settings, max_tokens_of, sampling_of
from ...answer.stream import Answer
from ...console import Aside, awaited, remark, show
from ...errors import DoesNotFitError, InputError, SlmEdgeError, of_system
from ...files.atomic import write_json
from ...files.cache import user_path
from ...files.read import read_table
from ...gguf.chat_template import Message, checked_messages
from ...llama.vocab import n_same
from ...system.machine import peak_memory_bytes
from ...written import did_you_mean, human_bytes
from .typed import files_like

HELP: Final = '''/adapter NAME|none|auto   answer with another adapter from now on
/adapter list             which there are
/system TEXT              another system message; without a text, the adapter's own again
/stats                    how long the last answer took, context and memory
/set NAME VALUE           max_tokens, temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty,
                          presence_penalty, seed or stop; without a value, the adapter's own again
/save FILE                write the conversation as JSON
/load FILE                go on with one that was written
/clear                    begin anew
/help                     this
/quit, /bye, exit         end (so does Ctrl-D)
Text of several lines stands between """ and """, or is pasted. Tab completes commands, adapters and files.
Ctrl-C stops an answer. A line that begins with // is sent with one slash.'''

_SETTINGS: Final[dict[str, Callable[[str], Any]]] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_penalty": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "seed": int,
    "stop": str,
}


@dataclass(frozen=True)
class Recompute:
    """What a change of adapter cost a conversation: keys and values are the adapter's, so what was said is read again.

    Attributes:
        n_tokens: of the conversation before the new question, that had to be computed again.
        seconds: their share, by number, of the time that the prompt took.
    """

    n_tokens: int
    seconds: float

    def text(self) -> str:
        """For people."""
        return f"{self.n_tokens} tokens of the conversation computed again, {self.seconds:.2f} s"


class Talk:
    """One conversation.

    Args:
        session: is used as it comes, and left with whatever adapter was used last.
        system: None: the adapter's own.
        settings: for all answers.

    Attributes:
        messages: what was said, without the system message.
        adapter: a name, "none" or "auto".
        answer: the last one that was read to its end.
        recompute: what a change of adapter before it cost; None if there was none.
    """

    def __init__(
        self,
        session: SessionBase[Any],
        *,
        system: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.session = session
        self.system = system
        self.settings: Settings = settings or {}
        self.messages: list[Message] = []
        self.adapter = "none"
        self.answer: Answer | None = None
        self.recompute: Recompute | None = None
        self._answered_by: str | None = None
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "/adapter": self._adapter,
            "/system": self._system,
            "/stats": self._stats,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
            "/clear": self._clear,
            "/help": lambda _: remark(HELP),
            "/quit": lambda _: False,
            "/bye": lambda _: False,
            "/exit": lambda _: False,
        }

    def turn(self, line: str) -> bool:
        """Does what a line asks for; False when it asks to end. A mistake is said and nothing else happens."""
        try:
            if line.strip() in ("exit", "quit"):
                return False
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line.strip().partition(" ")
                command = self._commands.get(name)
                if command is None:
                    near = did_you_mean(name, self._commands)[0]
                    raise InputError(f"there is no {name}; did you mean {near}?", hint="/help lists what there is")
                return command(rest.strip()) is not False
            self._ask(line[1:] if line.startswith("//") else line)
        except SlmEdgeError as error:
            from ...store.named import told

            remark(told(error))
        except OSError as error:
            # A name that is too long, a disk that fails: the conversation is worth more.
            remark(str(of_system(error)))
        return True

    def candidates(self, line: str) -> list[str]:
        """What could stand in place of the last word of a line, for Tab."""
        name, space, rest = line.partition(" ")
        if not space:
            return [f"{command} " for command in self._commands] if name.startswith("/") else []
        if name == "/adapter":
            return [*self.session.adapters, "none", "auto", "list"]
        if name == "/set":
            return [f"{setting} " for setting in _SETTINGS]
        return files_like(rest) if name in ("/save", "/load") else []

    def use(self, name: str) -> None:
        """Answers with that adapter from now on: a name, "none" or "auto".

        Raises:
            SlmEdgeError: as `SessionBase.use`; "auto" as `SessionBase.router`.
        """
        if name == "auto":
            # A pack without a router is an error now, not at the next question.
            _ = self.session.router
        else:
            self.session.use(name)
        self.adapter = name

    def _ask(self, text: str) -> None:
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        if self.adapter == "auto":
            decision = self.session.choose(messages)
            if decision.adapter != self.session.adapter:
                self.session.use(decision.adapter)
                remark(f"[adapter {decision.adapter or 'none'}]")
        messages = self._fitting(messages)
        aside, thoughts = Aside(), list[str]()

        def think(text: str) -> None:
            thoughts.append(text)
            aside(text)

        stream = self.session.stream(messages, system=self.system, on_thinking=think, **self.settings)
        shown: list[str] = []
        try:
            show(aside.before(awaited(stream, "reading the conversation", aside)), shown.append)
        except KeyboardInterrupt:
            stream.close()
            remark("[stopped]")
        else:
            self.answer = stream.answer
            self.recompute = self._recomputed(messages, stream.answer)
            if self.recompute is not None:
                remark(f"[{self.recompute.text()}]")
            if (cut := stream.answer.cut()) is not None:
                remark(f"[{cut}]")
        if shown:
            said: Message = {"role": "assistant", "content": "".join(shown)}
            if thoughts:
                # No part of what was said; the template decides whether the model sees it again.
                said["reasoning_content"] = "".join(thoughts).strip()
            self.messages = [*messages, said]
            self._answered_by = self.session.adapter

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        template_args = self.settings.get("template_args")
        return self.session.prompt_tokens(messages, system=self.system, template_args=template_args)

    def _recomputed(self, messages: Sequence[Message], answer: Answer) -> Recompute | None:
        """What the change of adapter since the last answer cost; None without a change or a conversation before."""
        if len(messages) < 2 or answer.adapter == self._answered_by:
            return None
        ends: list[Message] = [{"role": "user", "content": text} for text in ("a", "b")]
        one, other = (self._tokens([*messages[:-1], end]) for end in ends)
        n_again = max(n_same(one, other) - answer.n_kept_tokens, 0)
        return Recompute(n_again, answer.prefill_s * n_again / max(answer.n_prompt_tokens - answer.n_kept_tokens, 1))

    def _fitting(self, messages: list[Message]) -> list[Message]:
        """The conversation without its oldest turns, as many as must go.

        Raises:
            DoesNotFitError: the new question alone is too long.
        """
        session = self.session
        room = session.n_ctx_tokens - min(max_tokens_of(session.choice.card, self.settings), session.n_ctx_tokens // 4)
        n_dropped = 0
        while (n_tokens := len(self._tokens(messages))) > room:
            if len(messages) <= 2:
                if n_tokens < session.n_ctx_tokens:
                    break
                raise DoesNotFitError(
                    f"this alone has {n_tokens} tokens; the context holds {session.n_ctx_tokens}",
                    hint="shorten it, or begin again with a larger --context",
                )
            messages = messages[2:]
            n_dropped += 1
        if n_dropped:
            turns = "turn is" if n_dropped == 1 else f"{n_dropped} turns are"
            remark(f"[the context is full: the oldest {turns} forgotten]")
        return messages

    def _adapter(self, name: str) -> None:
        if name in ("", "list"):
            for one, packed in self.session.adapters.items():
                remark(f"{'*' if one == self.adapter else ' '} {one}  {packed.card.description}".rstrip())
            remark(f"{'*' if self.adapter == 'none' else ' '} none  the base alone")
            return
        self.use(name)
        remark(f"[adapter {name}]")

    def _system(self, text: str) -> None:
        self.system = text or None
        remark("[the adapter's own system message]" if not text else "[system message set]")

    def _stats(self, _: str) -> None:
        n_tokens = len(self._tokens(self.messages)) if self.messages else 0
        answer = self.answer
        if answer is not None:
            rate = f" at {answer.decode_tokens_per_s:.1f} tokens/s" if answer.decode_tokens_per_s else ""
            remark(
                f"last answer: first token after {answer.first_token_s:.2f} s, {answer.n_tokens} tokens{rate}; "
                f"{answer.n_kept_tokens} of {answer.n_prompt_tokens} prompt tokens kept, the others computed in "
                f"{answer.prefill_s:.2f} s; ended by {answer.stop_reason}"
            )
            if answer.n_drafted_tokens:
                remark(f"{answer.n_accepted_tokens} of {answer.n_drafted_tokens} guessed tokens were right")
        if self.recompute is not None:
            remark(f"change of adapter: {self.recompute.text()}")
        loaded = ", ".join(f"{name} {human_bytes(size)}" for name, size in self.session.loaded_adapters.items())
        remark(f"adapters in memory: {loaded or 'none'}")
        remark(f"adapter {self.adapter}; context {n_tokens} of {self.session.n_ctx_tokens} tokens")
        plan = self.session.plan
        planned = f"; planned {plan.describe()}" if plan is not None else ""
        remark(f"memory: peak {human_bytes(peak_memory_bytes())}{planned}")

    def _save(self, file: str) -> None:
        if not file:
            raise InputError("/save needs the name of a file")
        data = {
            "base": self.session.base.name,
            "adapter": self.adapter,
            "system": self.system,
            "messages": self.messages,
        }
        path = user_path(file)
        write_json(path, data)
        remark(f"[saved {path}]")

    def _load(self, file: str) -> None:
        if not file:
            raise InputError("/load needs the name of a file")
        path = user_path(file)
        data = read_table(path)
        messages, system = data.get("messages"), data.get("system")
        roles = [one.get("role") if isinstance(one, dict) else None for one in messages or ()]
        if not isinstance(messages, list) or roles != ["user", "assistant"] * (len(roles) // 2):
            raise InputError("is no conversation that /save wrote: questions with their answers", where=path)
        if system is not None and not isinstance(system, str):
            raise InputError("its system message is no text", where=path)
        checked = checked_messages(messages) if messages else []
        adapter = data.get("adapter")
        if isinstance(adapter, str) and adapter != self.adapter:
            try:
                self.use(adapter)
            except SlmEdgeError as error:
                remark(f"[it was answered by {adapter}, which is not here: {error.message}]")
        if data.get("base") != self.session.base.name:
            remark(f"[it was answered by another base, {data.get('base')}]")
        self.messages, self.system, self.answer, self.recompute = [*checked], system, None, None
        remark(f"[{len(roles) // 2} turns, adapter {self.adapter}]")

    def _set(self, text: str) -> None:
        name, _, value = text.removeprefix("parameter ").strip().partition(" ")
        if name == "system":
            self._system(value.strip())
            return
        if not name:
            given = [
                f"{name} {value}" for name, value in self.settings.items() if value is not None and name in _SETTINGS
            ]
            remark(f"[set: {', '.join(given) or 'nothing; all is as the adapter has it'}]")
            return
        kind = _SETTINGS.get(name)
        if kind is None:
            raise InputError(f"there is no setting {name!r}", hint=f"there are: {', '.join(_SETTINGS)}, system")
        try:
            given_value = kind(value.strip()) if value.strip() else None
        except ValueError:
            raise InputError(f"{value.strip()!r} is no value for {name}") from None
        changed: Settings = {**self.settings, name: given_value}  # type: ignore[misc]
        sampling_of(self.session.choice.card, changed)
        max_tokens_of(self.session.choice.card, changed)
        self.settings = changed
        remark(f"[{name} {'as the adapter has it' if given_value is None else given_value}]")

    def _clear(self, _: str) -> None:
        self.messages = []
        self.answer = self.recompute = None
        remark("[a new conversation]")
