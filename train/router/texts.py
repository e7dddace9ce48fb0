"""Prompts on texts: questions that they answer, orders that judge, compare or go beyond them; long ones without a text.

    for text, label, source in text_requests(lists, random.Random(0)): ...                  # texts of our own
    for text, label, source in context_requests(contexts, lists, random.Random(0)): ...     # texts of a data set

The same texts stand with requests of both kinds, so that the request decides and not what the text is about. Patterns
stand in `texts.toml`.
"""

import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .passages import passages, sentences_of, yes_no_questions
from .patterns import FOLDER, Row, filled

_READINGS: Final = 96
_REVIEWS: Final = 14
_PAIRS: Final = 16
_MADE: Final = 10
_SUMMARIES: Final = 12
_LONG: Final = 16
_CLAIMS: Final = 20
_CHOSEN: Final = 14
_ABOUT: Final = 5
# Texts with the same number stand in one fold, whatever is asked of them.
_LOTS: Final = 5
_SPLIT: Final = "\x00"


def _patterns() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "texts.toml").read_text(encoding="utf-8"))


def text_requests(lists: Mapping[str, Sequence[str]], draw: random.Random) -> Iterator[Row]:
    """The prompts on our own texts, and the long ones without a text; `lists` are those of templates.toml."""
    file = _patterns()
    words = {**lists, **file["lists"]}
    told = [(text, number % _LOTS) for number, (text, _) in enumerate(passages())]
    for number, block in enumerate(file["readings"]):
        told += [(filled(draw.choice(block["texts"]), words, draw), number % _LOTS) for _ in range(3)]
    yield from _readings(file, words, draw)
    yield from _reviews(file["judge"], words, draw)
    yield from _pairs(file["pairs"]["orders"], [text for text, _ in told], _PAIRS, draw)
    yield from _made(file["made"]["orders"], told, _MADE, draw)
    for order in file["claims"]["orders"]:
        for text, lot in draw.sample(told, _CLAIMS):
            yield _claimed(order, text, draw), None, f"made of texts {lot}"
    asked_of = [(text, questions, number % _LOTS) for number, (text, questions) in enumerate(passages()) if questions]
    for layout in file["layouts"]["options"]:
        for text, questions, lot in draw.sample(asked_of, _CHOSEN):
            yield _chosen(layout, _part(text, draw), draw.choice(questions), draw), "summarize", f"passages {lot}"
    for order in file["summaries"]["orders"]:
        for text, lot in draw.sample(told, _SUMMARIES):
            text = text if draw.random() < 0.75 else _part(text, draw)
            asked = filled(order.replace("{t}", text), words, draw)
            yield asked.lower() if draw.random() < 0.15 else asked, "summarize", f"summaries {lot}"
    for number, pattern in enumerate(file["long"]["parts"]):
        for _ in range(_LONG):
            yield filled(pattern, words, draw), None, f"long questions {number % 4}"
    for number, (text, questions) in enumerate(passages()):
        asks = [_about(ask, text, draw) for ask in draw.sample(file["about"]["asks"], _ABOUT)]
        for question in (*questions, *yes_no_questions(text, questions)[:5], *asks):
            yield (
                _asked(file["layouts"]["asked"], _part(text, draw), question, draw),
                "summarize",
                f"passages {number % _LOTS}",
            )


