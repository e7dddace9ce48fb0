"""One answer while it is made: an iterator of text, with its numbers at the end.

    stream = session.stream("How many legs have 3 cats?")
    for text in stream:
        print(text, end="", flush=True)
    stream.answer.stop_reason        # "end"

It turns the bytes of tokens into text to show: never half a character, never a part of a stop text, no thoughts.

    out = TextOut(stop=["\\n\\nQuestion:"])
    out.feed(b"12\\n\\nQues")      # "12"; the rest may become a stop text and is held back
    out.feed(b"t")               # "\\n\\nQuest"? no: still a beginning of the stop text, so ""
    out.finish()                 # what was held back, when the answer ends without the stop text

A session is one thread's of one process (`Owner`), from when it is opened until it is closed: llama.cpp's objects are
not locked. Two threads in one of them end the process, and a forked child waits for ever for threads that it does not
have. So every call looks first.
"""

import codecs
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import EngineError
from ..llama.sampling import Sampler, Sampling
from ..llama.vocab import Vocab
from ..prefix.chunks import Section

if TYPE_CHECKING:
    from ..grammar.rules import Rules
    from .engine import Worker
    from .thinking import Thinking


class Owner:
    """The thread and the process that this was made in.

    Attributes:
        closed: what it owns is freed.
    """

    __slots__ = ("_pid", "_thread", "_thread_name", "closed")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._thread_name = threading.current_thread().name
        self._pid = os.getpid()
        self.closed = False

    @property
    def is_here(self) -> bool:
        """Whether the caller is the owner."""
        return threading.get_ident() == self._thread and os.getpid() == self._pid

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to free: it is closed, or this is a forked child, whose parent frees it."""
        return self.closed or os.getpid() != self._pid

    def check(self) -> None:
        """Raises EngineError unless the caller is the owner and nothing is closed."""
        if self.closed or threading.get_ident() != self._thread or os.getpid() != self._pid:
            raise self._refusal()

    def _refusal(self) -> EngineError:
        if os.getpid() != self._pid:
            return EngineError(
                f"the session was opened in the process {self._pid} and does not work in a process forked from it",
                hint="open a session after the fork",
            )
        if threading.get_ident() != self._thread:
            return EngineError(
                f"the session belongs to the thread {self._thread_name!r}; "
                f"{threading.current_thread().name!r} cannot use it",
                hint="open one session in each thread, or send every call to the thread that opened this one",
            )
        return EngineError("the session is closed", hint="open another one")


class TextOut:
    """Decodes UTF-8, takes thoughts out, and looks for stop texts across token boundaries.

    Args:
        stop: texts that end an answer; empty ones are ignored. They are never part of what is shown, and thoughts may
            hold them.
        thinking: how thoughts are told; None: all is the answer.
        min_tokens: stop texts in so many first tokens are text as any other.

    Attributes:
        stopped: a stop text was met; whatever is fed later is dropped.
        thought: what the last piece added to the thoughts.
    """

    def __init__(self, stop: Sequence[str] = (), thinking: "Thinking | None" = None, min_tokens: int = 0) -> None:
        self._stop = tuple(text for text in stop if text)
        self._n_early = min_tokens
        self._is_early = min_tokens > 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._thoughts = thinking.thoughts() if thinking is not None else None
        self._thought: list[str] = []
        self.thought = ""
        self.stopped = False

    @property
    def thinking(self) -> str:
        """All thoughts so far, without the blanks around them."""
        return "".join(self._thought).strip()

    def take(self, token_id: int, vocab: "Vocab") -> str:
        """The text that can be shown by a further token."""
        piece = vocab.piece(token_id)
        self._is_early = self._n_early > 0
        self._n_early -= self._is_early
        if not piece and self._thoughts is not None and not self._thoughts.is_over:
            piece = self._thoughts.markers.get(token_id, piece)
        return self.feed(piece)

    def feed(self, piece: bytes) -> str:
        """The text that can be shown now."""
        if self.stopped:
            return ""
        return self._release(self._said(self._decoder.decode(piece)))

    def finish(self) -> str:
        """What was held back, once the answer has ended. A cut character becomes U+FFFD."""
        self.thought = ""
        if self.stopped:
            return ""
        said = self._said(self._decoder.decode(b"", final=True))
        if self._thoughts is not None:
            thought, rest = self._thoughts.finish()
            said += rest
            self._thought.append(thought)
            self.thought += thought
        text = self._release(said)
        held, self._held = self._held, ""
        return text + held

    def _said(self, text: str) -> str:
        """The part of a text that is the answer's; its thoughts are kept."""
        if self._thoughts is None:
            return text
        self.thought, said = self._thoughts.feed(text)
        if self.thought:
            self._thought.append(self.thought)
        return said

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [] if self._is_early else [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(longest_beginning(self._held, stop) for stop in self._stop)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown


def longest_beginning(text: str, mark: str) -> int:
    """Length of the longest end of a text with which a mark begins."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


StopReason = Literal["end", "stop", "max_tokens", "context"]


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        text: without the stop text that ended it, and without what the model thought before.
        n_prompt_tokens: of the rendered prompt.
        n_tokens: generated, the end token not counted.
        first_token_s: from the call to the first token, the prompt's computation included.
        decode_tokens_per_s: of the tokens after the first; None if there were none.
        stop_reason: "end" (the model's own end token), "stop" (a stop text), "max_tokens", or "context" (it is full).
        adapter: its name; None for the base alone.
        n_kept_tokens: of the prompt, found in the KV cache.
        prefill_s: seconds that the other tokens of the prompt took.
        seed: of the sampling; None when greedy.
        token_ids: what was generated.
        n_drafted_tokens, n_accepted_tokens: guessed and computed along with others, and how many of them were right.
        thinking: what the model thought before it answered; "" for nothing. Its tokens are counted in `n_tokens`.
    """

    text: str
    n_prompt_tokens: int
    n_tokens: int
    first_token_s: float
    decode_tokens_per_s: float | None
    stop_reason: StopReason
    adapter: str | None
    n_kept_tokens: int = 0
    prefill_s: float = 0.0
    seed: int | None = None
    token_ids: tuple[int, ...] = ()
    n_drafted_tokens: int = 0
    n_accepted_tokens: int = 0
    thinking: str = ""

    def cut(self) -> str | None:
        """For people, why the answer is not whole; None if the model or a stop text ended it."""
        if self.stop_reason == "max_tokens":
            where = ", while the model was still thinking" if self.thinking and not self.text else ""
            return f"the answer is cut at {self.n_tokens} tokens{where}; -n sets another length"
        if self.stop_reason == "context":
            return "the context is full; the answer ends here"
        return None


@dataclass(frozen=True)
class Request:
    """Everything that decides an answer's text, resolved and checked.

    Attributes:
        sections: the parts of the prompt with their adapters, which are loaded by this call.
        room_tokens: length of the context.
        grammar: what the answer keeps to.
        thinking: how thoughts are told from the answer; None: it has none.
        min_tokens: so many come before an end token or a stop text may end it.
        ignore_eos: an end token is a token as any other.
    """

    prompt: Sequence[int]
    adapter: str | None
    sections: Callable[[], Sequence[Section]]
    sampling: Sampling
    stop: Sequence[str]
    max_tokens: int
    room_tokens: int
    grammar: "Rules | None" = None
    thinking: "Thinking | None" = None
    min_tokens: int = 0
    ignore_eos: bool = False

    def sampler(self, vocab: Vocab) -> Sampler:
        """A new sampler; errors as `grammar.matcher.Grammar`, and InputError for a bias of a token that is not."""
        self.sampling.check_tokens(vocab.n_tokens)
        if self.grammar is None:
            barred = vocab.ends() if self.min_tokens and not self.ignore_eos else ()
            return Sampler(self.sampling, None, self.prompt, min_tokens=self.min_tokens if barred else 0, ends=barred)
        from ..grammar.matcher import Grammar

        return Sampler(self.sampling, Grammar(self.grammar, vocab), self.prompt)


class Stream(Iterator[str]):
    """Yields pieces of text as they are final. Nothing is computed before the first is asked for.

    Args:
        started_s: when it was asked for, by `time.perf_counter`.
        owner: of the session; None: the thread that makes this. In another one reading raises EngineError.
        on_thinking: told of each piece of what the model thinks before it answers.
    """

    def __init__(
        self,
        lane: "Worker",
        vocab: Vocab,
        request: Request,
        started_s: float,
        owner: Owner | None = None,
        on_thinking: Callable[[str], object] | None = None,
    ) -> None:
        self._owner = owner or Owner()
        self._on_thinking = on_thinking
        self._lane = lane
        self._vocab = vocab
        self._request = request
        self._started_s = started_s
        self._answer: Answer | None = None
        self._pieces = self._run()

    @property
    def answer(self) -> Answer:
        """The finished answer.

        Raises:
            EngineError: it is not finished.
        """
        if self._answer is None:
            raise EngineError("the answer is not finished; read the stream to its end first")
        return self._answer

    def __iter__(self) -> Iterator[str]:
        self._owner.check()
        # The generator itself: one call less for each token
        return self._pieces

    def __next__(self) -> str:
        self._owner.check()
        return next(self._pieces)

    def close(self) -> None:
        """Ends it early."""
        if not self._owner.is_over:
            self._owner.check()
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        self._owner.check()
        turn = self._lane.turn + 1
        try:
            yield from self._answering(turn)
        finally:
            # A generator may be cleared away by another thread, or in a forked child.
            if self._owner.is_here:
                self._lane.rest(turn)

    def _answering(self, turn: int) -> Generator[str, None, None]:
        lane, vocab, request = self._lane, self._vocab, self._request
        out = TextOut(request.stop, request.thinking, request.min_tokens)
        ids: list[int] = []
        shown: list[str] = []
        reason: StopReason
        sections = request.sections()
        n_steps, first_s, waited_s = 0, 0.0, 0.0
        # Rules that cannot be used are told before a prompt is computed for them.
        with request.sampler(vocab) as sampler:
            before_s = time.perf_counter()
            kept = lane.begin(request.prompt, sections)
            prefill_s = time.perf_counter() - before_s
            while True:
                token_id = lane.sample(sampler)
                first_s = first_s or time.perf_counter()
                if not request.ignore_eos and vocab.is_end(token_id):
                    reason = "end"
                    break
                ids.append(token_id)
                text = out.take(token_id, vocab)
                if out.thought and self._on_thinking is not None:
                    self._on_thinking(out.thought)
                if text:
                    shown.append(text)
                    before_s = time.perf_counter()
                    yield text
                    waited_s += time.perf_counter() - before_s
                    self._owner.check()
                    if lane.turn != turn:
                        raise EngineError(
                            "another prompt was begun in this session before the answer was read to its end",
                            hint="read one stream to its end, or open a second session",
                        )
                if out.stopped:
                    reason = "stop"
                    break
                if len(ids) >= request.max_tokens:
                    reason = "max_tokens"
                    break
                if lane.n_tokens >= request.room_tokens:
                    reason = "context"
                    break
                lane.step(token_id)
                n_steps += 1
            ended_s = time.perf_counter()
            seed = sampler.seed
        rest = out.finish()
        if out.thought and self._on_thinking is not None:
            self._on_thinking(out.thought)
        if out.stopped and reason != "stop":
            reason = "stop"
        self._answer = Answer(
            text="".join(shown) + rest,
            n_prompt_tokens=len(request.prompt),
            n_tokens=len(ids),
            first_token_s=first_s - self._started_s,
            decode_tokens_per_s=n_steps / (ended_s - first_s - waited_s) if n_steps else None,
            stop_reason=reason,
            adapter=request.adapter,
            n_kept_tokens=kept,
            prefill_s=prefill_s,
            seed=seed,
            token_ids=tuple(ids),
            n_drafted_tokens=lane.n_drafted_tokens,
            n_accepted_tokens=lane.n_accepted_tokens,
            thinking=out.thinking,
        )
        if rest:
            yield rest
        lane.flush()
