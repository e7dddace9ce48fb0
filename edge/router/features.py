"""What the router sees of a prompt: about a hundred named features of structure, and hashed words and letters.

    features = read_prompt("How many legs have 3 cats?")
    features.named            float32 [len(NAMES)], in 0..1
    features.slots            int32 [n], places in 0..N_SLOTS, each once
    features.values           float32 [n], the weight of each

The named features say what makes a task that task: numbers with a question for a quantity, a passage with a question,
symbols and lines of code, verbs that ask for a program. The hashed ones are the words of the prompt, the words of its
request (first and last sentence, each behind the sign ^) and the request's letter groups, which bear typos and other
languages.

Only the beginning and the end of a long prompt are read word by word: that is where a request stands. So the time
doesn't grow with the passage in between, of which only length, lines and letters' kinds are counted.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .code_signs import CODE_LINE, DOCSTRING, IDENTIFIER, PYTHON_HEAD, foreign_signs
from .hashing import hashed
from .words import (
    ABOUT_TEXT,
    GROUP_BITS,
    GROUPS,
    NAMES,
    OTHER_CODE,
    OTHER_QUANTITY,
    OTHER_SUMMARY,
    QUESTION_WORDS,
    SPELLING,
    letters_of,
)

FEATURES_VERSION: Final = 4
HEAD_CHARS: Final = 700
TAIL_CHARS: Final = 400
REQUEST_CHARS: Final = 220
_TAIL_CHARS: Final = 1500
_LINES_COMPARED: Final = 4
# Stands before the first word of each sentence of the request, so that how an order begins is a pair of words
START: Final = "^"

_TOKEN: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?[+#]*|\d+(?:[.,:/]\d+)*|[^\s\w]|_")
# An abbreviation ("p.o. box") ends no sentence.
_AFTER_END: Final = r"(?<=[.!?。？！])(?<!\b[a-z]\.[a-z]\.)[\s\"')*]+|[\n\r]+"
_SENTENCE_END: Final = re.compile(rf"{_AFTER_END}|:\s+|。|？")
_LINE_OR_SENTENCE_END: Final = re.compile(_AFTER_END)
# Lines with answers to choose from, what stands above them and the place for the answer: the question stands before
_CHOICE: Final = re.compile(r"[ \t]*(?:[-*•]|\(?[A-Ea-e1-6][.)])[ \t]")
_ANSWER_IS: Final = r"(?:the |my |your )?(?:correct |right |best )?(?:answer|option|choice) is"
_PLACE: Final = re.compile(rf"[ \t]*(?:answer|label|stars|title|a|=+|{_ANSWER_IS})[ \t]*:?[ \t]*", re.IGNORECASE)
_CHOICES_PLACE: Final = re.compile(rf"[ \t]*(?:(?:answer|label|a)[ \t]*:|{_ANSWER_IS}[ \t]*:?)[ \t]*", re.IGNORECASE)
_CHOICES_HEAD: Final = re.compile(
    r"[ \t]*(?:(?:options|choices|answers)[ \t]*:?|(?:pick|choose|select) [^\n?]{1,80}:)[ \t]*", re.IGNORECASE
)
_BLANK: Final = re.compile(r"[ \t=-]*")
# A sentence after a full stop that begins with a small letter, as a question, and ends without a full stop. Each letter
# is matched in one way alone: with two for a full stop, many of them would be tried in all ways.
_SMALL_QUESTION: Final = re.compile(
    r"[.!?)\]\"”'}]\s+(?:(?:what|which|who|when|where|why|how) )?"
    r"(?:is|are|was|were|do|does|did|can|could|will|would|should|has|have|had|must|many|much)\s"
    r"(?:[^.!?]|\.(?=\w)|(?<=\.[a-z])\.(?!\w))*\??\s*\Z"
)
_OPERATION: Final = re.compile(
    r"\d\)? ?[+*/×÷^·−] ?\(?\d|\d - \d|\d ?= ?\?|\d% of|\b[xyn] ?[-+=*^] ?\d|\d[xyn]\b|\d ?x ?\d|√"
)
_LONG_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_NUMBER: Final = re.compile(r"\d+(?:[.,:/]\d+)*")
_PASSAGE: Final = NAMES.index("passage")
_TEXT_BESIDE: Final = NAMES.index("text_beside_question")
# From this much of one of them on, a prompt counts as a request on a text.
ON_TEXT: Final = 0.3
_JUDGE: Final = 1 << GROUPS.index("judge")
_GROUP_INDEX: Final = {name: number for number, name in enumerate(GROUPS)}


@dataclass(frozen=True)
class Features:
    """A prompt as the router sees it; see the module's text.

    Attributes:
        words: the token behind each hashed word of the prompt's begin and end, for `--explain`.
    """

    named: NDArray[np.float32]
    slots: NDArray[np.int32]
    values: NDArray[np.float32]
    words: tuple[str, ...]
    request_words: tuple[str, ...]


def read_prompt(text: str) -> Features:
    """The features of a prompt; any text is possible, an empty one too."""
    text = text.strip()
    view = text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
    first, last = ends_of(text)
    request = first if first == last else f"{first}\n{last}"
    words = _words(view)
    request_words = [START, *_words(first)]
    if last != first:
        request_words += [START, *_words(last)]
    named, asked = _named(text, view, first, last, words, request_words)
    on_text = asked or request_words if max(named[_PASSAGE], named[_TEXT_BESIDE]) >= ON_TEXT else []
    slots, values = hashed(words, request_words, request.lower(), on_text)
    return Features(named, slots, values, tuple(words), tuple(request_words))


def _words(text: str) -> list[str]:
    """Lower-case words, digits of any number as 0, and single signs."""
    return ["0" if token[0].isdigit() else token for token in _TOKEN.findall(text.lower().replace("’", "'"))]


def ends_of(text: str) -> tuple[str, str]:
    """The first and the last sentence or line, without choices of answers."""
    head, tail = text[:REQUEST_CHARS], text[-_TAIL_CHARS:]
    parts = [part for part in _SENTENCE_END.split(head) if part and not part.isspace()]
    first = parts[0] if parts else head
    # "Hi!", "Hello there." and "Q:" are no request: what follows them belongs to the first sentence.
    if len(first) < 12 and len(parts) > 1:
        first = f"{first} {parts[1]}"
    if len(text) <= len(first) + 4:
        return first, first
    if "\n" in tail:
        tail = _without_choices(tail) or tail
    parts = [part for part in _SENTENCE_END.split(tail[-REQUEST_CHARS:]) if part and not part.isspace()]
    last = parts[-1] if parts else tail
    if len(last) < 12 and len(parts) > 1:
        last = f"{parts[-2]} {last}"
    return first, last


def _without_choices(tail: str) -> str:
    lines = tail.rstrip().split("\n")
    end = len(lines) - (_PLACE.fullmatch(lines[-1]) is not None)
    place = end < len(lines)
    filled = end
    while place and filled > 1 and _BLANK.fullmatch(lines[filled - 1]):
        filled -= 1
    choices = at = filled
    # Blank lines may stand between the choices.
    while at > 1 and ((is_choice := _CHOICE.match(lines[at - 1])) or not lines[at - 1].strip()):
        at -= 1
        if is_choice:
            choices = at
    if choices < filled and (not place or _CHOICES_PLACE.fullmatch(lines[-1])):
        end = choices
    lines = "\n".join(lines[:end]).rstrip().split("\n")
    if len(lines) > 1 and _CHOICES_HEAD.fullmatch(lines[-1]):
        lines.pop()
    return "\n".join(lines)


def ends_in_small_question(view: str) -> bool:
    """Whether the text ends in a question that begins with a small letter after the end of a sentence."""
    return _SMALL_QUESTION.search(view[-REQUEST_CHARS:]) is not None


def _shared(request: str, rest: str) -> float:
    """Which part of the request's longer words stands beside it: a question on a passage names its things."""
    rest = rest.lower()
    words = set(_LONG_WORD.findall(request.lower()))
    n_shared = sum(word in rest for word in words)
    return n_shared / len(words) if words and rest else 0.0


