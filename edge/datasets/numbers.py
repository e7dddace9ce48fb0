r"""The number that a worked answer ends with, and whether it is the right one.

    strict_answer("... #### 1,234.")  ->  "1,234."      normalise("$1,234.")  ->  "1234"

Extraction and normalisation are those of EleutherAI's lm-evaluation-harness, task gsm8k version 3 (its yaml:
strict-match, flexible-extract, regexes_to_ignore). `boxed_answer` and `equal_numbers` are beside it, for models that
were taught to put their answer into a box: the last number misses "\boxed{8} years old, 4 years from now".
"""

import re

INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")
_IGNORED = (re.compile(r","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def strict_answer(text: str) -> str:
    """The number behind the first `#### `, or "[invalid]"."""
    found = _STRICT.search(text)
    return found.group(1).strip() if found else INVALID


def flexible_answer(text: str) -> str:
    """The last thing that looks like a number, or "[invalid]"."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else INVALID


def normalise(answer: str) -> str:
    """Drops `,`, `$`, all up to `#### `, and one final `.`; lower case."""
    for ignored in _IGNORED:
        answer = ignored.sub("", answer)
    return answer.lower()


def is_number(answer: str) -> bool:
    """Whether the text is a number once normalised; "[invalid]", "." and "" are none."""
    return _NUMBER.fullmatch(normalise(answer)) is not None


def same_number(extracted: str, truth: str) -> float:
    """1.0 if both are the same number in the same spelling once normalised. "18.00" is not "18", as in the harness."""
    return float(is_number(extracted) and normalise(extracted) == normalise(truth))


def boxed_answer(text: str) -> str:
    r"""The last number in the last `\boxed{...}`; without one, `flexible_answer`."""
    found = _BOXED.findall(text)
    return flexible_answer(found[-1] if found else text)


def equal_numbers(extracted: str, truth: str) -> float:
    """1.0 if both are numbers and equal: here "18.00" is "18"."""
    try:
        return float(float(normalise(extracted)) == float(normalise(truth)))
    except ValueError:
        return 0.0
