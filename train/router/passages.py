"""Our own passages with questions and orders about them, other orders on them, and passages and questions alone.

for text, label, source in about_passages(patterns, random.Random(0)): ...
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Final

from .patterns import FOLDER, Row, laid_out

_SENTENCE_END: Final = re.compile(r"(?<=[.!?]) ")
_AUXILIARY: Final = re.compile(r"\b(is|are|was|were|has|had|can|could|will|would|must|should|did|does|do|have)\b")
# Words with which a sentence has no subject at its start
_NO_SUBJECT: Final = re.compile(
    r"(?:in|on|at|but|and|for|from|since|after|when|if|as|by|to|with|of|before|during|while|there|nobody|no|what|who)\b",
    re.IGNORECASE,
)
_BETWEEN: Final = (" ", " ", "\n", "\n", "\n\n", "\n\n")


def sentences_of(text: str) -> list[str]:
    """The text's sentences."""
    return _SENTENCE_END.split(text)


def passages() -> list[tuple[str, list[str]]]:
    """Our own passages, each with its questions."""
    found = []
    files = ("passages.txt", "passages_more.txt")
    for block in "%%\n".join((FOLDER / name).read_text(encoding="utf-8") for name in files).split("%%\n"):
        lines = block.strip().split("\n")
        text = "\n".join(line for line in lines if not line.startswith("Q: ")).replace("\\n", "\n")
        found.append((text, [line[3:] for line in lines if line.startswith("Q: ")]))
    return found


def yes_no_questions(text: str, questions: Sequence[str]) -> list[str]:
    """Yes/no questions in small letters, as they are typed into a search box, from a text and questions on it.

    "Where was the mill built?" gives "was the mill built", "It was sold in 1905." gives "was it sold in 1905".
    """
    found = []
    for question in questions:
        words = question.rstrip("?").split(" ")
        at = next((i for i, word in enumerate(words[:5]) if i and _AUXILIARY.fullmatch(word)), 0)
        if at and len(words) - at > 3:
            found.append(" ".join(words[at:]).lower())
    for sentence in sentences_of(text):
        match = _AUXILIARY.search(sentence, 3, 60)
        if match is None or "," in sentence[: match.start()] or _NO_SUBJECT.match(sentence):
            continue
        rest = re.split(r"[,.;:(\n]", sentence[match.end() :])[0].split(" ")[1:10]
        if len(rest) > 1:
            found.append(f"{match[0]} {sentence[: match.start()].strip()} {' '.join(rest)}".lower())
    return found


def _asked_of(text: str, patterns: Sequence[str], draw: random.Random) -> list[str]:
    """Questions of `patterns` about names and long words of the text."""
    things = list(dict.fromkeys(re.findall(r"[A-Z][a-z]+(?: [A-Z][a-z]+)+|[^\W\d_]{6,}", text)))
    found = []
    for pattern in draw.sample(patterns, 8 if len(things) > 1 else 0):
        one, two = draw.sample(things, 2)
        found.append(pattern.replace("{x}", one).replace("{y}", two).lower())
    return found


def about_passages(patterns: Mapping[str, Sequence[str]], draw: random.Random) -> list[Row]:
    """Passages with an order or a question before or after them, with other orders, alone, and questions alone."""
    found: list[Row] = []
    labels = patterns["labels"]
    for number, (text, questions) in enumerate(passages()):
        source = f"passages {number % 5}"
        sentences = sentences_of(text)
        shorter = " ".join(sentences[: max(2, len(sentences) // 2)])
        for order in draw.sample(patterns["orders"], 14):
            body = draw.choice([text, text, shorter])
            found.append((laid_out(order, body, labels, draw), "summarize", source))
        for body in (sentences[0], " ".join(sentences[:2]), " ".join(sentences[-2:])):
            order = draw.choice(patterns["orders"])
            found.append((laid_out(order, body, labels, draw), "summarize", source))
        for question in questions[:2]:
            asked = question if draw.random() < 0.5 else question.rstrip(" ?")
            about = min(sentences, key=lambda part: -_common(part, question))
            found.append((f"{asked}\n\n{about}", "summarize", source))
            found.append((f"{asked}\n\n{shorter}", "summarize", source))
        for question in questions:
            body = draw.choice([text, text, shorter])
            asked = question if draw.random() < 0.7 else question[0].lower() + question[1:].rstrip("?")
            found.append((f"{body}{draw.choice([' ', chr(10), chr(10) * 2])}{asked}", "summarize", source))
            for ask in draw.sample(patterns["asks"], 5):
                asked = ask.replace("{q}", question)
                found.append((laid_out(asked, text, labels, draw), "summarize", source))
            found.append((question if number % 2 else f"Question: {question}\nAnswer:", None, "questions alone"))
        asked_of_it = [*yes_no_questions(text, questions), *_asked_of(text, patterns["yes_no"], draw)]
        for question in asked_of_it:
            body = draw.choice([text, text, shorter])
            found.append((with_yes_no(body, question, draw), "summarize", f"yes or no {number % 5}"))
        found += [(question, None, "yes or no alone") for question in asked_of_it[::2]]
        for order in draw.sample(patterns["others"], 24):
            body = draw.choice([text, text, shorter])
            asked = order if draw.random() < 0.7 else order.lower().rstrip(".?")
            found.append((laid_out(asked, body, labels, draw), None, f"other orders {number % 5}"))
        for n in range(1, len(sentences) + 1):
            body = " ".join(sentences[-n:] if draw.random() < 0.3 else sentences[:n])
            cut = body.rsplit(" ", draw.randint(1, 6))[0] if draw.random() < 0.5 else body
            title = f"{draw.choice(patterns['titles'])}: " if draw.random() < 0.2 else ""
            found.append((title + cut, None, f"passages alone {number % 5}"))
    return found


def with_yes_no(text: str, question: str, draw: random.Random) -> str:
    """The question after the text, at times before it, mostly without a question mark."""
    asked = question + draw.choice(["", "", "", "?"])
    if draw.random() < 0.15:
        return f"{asked}\n\n{text}"
    label = draw.choice(["", "", "", "", "question: ", "Question: ", "Answer yes or no: "])
    return f"{text}{draw.choice(_BETWEEN)}{label}{asked}"


def _common(a: str, b: str) -> int:
    return len(set(a.lower().split()) & set(b.lower().split()))