def _alike(lines: list[str]) -> float:
    """How alike the most alike neighbours among the last lines are: two sentences to be compared share their words."""
    sets = [set(_LONG_WORD.findall(line[:300].lower())) for line in lines[-_LINES_COMPARED:] if len(line) > 24]
    return max((len(a & b) / max(min(len(a), len(b)), 1) for a, b in itertools.pairwise(sets)), default=0.0)


def _group_counts(words: list[str], misspelt: bool = False) -> list[int]:
    counts = [0] * len(GROUPS)
    get = GROUP_BITS.get
    if misspelt:
        words = [word if word in GROUP_BITS or len(word) < 4 else _respelt(word) for word in words]
    found = [bits for word in words if (bits := get(word))]
    found += [bits for a, b in itertools.pairwise(words) if (bits := get(f"{a} {b}"))]
    for bits in found:
        while bits:
            low = bits & -bits
            counts[low.bit_length() - 1] += 1
            bits ^= low
    return counts


def _respelt(word: str) -> str:
    return SPELLING.get(letters_of(word), word)


def _starts_question(sentence: str) -> bool:
    return sentence.lstrip(" -\"'(").partition(" ")[0].lower() in QUESTION_WORDS


def _up(n: float, full: float) -> float:
    """0 for 0, 1 from `full` on, steep at the start."""
    share: float = min(n / full, 1.0) ** 0.5
    return share


