"""A base's own answers to general prompts, as replay rows: the mildest ones, as they ask for no change at all.

counts = own_answers(Path("base.gguf"), [Path("dolly/closed_qa.jsonl")], Path("own.jsonl"), n_prompts=300)
"""

import random
from collections.abc import Sequence
from pathlib import Path

from ...edge.console import Advance, silent
from ...edge.datasets.prompts import dolly_held_out, dolly_messages, user_message
from ...edge.errors import InputError
from ...edge.files.read import sha256_file, sha256_json
from ...edge.gguf.chat_template import Message
from ...edge.session.session import Session
from ..data.examples import Row, read_rows, text_of, turns_of
from .kept_answers import KeptAnswers


def prompt_of(row: Row) -> list[Message] | None:
    """The prompt of a row; None for a row of dolly that is kept for scoring.

    Raises:
        InputError: it has neither messages, nor a prompt, nor an instruction.
    """
    try:
        if row.get("messages"):
            turns = turns_of(row)
            return turns[:-1] if turns[-1]["role"] == "assistant" else turns
        if row.get("prompt") is not None:
            return user_message(text_of(row, "prompt").strip())
        if row.get("instruction") is not None:
            given = next((key for key in ("context", "input") if row.get(key)), None)
            instruction, context = text_of(row, "instruction"), text_of(row, given) if given else ""
            passage = context if given == "context" else ""
            if "context" in row and dolly_held_out({"instruction": instruction, "context": passage}):
                return None
            return dolly_messages(instruction, context)
    except ValueError as error:
        raise InputError(f"a row cannot be used: {error}") from None
    raise InputError(f"a row has neither messages, nor prompt, nor instruction: {list(row)}")


def own_answers(
    base: Path,
    data: Sequence[Path],
    output: Path,
    *,
    n_prompts: int = 300,
    max_prompt_tokens: int = 256,
    max_tokens: int = 256,
    seed: int = 1,
    n_parallel: int = 16,
    threads: int | None = None,
    advance: Advance = silent,
) -> dict[str, int]:
    """Lets a base answer prompts, the likeliest token each time, and writes them as `messages`, a row each.

    Answers are kept as they come (`kept_answers.py`), so that a run that was stopped goes on where it was.
    An answer that does not end by itself is left out: where it was cut would be learned as its end.

    Args:
        base: a GGUF.
        data: files of rows, see `prompt_of`; `n_prompts` of them are drawn by `seed`.
        output: the JSONL to write.
        max_prompt_tokens: longer prompts are not drawn.
        n_parallel: answers computed at once.
        advance: told of each answer.

    Returns:
        How many prompts were asked, and how many answers are in the file.

    Raises:
        InputError: a row has none of the forms, or no prompt is short enough.
    """
    with Session.of_files(base, {}, threads=threads) as session:
        prompts = []
        for prompt in [prompt_of(row) for path in data for row in read_rows(path)]:
            if prompt is not None and len(session.prompt_tokens(prompt)) <= max_prompt_tokens:
                prompts.append(prompt)
        if not prompts:
            raise InputError(f"no prompt has at most {max_prompt_tokens} tokens", where=data[0])
        chosen = random.Random(f"own answers/{seed}").sample(prompts, min(n_prompts, len(prompts)))
        of = {"base_sha256": sha256_file(base), "prompts_sha256": sha256_json(chosen), "max_tokens": max_tokens}
        with KeptAnswers(output, of) as kept:
            kept.answer(session, chosen, advance, adapter=None, max_tokens=max_tokens, n_parallel=n_parallel)
    texts = [(kept.answers[at].text or "").strip() for at in range(len(chosen))]
    rows = [
        {"messages": [*prompt, {"role": "assistant", "content": text}]}
        for prompt, text in zip(chosen, texts, strict=True)
        if text
    ]
    if not rows:
        kept.remove()
        raise InputError(f"no answer ended within {max_tokens} tokens", hint="allow longer ones: --max-tokens")
    kept.finish(rows)
    return {"prompts": len(chosen), "rows": len(rows)}
