"""Where a prompt's request is found: questions before choices, questions typed in a hurry, sentences that are alike."""

import subprocess
import sys

import pytest
from slm_edge.edge.router.features import ends_in_small_question, ends_of, read_prompt
from slm_edge.edge.router.words import NAMES

TEXT = "The mill at Dorn burned in 1903. Its wheel, of oak, was saved by the miller's sons."


def _value(text: str, name: str) -> float:
    return float(read_prompt(text).named[NAMES.index(name)])


@pytest.mark.parametrize(
    "choices",
    [
        "\nA) the wheel\nB) the door\nC) nothing",
        "\n- the wheel\n- the door",
        "\nOptions:\n1. the wheel\n2. nothing\n\nAnswer:",
        "\nOptions:\n\nA. the wheel\n\nB. nothing\n\n===\nThe correct answer is",
        "\nPick the correct answer from the following options:\n- the wheel\n- nothing",
        "\n" + "\n".join(f"{letter}) {'the wheel of oak ' * 14}" for letter in "ABCD"),
        "\nAnswer:",
        "",
    ],
)
def test_the_last_sentence_is_the_question_and_not_its_choices(choices):
    assert ends_of(f"{TEXT}\n\nWhat was saved?{choices}")[1].endswith("What was saved?")


def test_an_abbreviation_ends_no_sentence():
    asked = "does the p.o. box of the mill still exist"
    assert ends_of(f"{TEXT} {asked}")[1] == asked
    assert ends_of(f"{TEXT} Was it I. Dorn?")[1].endswith("Was it I. Dorn?")


def test_a_list_that_is_given_stays_the_end_where_nothing_stands_before_it():
    first, last = ends_of("- milk\n- flour")
    assert "milk" in first and last


@pytest.mark.parametrize(
    ("end", "asked"),
    [
        (" was the wheel saved", True),
        (" is the mill still there?", True),
        (" what was saved by the sons", True),
        (" what is left of it", True),
        (" does the p.o. box of the mill still exist", True),
        (" It was built again.", False),
        (" when the fire", False),
        ("", False),
    ],
)
def test_a_question_in_small_letters_is_seen_on_the_texts_own_line(end, asked):
    assert ends_in_small_question(TEXT + end) is asked


def test_many_full_stops_are_read_at_once():
    """In a process of its own: two ways to read each of them would take it years."""
    words = "from slm_edge.edge.router.features import read_prompt; read_prompt('Hi. is ' + 'a.' * 90 + 'a!')"
    subprocess.run([sys.executable, "-c", words], check=True, timeout=60)


def test_a_text_counts_as_standing_beside_a_question_however_few_its_sentences_are():
    one = "As a good rational approximation of the root of two, 99/70 is used, whose denominator is small."
    asked = "can root 2 be written as a fraction"
    assert _value(f"{one} {asked}", "text_beside_question") > 0.3
    assert _value(asked, "text_beside_question") == 0
    assert _value(asked, "plain_question_alone") == 1
    assert _value(f"{TEXT} does this text sound sad?", "question_about_text") > 0.3
    assert _value(f"{TEXT} was the wheel saved?", "question_about_text") == 0


def test_lines_are_alike_by_their_longer_words():
    asked = "Do these mean the same?"
    one, two = "The river froze in January of that year.", "In January the river froze that year."
    assert _value(f"{asked}\n{one}\n{two}", "alike_lines") > 0.9
    assert _value(f"{asked}\n{one}\nNobody had ordered the second lemon cake.", "alike_lines") == 0
    assert _value("one short line", "alike_lines") == 0