def _named(
    text: str, view: str, first: str, last: str, words: list[str], request_words: list[str]
) -> tuple[NDArray[np.float32], list[str]]:
    """The named features, and the words of the question if one is asked."""
    in_text = _group_counts(words)
    in_request = _group_counts(request_words, misspelt=True)
    in_first = _group_counts(words[:4], misspelt=True)
    group = _GROUP_INDEX
    n_chars = max(len(text), 1)
    lines = view.split("\n")
    n_lines = text.count("\n") + 1
    view_lines = max(len(lines), 1)
    numbers = _NUMBER.findall(view)
    n_numbers = len(numbers)
    n_number_words = in_text[group["number_word"]]
    code_lines = len(CODE_LINE.findall(view))
    identifiers = len(IDENTIFIER.findall(view))
    symbols = sum(
        map(
            view.count, ("==", "!=", "->", "=>", "();", ");", "::", "&&", "||", "+=", "[]", "{}", "</", "= ", "):", "_")
        )
    )
    brackets = sum(map(view.count, "{}[]();=<>"))
    indented = sum(line[:2] in ("  ", "\t", " \t") or line[:1] == "\t" for line in lines)
    operations = len(_OPERATION.findall(view)) if numbers or "√" in view else 0
    other = not text.isascii()
    quantity = in_request[group["quantity"]]
    summary = in_request[group["summary"]]
    code = in_request[group["code"]]
    if other:
        quantity += any(map(view.__contains__, OTHER_QUANTITY))
        code += any(map(view.__contains__, OTHER_CODE))
        summary += any(map(view.__contains__, OTHER_SUMMARY))
    starts_question = any(word in QUESTION_WORDS for word in request_words[1:3])
    last_starts_question = last != first and _starts_question(last)
    if last != first and not last_starts_question:
        # A colon within the question ("is star trek: the motion picture a sequel") begins no sentence.
        last_starts_question = _starts_question(_LINE_OR_SENTENCE_END.split(view[-REQUEST_CHARS:].rstrip())[-1])
    ends = last.rstrip(" \"')*”»\n")
    ends_question = ends.endswith(("?", "？", "؟"))
    first_question = first.rstrip(" \"')*").endswith(("?", "？")) or "?" in view[len(first) : len(first) + 2]
    asks = ends_question or first_question or starts_question or last_starts_question
    paragraphs = text.count("\n\n") + 1
    sentences = text.count(". ") + text.count(".\n") + text.count("。") + text.count("! ")
    # What is there besides the request: the passage, if it is long enough to be one
    beside = n_chars - len(first) - (len(last) if last != first and asks else 0)
    is_code = code_lines >= 2 or (code_lines >= 1 and indented >= 1)
    prose = 0.0 if is_code else 1.0
    passage = min(max(beside - 60, 0) / 240, 1.0) * prose
    if n_lines > 1 and beside > 30 and (asks or summary):
        # Set apart from a request a short text is a passage too.
        passage = max(passage, min(beside / 120, 1.0) * prose)
    n_kinds = len(set(numbers))
    make, mend = in_request[group["make"]], in_request[group["mend"]]
    creative = in_request[group["creative"]]
    names_python = "python" in request_words
    order = make or mend or summary or in_request[group["translate"]] or in_request[group["list"]]
    other_order = (
        in_request[group["translate"]] + in_request[group["rewrite"]] + creative + in_request[group["classify"]]
    ) and not summary
    wants_number = quantity or in_request[group["calculate"]] or (in_request[group["result"]] and asks)
    figures = n_numbers + n_number_words
    opens_with_code = bool(CODE_LINE.match(view))
    upper = sum(map(str.isupper, view[:300]))
    inner_capitals = sum(word[:1].isupper() for word in view.split()[1:160])
    docstring = len(DOCSTRING.findall(view))
    first_asks = first_question or starts_question
    # A statement that goes on about the same things is no request on a passage.
    first_shared = _shared(first, view[len(first) : len(first) + 500]) if prose and (first_asks or order) else 0.0
    last_shared = (
        _shared(last, view[-len(last) - 500 : -len(last)])
        if prose and (ends_question or last_starts_question) and last != first
        else 0.0
    )
    judge = in_request[group["judge"]]
    n_questions = view.count("?")
    n_alike = _alike(lines) if 1 < n_lines < 12 and prose else 0.0
    small_question = ends_in_small_question(view)
    asked: list[str] = []
    text_beside = 0.0
    if last != first and (ends_question or last_starts_question or small_question):
        asked = request_words[request_words.index(START, 1) :]
        text_beside = min(max(n_chars - len(last) - 30, 0) / 150, 1.0) * prose
    elif first_asks:
        asked = request_words[: len(request_words) if last == first else request_words.index(START, 1)]
        text_beside = min(max(n_chars - len(first) - 30, 0) / 150, 1.0) * prose
    about_text = not ABOUT_TEXT.isdisjoint(asked)
    judged = any(GROUP_BITS.get(word, 0) & _JUDGE for word in (*asked, *map(" ".join, itertools.pairwise(asked))))
    named = [
        _up(n_numbers, 8),
        _up(n_kinds, 6),
        _up(operations, 2),
        _up(code_lines, 4),
        min(code_lines / view_lines, 1.0) if code_lines else 0.0,
        _up(foreign_signs(view, lines), 3),
        _up(identifiers, 4),
        _up(view.count("`") // 2, 2),
        _up(symbols, 8),
        min(brackets / max(len(view), 1) * 12, 1.0),
        _up(indented, 4),
        _up(docstring, 2),
        float(">>>" in view),
        float("```" in view),
        float("assert" in view),
        float(opens_with_code),
        float(ends_question),
        float(starts_question),
        float(last_starts_question),
        _up(n_questions, 3),
        float(not asks and not order),
        min(n_chars / 3000, 1.0) ** 0.5,
        float(n_chars < 40),
        _up(sentences, 12),
        _up(n_lines - 1, 12),
        _up(paragraphs - 1, 4),
        passage,
        float(paragraphs > 1 and passage > 0),
        float(view.count('"') + view.count("“") >= 2) * prose,
        float(sum(": " in line[:24] for line in lines) >= 3),
        float(upper > 0.6 * sum(map(str.isalpha, view[:300])) > 0),
        min(inner_capitals / 20, 1.0),
        float(sum(map(str.isascii, view[:200])) < 0.7 * min(len(view), 200)) if other else 0.0,
        _up(sum(line.lstrip()[:2] in ("- ", "* ", "• ", "1.", "2.", "a)", "A)", "A.", "B.") for line in lines), 4),
        min((words.count("the") + words.count("of")) / 12, 1.0),
        first_shared,
        last_shared,
        min(figures / (sentences + 1) / 2, 1.0),
        min(n_questions / (n_questions + sentences + 1) * 2, 1.0),
        n_alike,
        float(small_question),
        # pairs
        float(bool(quantity) and figures >= 2) * (1 - 0.5 * passage),
        float(bool(quantity) and figures < 2),
        float(figures >= 2 and not asks and not wants_number),
        float(operations > 0 and (asks or bool(wants_number) or n_chars < 60)) * prose,
        float(bool(wants_number) and figures >= 2 and n_chars < 700 and n_lines < 4) * prose,
        passage * float(asks and not quantity),
        passage * float(bool(quantity)) * min(n_chars / 1200, 1.0),
        passage * float(bool(summary)),
        passage * float(bool(other_order)),
        passage * float(not asks and not order and not other_order),
        float(bool(summary)) * (1 - passage) * prose,
        float(bool(make) and bool(code)),
        float(bool(mend) and (bool(code) or is_code)),
        _up(code, 2),
        float(bool(make or in_first[group["code_soft"]]) and in_request[group["code_soft"]] >= 2 and not creative),
        float(bool(code) and starts_question and not make),
        float(bool(creative) and bool(make)),
        float(bool(make) and not code and not in_request[group["code_soft"]]),
        float(is_code and docstring > 0),
        float(docstring > 0 and bool(PYTHON_HEAD.search(view))),
        float(is_code and not opens_with_code),
        float(is_code and opens_with_code and not asks),
        float(bool(in_request[group["know"]]) and passage < 0.2) * (1 - 0.5 * min(figures / 2, 1)),
        float(bool(in_request[group["chat"]]) and n_chars < 80),
        float(bool(quantity) and ends_question and figures >= 2 and n_lines < 3) * prose,
        float(first_asks and n_lines > 1 and beside > 25) * prose,
        float(ends_question and n_lines > 1 and beside > 80) * prose,
        float(last_starts_question and not ends_question and beside > 80) * prose,
        float(last_starts_question and not quantity and beside > 80 and not summary) * prose,
        float(names_python),
        float(bool(in_request[group["language"]]) and not names_python),
        float("given" in words[:12] or "following" in words[:12]) * float(not code),
        first_shared * float(n_lines > 1 or passage > 0),
        float(ends_question and not wants_number and beside > 80) * prose,
        float(bool(in_first[group["make"]] or in_first[group["code_soft"]] or in_first[group["mend"]]) and not asks),
        float(not asks and not order and not other_order and not is_code),
        float(bool(in_first[group["translate"]] or in_first[group["rewrite"]] or in_first[group["creative"]])),
        float(is_code),
        float(is_code and bool(make or mend or code)),
        passage * float(bool(judge)),
        n_alike * float(bool(judge)),
        float(small_question and not quantity and beside > 80) * prose,
        text_beside,
        text_beside * float(not about_text and not quantity),
        text_beside * float(about_text),
        float(bool(asked) and not about_text and text_beside < 0.2),
        text_beside * float(judged),
    ]
    named += [_up(n, 2) for n in in_request]
    named += [_up(n, 5) for n in in_text]
    named += [float(n > 0) for n in in_first]
    return np.array(named, dtype=np.float32), asked
