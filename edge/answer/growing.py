"""One answer in the making among others: its tokens, the text of them, and why it ends."""

import time
from dataclasses import dataclass, field

from ..llama.sampling import Sampler
from ..llama.vocab import Vocab
from .stream import Answer, Request, StopReason, TextOut


@dataclass
class Growing:
    """An answer token by token.

    Attributes:
        started_s, first_s: when it was begun and when its first token was there, by `time.perf_counter`.
        ids: the tokens, the end token not among them.
        reason: why it ended; None while it grows.
    """

    request: Request
    sampler: Sampler
    started_s: float
    n_kept_tokens: int = 0
    prefill_s: float = 0.0
    first_s: float = 0.0
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    reason: StopReason | None = None

    def __post_init__(self) -> None:
        self._out = TextOut(self.request.stop, self.request.thinking, self.request.min_tokens)

    @property
    def thought(self) -> str:
        """What the last token, or `finish`, added to the model's thoughts."""
        return self._out.thought

    @property
    def position(self) -> int:
        """Where the last chosen token goes."""
        return len(self.request.prompt) + len(self.ids) - 1

    def take(self, token_id: int, vocab: Vocab) -> str:
        """Adds the next token; returns the text that is final by it, and sets `reason` where the answer ends."""
        self.first_s = self.first_s or time.perf_counter()
        if not self.request.ignore_eos and vocab.is_end(token_id):
            self.reason = "end"
            self._out.thought = ""
            return ""
        self.ids.append(token_id)
        text = self._out.take(token_id, vocab)
        self.text.append(text)
        if self._out.stopped:
            self.reason = "stop"
        elif len(self.ids) >= self.request.max_tokens:
            self.reason = "max_tokens"
        elif self.position >= self.request.room_tokens:
            self.reason = "context"
        return text

    def finish(self, adapter: str | None) -> tuple[Answer, str]:
        """The finished answer under an adapter's name, and the last text that was held back."""
        assert self.reason is not None
        ended_s = time.perf_counter()
        rest = self._out.finish()
        n_steps = len(self.ids) - (self.reason != "end")
        answer = Answer(
            text="".join(self.text) + rest,
            n_prompt_tokens=len(self.request.prompt),
            n_tokens=len(self.ids),
            first_token_s=self.first_s - self.started_s,
            decode_tokens_per_s=n_steps / (ended_s - self.first_s) if n_steps else None,
            stop_reason="stop" if self._out.stopped else self.reason,
            adapter=adapter,
            n_kept_tokens=self.n_kept_tokens,
            prefill_s=self.prefill_s,
            seed=self.sampler.seed,
            token_ids=tuple(self.ids),
            thinking=self._out.thinking,
        )
        return answer, rest
