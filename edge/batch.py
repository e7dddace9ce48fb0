"""Many prompts answered together under one adapter, for throughput: benchmarks, not people.

    with Session.open("my-pack") as session:
        answers = generate_batch(session, ["2 + 2 = ?", "3 + 3 = ?"], adapter="math", max_tokens=64)

Each step computes one token for every answer in the making; a finished one's place is taken by the next prompt.
A context of its own is made over the session's model, so the session's KV cache is not touched. How many are computed
at once changes results in their last bits, so where two tokens are nearly tied an answer can differ from `ask`'s.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .chat import Message
from .engine import Context, Outputs
from .errors import DoesNotFitError, InputError
from .prefix import chunk_ends
from .sampling import Sampler, Sampling
from .session import Session
from .stream import Answer, StopReason
from .text_out import TextOut


@dataclass
class _Slot:
    """One answer in the making, in one sequence of the context."""

    index: int
    sequence: int
    prompt: list[int]
    out: TextOut
    sampler: Sampler | None
    started_s: float
    first_s: float = 0.0
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    reason: StopReason | None = None

    @property
    def position(self) -> int:
        """Where the last chosen token goes."""
        return len(self.prompt) + len(self.ids) - 1

    def close(self) -> None:
        """Frees its sampler."""
        if self.sampler is not None:
            self.sampler.close()


def generate_batch(
    session: Session,
    prompts: Sequence[str | Sequence[Message]],
    *,
    adapter: str | None,
    max_tokens: int | None = None,
    stop: Sequence[str] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    system: str | None = None,
    n_parallel: int = 16,
    on_done: Callable[[int, Answer], object] | None = None,
) -> list[Answer]:
    """Answers all prompts with one adapter; afterwards the session uses the adapter that it used before.

    Args:
        prompts: user messages or conversations.
        max_tokens, stop, system: None: as the adapter's task card says.
        temperature: 0 is greedy and deterministic; else prompt i draws with the seed `seed + i`.
        n_parallel: answers computed at once; memory grows with it by one KV cache each.
        on_done: told of each answer, with its prompt's index, as soon as it is there.

    Returns:
        One answer for each prompt, in their order. An answer's times include those of its neighbours.

    Raises:
        SlmEdgeError: as `Session.use` and `Session.prompt_tokens`.
        DoesNotFitError: a prompt is longer than the base's context.
    """
    if n_parallel < 1:
        raise InputError(f"n_parallel is {n_parallel}; at least 1 is possible")
    before = session.adapter
    session.use(adapter)
    try:
        choice = session.choice()
        ids = [session.prompt_tokens(prompt, system=system) for prompt in prompts]
    finally:
        session.use(before)
    if not ids:
        return []
    most = choice.card.max_tokens if max_tokens is None else max_tokens
    trained = session.base.n_ctx_train_tokens
    longest = max(map(len, ids))
    if longest >= trained:
        raise DoesNotFitError(
            f"prompt {max(range(len(ids)), key=lambda i: len(ids[i]))} has {longest} tokens; "
            f"the base can hold {trained}"
        )
    room = min(longest + most, trained)
    n_parallel = min(n_parallel, len(ids))
    samplings = [Sampling(temperature=temperature, seed=seed + i) if temperature else None for i in range(len(ids))]
    answers: dict[int, Answer] = {}
    with Context(
        session.model,
        # Every sequence gets an equal part, which llama.cpp rounds up to a multiple of 256.
        n_ctx_tokens=-(-room // 256) * 256 * n_parallel,
        n_seq_max=n_parallel,
        threads=session.context.threads,
        kv_type=session.options.get("kv_type", "f16"),
        flash_attention=session.options.get("flash_attention", "auto"),
    ) as context:
        context.set_adapters(choice.adapters)
        run = _Run(session, context, most, room, choice.card.stop if stop is None else tuple(stop))
        for slot in run.slots(ids, samplings, n_parallel):
            answer = run.answer(slot, choice.name)
            answers[slot.index] = answer
            if on_done is not None:
                on_done(slot.index, answer)
    return [answers[i] for i in range(len(ids))]


class _Run:
    """The loop: fill free sequences, choose tokens, compute one step for all."""

    def __init__(
        self, session: Session, context: Context, max_tokens: int, room_tokens: int, stop: Sequence[str]
    ) -> None:
        self._vocab = session.model.vocab
        self._context = context
        self._max_tokens = max_tokens
        self._room_tokens = room_tokens
        self._stop = stop

    def slots(
        self, prompts: Sequence[list[int]], samplings: Sequence[Sampling | None], n_parallel: int
    ) -> Iterator[_Slot]:
        """Yields each slot when its answer is whole."""
        waiting = iter(range(len(prompts)))
        free = list(range(n_parallel))
        active: dict[int, _Slot] = {}
        try:
            while True:
                while free and (index := next(waiting, None)) is not None:
                    slot = self._begin(index, free.pop(0), prompts[index], samplings[index])
                    if slot.reason is None:
                        active[slot.sequence] = slot
                    else:
                        yield self._release(slot, free)
                if not active:
                    return
                rows = [active[sequence] for sequence in sorted(active)]
                self._context.decode_step(
                    [slot.ids[-1] for slot in rows], [slot.position for slot in rows], [slot.sequence for slot in rows]
                )
                for row, slot in enumerate(rows):
                    self._choose(slot, row)
                for slot in rows:
                    if slot.reason is not None:
                        del active[slot.sequence]
                        yield self._release(slot, free)
        finally:
            for slot in active.values():
                slot.close()

    def _begin(self, index: int, sequence: int, prompt: list[int], sampling: Sampling | None) -> _Slot:
        sampler = Sampler(sampling) if sampling is not None else None
        slot = _Slot(index, sequence, prompt, TextOut(self._stop), sampler, time.perf_counter())
        at = 0
        for end in chunk_ends(len(prompt)):
            outputs: Outputs = "last" if end == len(prompt) else "none"
            self._context.decode(prompt[at:end], at, sequence=sequence, outputs=outputs)
            at = end
        self._choose(slot, -1)
        slot.first_s = time.perf_counter()
        return slot

    def _choose(self, slot: _Slot, row: int) -> None:
        """Takes the next token of a slot from the row-th logits, or says why it ends."""
        if slot.sampler is None:
            token_id = int(np.argmax(self._context.logits_view(row)))
        else:
            token_id = slot.sampler.sample(self._context, row)
        if self._vocab.is_end(token_id):
            slot.reason = "end"
            return
        slot.ids.append(token_id)
        slot.text.append(slot.out.feed(self._vocab.piece(token_id)))
        if slot.out.stopped:
            slot.reason = "stop"
        elif len(slot.ids) >= self._max_tokens:
            slot.reason = "max_tokens"
        elif slot.position >= self._room_tokens:
            slot.reason = "context"

    def _release(self, slot: _Slot, free: list[int]) -> _Slot:
        self._context.remove(slot.sequence, 0)
        slot.close()
        free.append(slot.sequence)
        free.sort()
        return slot

    def answer(self, slot: _Slot, adapter: str | None) -> Answer:
        """The answer of a finished slot."""
        ended_s = time.perf_counter()
        rest = slot.out.finish()
        reason = "stop" if slot.out.stopped else slot.reason
        assert reason is not None
        n_steps = len(slot.ids) - (slot.reason != "end")
        return Answer(
            text="".join(slot.text) + rest,
            n_prompt_tokens=len(slot.prompt),
            n_tokens=len(slot.ids),
            first_token_s=slot.first_s - slot.started_s,
            decode_tokens_per_s=n_steps / (ended_s - slot.first_s) if n_steps else None,
            stop_reason=reason,
            adapter=adapter,
            seed=slot.sampler.seed if slot.sampler is not None else None,
            token_ids=tuple(slot.ids),
        )
