"""Worked answers of the model's own that came out right, as training rows: rejection sampling.

    counts = own_rationales("base.gguf", [Path("gsm8k/train.jsonl")], Path("own.jsonl"), adapter=Path("math.gguf"))

A model, with an adapter or without, answers each problem several times; answers with the right number are kept, at most
so many that reckon differently for each problem (rejection sampling fine-tuning, Yuan et al. 2023, arXiv 2308.01825).
Gold answers are another hand's: learning them can cost an instruct model more than they teach.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...edge.console import Advance, silent
from ...edge.datasets.numbers import INVALID, flexible_answer, normalise, same_number, strict_answer
from ...edge.datasets.prompts import gsm8k_messages
from ...edge.errors import InputError
from ...edge.files.read import is_text, sha256_file, sha256_json
from ...edge.session.session import Session
from ..data.examples import read_rows
from ..model.bases import Base, open_base
from ..model.device import prepare_device
from ..model.lora import quiet_bitsandbytes
from .kept_answers import Kept, KeptAnswers
from .sampling import Sampled, sample

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def right_answer(text: str, truth: str) -> str | None:
    """The text as a training row's answer, `#### N` in its last line; None if its number isn't `truth`.

    A text with the mark is judged by the number behind it, another by its last number.
    """
    marked = strict_answer(text)
    found = flexible_answer(text) if marked == INVALID else marked
    if found == INVALID or not same_number(found, truth):
        return None
    body = text.split("####")[0].strip()
    return f"{body}\n#### {normalise(truth)}" if body else None


def reckoning(text: str) -> tuple[str, ...]:
    """The numbers of an answer in their order: two answers with the same ones reckon alike."""
    return tuple(number.replace(",", "") for number in _NUMBER.findall(text))


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn.

    Attributes:
        n_samples: answers drawn to each problem.
        max_prompt_tokens: longer problems are left out.
        n_parallel: answers computed at once.
        threads: of llama.cpp; None: its own choice.
    """

    n_samples: int = 4
    temperature: float = 0.7
    max_prompt_tokens: int = 256
    max_tokens: int = 256
    seed: int = 1
    n_parallel: int = 16
    threads: int | None = None

    def places(self, prompt_tokens: Sequence[int]) -> list[int]:
        """Which problems are asked, each as often as answers are drawn, from the lengths of all prompts."""
        fitting = [at for at, n_tokens in enumerate(prompt_tokens) if n_tokens <= self.max_prompt_tokens]
        return [at for at in fitting for _ in range(self.n_samples)]


def own_rationales(
    base: str | Path,
    data: Sequence[Path],
    output: Path,
    *,
    adapter: Path | None = None,
    n_kept: int = 4,
    drawing: Drawing | None = None,
    device: str = "cpu",
    advance: Advance = silent,
) -> dict[str, Any]:
    """Draws answers and writes the right ones as rows of `question` and `answer`.

    On a CPU llama.cpp answers, where base and adapter are GGUF files; else the model in torch, on a GPU in bf16.
    Answers are kept as they come (`kept_answers.py`), so that a run that was stopped goes on where it was.

    Args:
        base: a GGUF or a Hugging Face folder.
        data: files of rows with `question` and `answer`, whose last line is `#### N`.
        adapter: a GGUF adapter or a PEFT folder; without it the base itself answers.
        n_kept: right answers of different reckoning that are kept of a problem at most, first come.
        device: cpu or cuda.
        advance: told of each answer.

    Returns:
        Counts of problems, answers, right answers, problems with one, and rows written; tokens in all, and how many of
        them were drawn in this run's seconds.

    Raises:
        InputError: a row has no question or no final number, device or adapter cannot be used, or no answer is right.
    """
    drawing = drawing or Drawing()
    base = Path(base)
    problems = [_problem(row, path) for path in data for row in read_rows(path)]
    exported = adapter is not None and adapter.is_file()
    by_llama_cpp = device == "cpu" and base.is_file() and (adapter is None or exported)
    if exported and not by_llama_cpp:
        raise InputError("on a GPU, and on a folder, the adapter must be a PEFT folder", where=adapter)
    prepare_device(device)
    draw = _by_llama_cpp if by_llama_cpp else partial(_by_torch, device=device)
    begun = time.monotonic()
    of = {
        "base": _identity(base),
        "adapter": None if adapter is None else _identity(adapter),
        "problems_sha256": sha256_json(problems),
        "drawing": {**asdict(drawing), "threads": None, "n_parallel": None if by_llama_cpp else drawing.n_parallel},
        "device": device,
    }
    with KeptAnswers(output, of) as kept:
        asked = draw(base, adapter, [question for question, _ in problems], drawing, kept, advance)
    seconds = time.monotonic() - begun
    if not asked:
        raise InputError(f"no problem has at most {drawing.max_prompt_tokens} tokens", where=data[0])
    answers = [kept.answers[place] for place in range(len(asked))]
    rows: list[dict[str, str]] = []
    seen: dict[int, set[tuple[str, ...]]] = {}
    n_right = 0
    for number, answer in zip(asked, answers, strict=True):
        question, truth = problems[number]
        text = None if answer.text is None else right_answer(answer.text, truth)
        if text is None:
            continue
        n_right += 1
        of_problem = seen.setdefault(number, set())
        if len(of_problem) < n_kept and reckoning(text) not in of_problem:
            of_problem.add(reckoning(text))
            rows.append({"question": question, "answer": text})
    if not rows:
        kept.remove()
        raise InputError(f"none of {len(answers)} answers was right", hint="more --samples, or start from an --adapter")
    kept.finish(rows)
    n_tokens = [answer.n_tokens for answer in kept.answers.values()]
    return {
        "problems": len(set(asked)),
        "answers": len(answers),
        "ended": sum(answer.text is not None for answer in answers),
        "right": n_right,
        "problems_right": len(seen),
        "rows": len(rows),
        "tokens": sum(n_tokens),
        "tokens_drawn": sum(n_tokens[kept.n_before :]),
        "seconds": seconds,
    }


