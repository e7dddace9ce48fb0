"""The router's training prompts: our own, written and made from patterns, and public data sets where they are at hand.

    written = own_prompts(seed=0)               # about 30,000 prompts of our own, always the same for a seed
    public = public_prompts(Path("data"))       # GSM8K train, MBPP 511-974, dolly, as docs/training.md names the files

Each prompt has a label (a task, or None for "none of these") and a source, so that the training can weigh sources and
leave one out. dolly's closed_qa and summarization rows that are held out for scoring are left out here too, and of its
other categories only those in `TRAINED_CATEGORIES` are used: the rest judge the router.
"""

import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...edge.datasets.prompts import dolly_held_out, dolly_messages, gsm8k_messages, mbpp_messages
from ..data.arithmetic_drills import arithmetic_drills
from ..data.easy_problems import easy_problems
from ..data.examples import read_texts
from ..tasks.code import MBPP_TRAINABLE
from .passages import about_passages, with_yes_no, yes_no_questions
from .patterns import FOLDER, filled
from .requests import given_requests
from .texts import context_requests, text_requests

TASKS: Final = ("math", "code", "summarize")
TRAINED_CATEGORIES: Final = ("open_qa", "brainstorming", "creative_writing")
PUBLIC: Final = ("gsm8k", "mbpp", "dolly")
# Files of prompts, each a source of its own; the first word is the label
WRITTEN: Final = (
    "math",
    "math_school",
    "math_daily",
    "math_languages",
    "math_more",
    "code",
    "code_plain",
    "code_languages",
    "code_more",
    "code_foreign",
    "none",
    "none_near",
    "none_talk",
    "none_languages",
    "none_more",
    "none_programs",
)
# How often each pattern is filled in
_FILLS: Final = {"math": 14, "code": 24, "summarize": 16, "programs": 20, "knowledge": 14, "none": 16}
_PUBLIC_ROWS: Final = {
    "gsm8k": 1200,
    "mbpp": 464,
    "closed_qa": 700,
    "summarization": 700,
    "other": 2100,
    "alone": 800,
    "yes or no": 700,
    "told": 250,
}


@dataclass(frozen=True)
class Prompt:
    """A prompt with the adapter that it belongs to; None for none of these."""

    text: str
    label: str | None
    source: str

    @property
    def is_own(self) -> bool:
        """Whether we wrote it, or a pattern of ours made it."""
        return not self.source.startswith(PUBLIC)


def own_prompts(seed: int) -> list[Prompt]:
    """All prompts of our own: written ones, patterns filled in, passages with questions and orders."""
    draw = random.Random(seed)
    patterns = tomllib.loads((FOLDER / "templates.toml").read_text(encoding="utf-8"))
    lists = patterns["lists"]
    found: list[Prompt] = []
    for name in WRITTEN:
        label = _label(name.partition("_")[0])
        found += [Prompt(text, label, f"written {name}") for text in written(name)]
    contrast = tomllib.loads((FOLDER / "contrast.toml").read_text(encoding="utf-8"))
    for title, lot in (
        ("patterns", {**patterns, "lists": contrast["lists"] | lists}),
        ("contrast", {**contrast, "lists": lists | contrast["lists"]}),
    ):
        for name in _FILLS:
            for number, pattern in enumerate(lot.get(name, ())):
                texts = dict.fromkeys(filled(pattern, lot["lists"], draw) for _ in range(_FILLS[name]))
                found += [Prompt(text, _label(name), f"{title} {name} {number % 4}") for text in texts]
                if name == "code" and "{lang}" in pattern:
                    # The same order in another language is the base's, so that the language decides and nothing else.
                    other = pattern.replace("{lang}", "{otherlang}")
                    texts = dict.fromkeys(filled(other, lot["lists"], draw) for _ in range(_FILLS[name]))
                    found += [Prompt(text, None, f"{title} other languages {number % 4}") for text in texts]
    for number in range(900):
        told = [*draw.sample(patterns["stories"], draw.randint(2, 6)), draw.choice(patterns["story_ends"])]
        found.append(Prompt(filled(" ".join(told), lists, draw), "math", f"stories {number % 3}"))
    for number in range(150):
        told = draw.sample(patterns["stories"], draw.randint(1, 5))
        found.append(Prompt(filled(" ".join(told), lists, draw), None, f"stories without a question {number % 2}"))
    found += [Prompt(filled(text, lists, draw), label, source) for text, label, source in _long(patterns, draw)]
    for number in range(450):
        found.append(Prompt(_stub(patterns, draw), "code", f"stubs {number % 3}"))
    for number in range(300):
        told = ["{Do}.", *draw.sample(patterns["specs"], draw.randint(0, 4))]
        draw.shuffle(told)
        found.append(Prompt(filled(" ".join(told), lists, draw), "code", f"specifications {number % 3}"))
    found += [Prompt(row["question"], "math", "easy problems") for row in easy_problems(250, seed)]
    found += [Prompt(row["question"], "math", "drills") for row in arithmetic_drills(200, seed)]
    for about in patterns["about_others"]:
        for task in ("math", "code"):
            asked = draw.sample(patterns[task], 12)
            found += [Prompt(about.replace("{it}", filled(text, lists, draw)), None, "about others") for text in asked]
    found += [Prompt(*row) for row in about_passages(patterns["summary"], draw)]
    found += [Prompt(*row) for row in given_requests(lists, draw)]
    # Draws of its own: what is added to texts.toml leaves the other prompts as they were.
    found += [Prompt(*row) for row in text_requests(lists, random.Random(seed))]
    return found + list(_worn(found, draw))