def context_requests(
    contexts: Sequence[tuple[str, str]], lists: Mapping[str, Sequence[str]], draw: random.Random
) -> Iterator[Row]:
    """The prompts on (text, question) of a data set, about as many as there are of them."""
    file = _patterns()
    texts = [text for text, _ in contexts]
    layouts = file["layouts"]
    for text, question in contexts:
        kind = draw.randrange(5)
        short = yes_no_questions(text, [question])
        if kind == 0 and short:
            yield _asked(layouts["asked"], text, draw.choice(short), draw), "summarize", "dolly yes or no"
        elif kind == 1:
            yield _asked(layouts["asked"], text, question, draw), "summarize", "dolly laid out"
        elif kind == 2:
            order = filled(draw.choice(file["summaries"]["orders"]), lists, draw)
            yield order.replace("{t}", text), "summarize", "dolly summed up"
        elif kind == 3:
            yield _made_one(draw.choice(file["made"]["orders"]), _part(text, draw), draw), None, "dolly other orders"
        elif draw.random() < 0.5:
            yield _claimed(draw.choice(file["claims"]["orders"]), text, draw), None, "dolly pairs"
        else:
            question = _about(draw.choice(file["about"]["asks"]), text, draw)
            yield _asked(layouts["asked"], _part(text, draw), question, draw), "summarize", "dolly laid out"
    for text, question in draw.sample(contexts, len(contexts) // 6):
        yield _chosen(draw.choice(layouts["options"]), text, question, draw), "summarize", "dolly laid out"
    n_each = max(1, len(contexts) // 5 // len(file["pairs"]["orders"]))
    for text, label, _ in _pairs(file["pairs"]["orders"], texts, n_each, draw):
        yield text, label, "dolly pairs"


def _readings(file: Mapping[str, Any], words: Mapping[str, Sequence[str]], draw: random.Random) -> Iterator[Row]:
    for number, block in enumerate(file["readings"]):
        for turn in range(_READINGS):
            question = draw.choice(block["asks"])
            told, _, asked = filled(f"{draw.choice(block['texts'])}{_SPLIT}{question}", words, draw).partition(_SPLIT)
            if turn % 8 == 0:
                yield told if turn % 3 else told.lower(), None, f"texts alone {number % _LOTS}"
                continue
            title = words["title"][turn % len(words["title"])]
            layouts = [layout.replace("{title}", title) for layout in file["layouts"]["asked"]]
            yield _asked(layouts, told, asked, draw), "summarize", f"readings {number % _LOTS}"


def _asked(layouts: Sequence[str], text: str, question: str, draw: random.Random) -> str:
    kind = draw.randrange(8)
    if kind < 2:
        question = question[0].lower() + question[1:].rstrip("?")
    elif kind == 2:
        question = question.rstrip("?") + "?"
    elif kind == 3:
        question = question.lower()
    elif kind == 5:
        # A name in quotes
        question = re.sub(r"(?<=[a-z] )([A-Z][a-z]+(?: [A-Z][a-z]+)*)", r'"\1"', question, count=1)
    if kind == 4 and draw.random() < 0.5:
        text = text.lower()
    return draw.choice(layouts).replace("{title}", _title(text)).replace("{t}", text).replace("{q}", question)


def _chosen(layout: str, text: str, question: str, draw: random.Random) -> str:
    """The question with three choices: things of the text, parts of its sentences, or yes and no."""
    things, parts = _things(text), [" ".join(part.split()[:9]).rstrip(".,;") for part in sentences_of(text)]
    lot = next((lot for lot in draw.sample([things, parts], 2) if len(lot) > 2), None)
    a, b, c = draw.sample(lot, 3) if lot else ("yes", "no", "not stated")
    asked = layout.replace("{t}", text).replace("{q}", question)
    return asked.replace("{a}", a).replace("{b}", b).replace("{c}", c)


def _about(ask: str, text: str, draw: random.Random) -> str:
    """A question about things that the text names."""
    things = _things(text)
    x, y = draw.sample(things, 2) if len(things) > 1 else ("it", "them")
    return ask.replace("{x}", x).replace("{y}", y)


def _claimed(order: str, text: str, draw: random.Random) -> str:
    """Sentences of the text, and one of its sentences changed."""
    sentences = [part for part in sentences_of(text) if len(part) > 20]
    told = _part(text, draw)
    claim = _changed(draw.choice(sentences or [text]), draw)
    return order.replace("{a}", told).replace("{b}", claim.rstrip(".") if draw.random() < 0.4 else claim)


def _title(text: str) -> str:
    return " ".join(re.findall(r"[^\W\d_]+", text)[:2])


def _reviews(judge: Mapping[str, Any], words: Mapping[str, Sequence[str]], draw: random.Random) -> Iterator[Row]:
    lists = {**words, "item": judge["item"]}
    for number, order in enumerate(judge["orders"]):
        for _ in range(_REVIEWS):
            review = _review(judge, draw)
            yield filled(order.replace("{t}", review), lists, draw), None, f"judged reviews {number % _LOTS}"
    for number in range(200):
        yield filled(_review(judge, draw), lists, draw), None, f"reviews alone {number % 3}"


def _review(judge: Mapping[str, Any], draw: random.Random) -> str:
    """One to fourteen sentences of one opinion or of both, at times as they are typed in a hurry."""
    opinion = draw.choice([judge["good"], judge["bad"], [*judge["good"], *judge["bad"]]])
    n_told, n_judged = draw.choice([0, 0, 1, 2, 4, 6]), draw.choice([1, 2, 3, 5, 8])
    told = [*draw.sample(judge["neutral"], n_told), *draw.sample(opinion, n_judged)]
    if draw.random() < 0.5:
        draw.shuffle(told)
    text = draw.choice([" ", " ", " ", "<br /><br />", "\n"]).join(told)
    return text.lower() if draw.random() < 0.15 else text


def _pairs(orders: Sequence[str], texts: Sequence[str], n_each: int, draw: random.Random) -> Iterator[Row]:
    """Sentences of the texts, each with itself changed or with its neighbour."""
    sentences = [part for text in texts for part in sentences_of(text) if 25 < len(part) < 260 and "\n" not in part]
    for number, order in enumerate(orders):
        for _ in range(n_each):
            at = draw.randrange(len(sentences) - 1)
            one = sentences[at]
            two = _changed(one, draw) if draw.random() < 0.75 else sentences[at + 1]
            if draw.random() < 0.2:
                # As data sets have them, with spaces before each sign
                one, two = (
                    re.sub(r"([.,;:!?\"()]|'s)", r" \1 ", part).replace("  ", " ").strip() for part in (one, two)
                )
            yield order.replace("{a}", one).replace("{b}", two), None, f"pairs {number % 4}"


def _changed(sentence: str, draw: random.Random) -> str:
    words = sentence.rstrip(".").split(" ")
    kind = draw.randrange(4)
    if kind == 0:
        return " ".join(words[: max(4, len(words) * 2 // 3)]) + "."
    if kind == 1:
        half = len(words) // 2
        return " ".join([words[half].capitalize(), *words[half + 1 :], *words[:half]]) + "."
    if kind == 2:
        return re.sub(r"\d", lambda _: str(draw.randrange(1, 10)), sentence)
    place = draw.randrange(len(words))
    return " ".join([*words[:place], draw.choice(["not", "also", "never", "perhaps"]), *words[place:]]) + "."


def _made(orders: Sequence[str], texts: Sequence[tuple[str, int]], n_each: int, draw: random.Random) -> Iterator[Row]:
    for order in orders:
        for text, lot in draw.sample(texts, n_each):
            yield _made_one(order, _part(text, draw), draw), None, f"made of texts {lot}"


def _made_one(order: str, text: str, draw: random.Random) -> str:
    asked = order.replace("{a}", draw.choice(_things(text) or ["nobody"])).replace("{t}", text)
    return asked.lower() if draw.random() < 0.1 else asked


def _part(text: str, draw: random.Random) -> str:
    """The text or its first sentences."""
    sentences = sentences_of(text)
    return text if draw.random() < 0.4 else " ".join(sentences[: draw.randint(1, len(sentences))])


def _things(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[A-Z][a-z]+(?: [A-Z][a-z]+)*|\d{2,}|[a-z]{7,}", text)))
