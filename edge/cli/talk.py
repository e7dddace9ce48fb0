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

from ..answer.base import SessionBase
from ..answer.settings import Settings, max_tokens_of
from ..answer.stream import Answer
from ..console import awaited, note, show
from ..errors import DoesNotFitError, InputError, SlmEdgeError, of_system
from ..files.atomic import write_json
from ..files.cache import user_path
from ..gguf.chat_template import Message
from ..llama.vocab import n_same
from ..names import did_you_mean
from ..sizes import human_bytes
from ..system.memory import peak_memory_bytes

HELP: Final = """/adapter NAME|none|auto   answer with another adapter from now on
/adapter list             which there are
/system TEXT              another system message; without a text, the adapter's own again
/stats                    how long the last answer took, context and memory
/save FILE                write the conversation as JSON
/clear                    begin anew
/help                     this
/quit                     end (so does Ctrl-D)
Ctrl-C stops an answer. A line that begins with // is sent with one slash."""


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
            "/save": self._save,
            "/clear": self._clear,
            "/help": lambda _: note(HELP),
            "/quit": lambda _: False,
        }

    def turn(self, line: str) -> bool:
        """Does what a line asks for; False when it asks to end. A mistake is said and nothing else happens."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line.strip().partition(" ")
                command = self._commands.get(name)
                if command is None:
                    near = did_you_mean(name, self._commands)[0]
                    raise InputError(f"there is no {name}; did you mean {near}?", hint="/help lists what there is")
                return command(rest.strip()) is not False
            self._ask(line[1:] if line.startswith("//") else line)
        except SlmEdgeError as error:
            note(str(error))
        except OSError as error:
            # A name that is too long, a disk that fails: the conversation is worth more.
            note(str(of_system(error)))
        return True

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
                note(f"[adapter {decision.adapter or 'none'}]")
        messages = self._fitting(messages)
        stream = self.session.stream(messages, system=self.system, **self.settings)
        shown: list[str] = []
        try:
            show(awaited(stream, "reading the conversation"), shown.append)
        except KeyboardInterrupt:
            stream.close()
            note("[stopped]")
        else:
            self.answer = stream.answer
            self.recompute = self._recomputed(messages, stream.answer)
            if self.recompute is not None:
                note(f"[{self.recompute.text()}]")
            if (cut := stream.answer.cut()) is not None:
                note(f"[{cut}]")
        if shown:
            self.messages = [*messages, {"role": "assistant", "content": "".join(shown)}]
            self._answered_by = self.session.adapter

    def _recomputed(self, messages: Sequence[Message], answer: Answer) -> Recompute | None:
        """What the change of adapter since the last answer cost; None without a change or a conversation before."""
        if len(messages) < 2 or answer.adapter == self._answered_by:
            return None
        ends: list[Message] = [{"role": "user", "content": text} for text in ("a", "b")]
        one, other = (self.session.prompt_tokens([*messages[:-1], end], system=self.system) for end in ends)
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
        while (n_tokens := len(session.prompt_tokens(messages, system=self.system))) > room:
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
            note(f"[the context is full: the oldest {turns} forgotten]")
        return messages

    def _adapter(self, name: str) -> None:
        if name in ("", "list"):
            for one, packed in self.session.adapters.items():
                note(f"{'*' if one == self.adapter else ' '} {one}  {packed.card.description}".rstrip())
            note(f"{'*' if self.adapter == 'none' else ' '} none  the base alone")
            return
        self.use(name)
        note(f"[adapter {name}]")

    def _system(self, text: str) -> None:
        self.system = text or None
        note("[the adapter's own system message]" if not text else "[system message set]")

    def _stats(self, _: str) -> None:
        n_tokens = len(self.session.prompt_tokens(self.messages, system=self.system)) if self.messages else 0
        answer = self.answer
        if answer is not None:
            rate = f" at {answer.decode_tokens_per_s:.1f} tokens/s" if answer.decode_tokens_per_s else ""
            note(
                f"last answer: first token after {answer.first_token_s:.2f} s, {answer.n_tokens} tokens{rate}; "
                f"{answer.n_kept_tokens} of {answer.n_prompt_tokens} prompt tokens kept, the others computed in "
                f"{answer.prefill_s:.2f} s; ended by {answer.stop_reason}"
            )
            if answer.n_drafted_tokens:
                note(f"{answer.n_accepted_tokens} of {answer.n_drafted_tokens} guessed tokens were right")
        if self.recompute is not None:
            note(f"change of adapter: {self.recompute.text()}")
        loaded = ", ".join(f"{name} {human_bytes(size)}" for name, size in self.session.loaded_adapters.items())
        note(f"adapters in memory: {loaded or 'none'}")
        note(f"adapter {self.adapter}; context {n_tokens} of {self.session.n_ctx_tokens} tokens")
        plan = self.session.plan
        planned = f"; planned {plan.describe()}" if plan is not None else ""
        note(f"memory: peak {human_bytes(peak_memory_bytes())}{planned}")

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
        note(f"[saved {path}]")

    def _clear(self, _: str) -> None:
        self.messages = []
        self.answer = self.recompute = None
        note("[a new conversation]")