def _label(name: str) -> str | None:
    return name if name in TASKS else None


def written(name: str) -> list[str]:
    """The lines of a file of prompts; a newline within a prompt is written as `\\n` there."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    return [line.replace("\\n", "\n") for line in lines if line.strip()]


def _long(patterns: dict[str, Any], draw: random.Random) -> Iterator[tuple[str, str | None, str]]:
    """Long prompts: letters, orders for texts and orders for programs, of 4 to 14 sentences."""
    for number in range(90):
        told = [*draw.sample(patterns["letters"], draw.randint(4, 14)), draw.choice(patterns["letter_ends"])]
        yield " ".join(told), None, f"letters {number % 3}"
        wanted = [draw.choice(patterns["stories_wanted"]), *draw.sample(patterns["wishes"], draw.randint(3, 9))]
        yield " ".join(wanted), None, f"wishes {number % 3}"
        asked = [draw.choice(patterns["briefs"]), *draw.sample(patterns["needs"], draw.randint(3, 11))]
        yield " ".join(asked), "code", f"briefs {number % 3}"


def _stub(patterns: dict[str, Any], draw: random.Random) -> str:
    """The start of a Python function: signature and a docstring of one to six sentences, with examples or without."""
    quotes = draw.choice(['"""', '"""', "'''"])
    arguments = ", ".join(
        dict.fromkeys("{argname}" if i == 0 else draw.choice("kmnxyab") for i in range(draw.randint(1, 3)))
    )
    typed = draw.random() < 0.5
    head = f"def {{ident}}({arguments}: {{type}}) -> {{type}}:" if typed else f"def {{ident}}({arguments}):"
    before = draw.choice(
        [
            "",
            "",
            "\n",
            "import math\n\n\n",
            "from typing import List, Tuple, Optional\n\n\n",
            "from collections import Counter\n\n",
        ]
    )
    told = draw.sample(patterns["specs"], draw.randint(1, 6))
    breaks = [draw.choice([" ", " ", "\n    "]) for _ in told]
    text = "".join(f"{sentence}{space}" for sentence, space in zip(told, breaks, strict=True)).rstrip()
    example = draw.choice(
        [
            "",
            "\n    >>> {ident}([{n}, {n}], {n})\n    {n}\n    >>> {ident}([])\n    {none}",
            '\n\n    Examples:\n    {ident}({n}) => {n}\n    {ident}("ab") => {none}',
            "\n    Example 1:\n        Input: {n}, {N}\n        Output: {n}\n    Constraints:\n        * 1 <= k <= {N}",
            "\n    {ident}([{n}, {n}, {n}]) == {n}",
            "\n    Note: {what} counts.",
        ]
    )
    stub = f"{before}{head}\n    {quotes}{draw.choice(['', ' ', chr(10) + '    '])}{text}{example}\n    {quotes}\n"
    order = draw.choice(patterns["stub_orders"])
    if order and draw.random() < 0.5:
        stub = f"```python\n{stub}```"
    return filled(order + stub, patterns["lists"], draw)


def _begin(text: str, draw: random.Random) -> str:
    """The first words of a text, up to all of them."""
    words = text.split(" ")
    return " ".join(words[: draw.choice([12, 25, 50, 100, len(words)])])


_BEFORE: Final = (
    "Please: ",
    "Hi! ",
    "Hello, can you help me? ",
    "hey ",
    "I need your help. ",
    "Quick one: ",
    "Hey there, ",
)
_AFTER: Final = (
    " Thanks!",
    " thank you",
    " Please.",
    " I appreciate it.",
    " Be quick.",
    " Answer in English.",
    " Explain your answer.",
)


def _worn(prompts: list[Prompt], draw: random.Random) -> Iterator[Prompt]:
    """A quarter of the prompts again, as people type: small letters, capitals, typos, no signs, words around it."""
    for prompt in prompts:
        if draw.random() > 0.4:
            continue
        text, kind = prompt.text, draw.randrange(8)
        code = prompt.label == "code" and "\n" in text
        if kind == 0:
            text = text.lower()
        elif kind == 1 and not code:
            text = text.upper()
        elif kind in (2, 7) and not code:
            text = _typos(text, draw, 0.04 if kind == 2 else 0.1)
        elif kind == 3:
            text = text.rstrip(".?! ")
        elif kind == 4:
            text = draw.choice(_BEFORE) + text
        elif kind == 5:
            text = text + draw.choice(_AFTER)
        else:
            text = re.sub(r"\s*\n\s*", " ", text) if prompt.label == "summarize" else f"\n{text}\n"
        yield Prompt(text, prompt.label, f"{prompt.source}, worn")


def _typos(text: str, draw: random.Random, share: float) -> str:
    letters = list(text)
    for place in range(len(letters) - 1):
        if letters[place].isalpha() and letters[place + 1].isalpha() and draw.random() < share:
            kind = draw.randrange(3)
            if kind == 0:
                letters[place], letters[place + 1] = letters[place + 1], letters[place]
            elif kind == 1:
                letters[place] = ""
            else:
                letters[place] *= 2
    return "".join(letters)


def public_prompts(data: Path, seed: int = 0) -> list[Prompt]:
    """Prompts of the public training sets below `data`, at most some hundreds of each.

    Raises:
        InputError: a file is missing or damaged.
    """
    draw = random.Random(seed)

    def rows(name: str, *keys: str) -> list[dict[str, Any]]:
        return list(read_texts(data / name, *keys))

    found: dict[str, list[Prompt]] = {key: [] for key in _PUBLIC_ROWS}
    contexts: list[tuple[str, str]] = []
    lists = tomllib.loads((FOLDER / "templates.toml").read_text(encoding="utf-8"))["lists"]
    for row in rows("gsm8k/train.jsonl", "question"):
        text = gsm8k_messages(row["question"])[0]["content"]
        found["gsm8k"].append(Prompt(text, "math", "gsm8k"))
        told = re.split(r"(?<=[.!]) ", text)
        if len(told) > 2 and told[-1].endswith("?") and not any("how" in part.lower() for part in told[:-1]):
            found["told"].append(Prompt(" ".join(told[:-1]), None, "gsm8k without the question"))
    for row in rows("mbpp/mbpp.jsonl", "text"):
        if row.get("task_id") in MBPP_TRAINABLE and isinstance(row.get("test_list"), list) and row["test_list"]:
            alone = row["task_id"] % 3 == 0
            text = row["text"] if alone else mbpp_messages(row["text"], row["test_list"])[0]["content"]
            found["mbpp"].append(Prompt(text, "code", "mbpp"))
    for name in ("closed_qa", "summarization"):
        for row in rows(f"dolly/{name}.jsonl", "instruction", "context"):
            if not dolly_held_out(row) and row["context"].strip():
                contexts.append((row["context"].strip(), row["instruction"].strip()))
                found["alone"].append(Prompt(_begin(row["context"].strip(), draw), None, "dolly contexts alone"))
                for question in yes_no_questions(row["context"].strip(), [row["instruction"]])[:2]:
                    text = with_yes_no(row["context"].strip(), question, draw)
                    found["yes or no"].append(Prompt(text, "summarize", "dolly yes or no"))
                text = dolly_messages(row["instruction"], row["context"])[0]["content"]
                if draw.random() < 0.3:
                    between = draw.choice([" ", "\n", "\n\n"])
                    text = f"{row['context'].strip()}{between}{row['instruction'].strip()}"
                found[name].append(Prompt(text, "summarize", f"dolly {name}"))
    for row in rows("dolly/other_prompts.jsonl", "instruction", "context", "category"):
        if row["category"] in TRAINED_CATEGORIES and not row["context"].strip():
            found["other"].append(Prompt(row["instruction"], None, f"dolly {row['category']}"))
    drawn = [
        prompt for key, rows_ in found.items() for prompt in draw.sample(rows_, min(_PUBLIC_ROWS[key], len(rows_)))
    ]
    return drawn + [Prompt(*row) for row in context_requests(contexts, lists, draw)]