def _identity(model: Path) -> dict[str, str]:
    """The sha256 of a file, or of each file of a folder."""
    files = sorted(path for path in model.glob("*") if path.is_file()) if model.is_dir() else [model]
    return {path.name: sha256_file(path) for path in files if path.exists()}


def _by_llama_cpp(
    base: Path,
    adapter: Path | None,
    questions: Sequence[str],
    drawing: Drawing,
    kept: KeptAnswers,
    advance: Advance,
) -> list[int]:
    """Draws through the session that runs the base on a device; top-k, top-p and min-p are the session's own.

    Returns:
        Which question each answer is to.
    """
    adapters = {} if adapter is None else {"own": (adapter, None)}
    with Session.of_files(base, adapters, threads=drawing.threads) as session:
        messages = [gsm8k_messages(question) for question in questions]
        asked = drawing.places([len(session.prompt_tokens(one)) for one in messages])
        kept.answer(
            session,
            [messages[at] for at in asked],
            advance,
            adapter="own" if adapters else None,
            max_tokens=drawing.max_tokens,
            temperature=drawing.temperature,
            seed=drawing.seed,
            n_parallel=drawing.n_parallel,
        )
    return asked


def _by_torch(
    base: Path,
    adapter: Path | None,
    questions: Sequence[str],
    drawing: Drawing,
    kept: KeptAnswers,
    advance: Advance,
    *,
    device: str,
) -> list[int]:
    """Draws from the model in torch, where thousands of answers share each step of a GPU; returns the same."""
    opened = open_base(base)
    prompts = [opened.prompt_ids(gsm8k_messages(question)) for question in questions]
    asked = drawing.places([len(ids) for ids in prompts])
    advance(kept.n_before, total=len(asked))

    def on_done(place: int, answer: Sampled) -> None:
        if place not in kept.answers:
            kept.add(place, Kept(opened.decode(answer.ids) if answer.ended else None, len(answer.ids)))
            advance(1)

    sample(
        _model(opened, adapter, device),
        [prompts[at] for at in asked],
        is_end=opened.is_end,
        max_tokens=drawing.max_tokens,
        temperature=drawing.temperature,
        seed=drawing.seed,
        n_parallel=drawing.n_parallel,
        on_done=on_done,
        known=kept.answers,
    )
    return asked


def _problem(row: dict[str, Any], path: Path) -> tuple[str, str]:
    """Question and right number of a row."""
    question, answer = row.get("question"), row.get("answer")
    if not is_text(question) or not is_text(answer) or strict_answer(answer) == INVALID:
        raise InputError("a row has no question, or no answer with a final line '#### N'", where=path)
    return question, strict_answer(answer)


def _model(base: Base, adapter: Path | None, device: str) -> Any:
    """The base with the adapter merged into its f32 weights, for drawing alone."""
    model: Any = base.load_model("sdpa", "f32", device)
    if adapter is not None:
        quiet_bitsandbytes()
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.to(torch.float32 if device == "cpu" else torch.bfloat16).eval()
