"""One answer while it is made: an iterator of text, with its numbers at the end.

stream = session.stream("How many legs have 3 cats?")
for text in stream:
    print(text, end="", flush=True)
stream.answer.stop_reason        # "end"
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import EngineError
from ..llama.sampling import Sampler, Sampling
from ..llama.vocab import Vocab
from ..prefix.chunks import Section
from .engine import Worker
from .owner import Owner
from .text_out import TextOut

if TYPE_CHECKING:
    from ..grammar.rules import Rules
    from .thinking import Thinking

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

    def sampler(self, vocab: Vocab) -> Sampler:
        """A new sampler; errors as `grammar.matcher.Grammar`, and InputError for a bias of a token that is not."""
        self.sampling.check_tokens(vocab.n_tokens)
        if self.grammar is None:
            return Sampler(self.sampling, None, self.prompt)
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
        lane: Worker,
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
        out = TextOut(request.stop, request.thinking)
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
                if vocab.is_end(token_id):
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
