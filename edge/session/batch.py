"""Many prompts answered together under one adapter, for throughput: benchmarks, not people.

    with Session.open("my-pack") as session:
        answers = generate_batch(session, ["2 + 2 = ?", "3 + 3 = ?"], adapter="math", max_tokens=64)

A context of its own is made for it and freed afterwards, so the session's KV cache is not touched. See `batcher.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..answer.base import SessionBase
from ..answer.settings import Settings
from ..answer.stream import Answer
from ..errors import DoesNotFitError
from ..gguf.chat_template import Message


def generate_batch(
    session: SessionBase[Any],
    prompts: Sequence[str | Sequence[Message]],
    *,
    adapter: str | None,
    max_tokens: int | None = None,
    stop: Sequence[str] | None = None,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    system: str | None = None,
    n_parallel: int = 16,
    on_done: Callable[[int, Answer], object] | None = None,
) -> list[Answer]:
    """Answers all prompts with one adapter; the session goes on with the adapter that it used before.

    Args:
        prompts: user messages or conversations.
        max_tokens, stop, system: None: as the adapter's task card says.
        temperature: 0 is greedy and deterministic; else prompt i draws with `seed + i`, or the i-th of several seeds.
        n_parallel: answers computed at once; memory grows with it by one KV cache each.
        on_done: told of each answer, with its prompt's index, as soon as it is there.

    Returns:
        One answer for each prompt, in their order. An answer's times include those of its neighbours.

    Raises:
        SlmEdgeError: as `Session.use` and `Session.prompt_tokens`.
        DoesNotFitError: a prompt is longer than the base's context.
    """
    batcher = session.new_batcher(n_parallel)
    choice = session.choice_of(adapter)
    waiting = {}
    for i, prompt in enumerate(prompts):
        settings: Settings = {"max_tokens": max_tokens, "stop": stop, "temperature": temperature}
        if temperature:
            settings["seed"] = seed + i if isinstance(seed, int) else seed[i]
        try:
            request = session.request(prompt, choice, system, settings, room_tokens=session.longest_tokens)
        except DoesNotFitError as error:
            raise DoesNotFitError(f"prompt {i}: {error.message}", hint=error.hint) from None
        waiting[i] = batcher.submit(request, choice)
    answers: dict[int, Answer] = {}
    try:
        while waiting:
            batcher.advance()
            for i in [i for i, pending in waiting.items() if pending.done]:
                answers[i] = waiting.pop(i).result()
                if on_done is not None:
                    on_done(i, answers[i])
    finally:
        batcher.close()
    return [answers[i] for i in range(len(answers))]
