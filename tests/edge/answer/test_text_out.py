"""Text from tokens: whole characters only, and no part of a stop text, however the bytes are cut."""

import random

import pytest
from slm_edge.edge.answer.stream import TextOut


def shown(pieces, stop):
    out = TextOut(stop)
    parts = [out.feed(piece) for piece in pieces]
    return parts, "".join(parts) + out.finish(), out.stopped


def cut(data, rng):
    places = sorted(rng.sample(range(1, len(data)), rng.randrange(0, min(6, len(data)))))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def test_any_cut_shows_what_stands_before_the_first_stop_text():
    rng = random.Random(1)
    for _ in range(1000):
        text = "".join(rng.choice("ab\néß日🙂") for _ in range(rng.randrange(2, 14)))
        stops = ["".join(rng.choice("ab\né日") for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(0, 4))]
        ends = [text.index(stop) for stop in stops if stop in text]
        expected = text[: min(ends)] if ends else text
        parts, whole, stopped = shown(cut(text.encode(), rng), stops)
        # With several stop texts, a shorter one found late may end before a longer one that began earlier.
        early = (
            min((text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text) if ends else None
        )
        assert whole == expected or (early is not None and len(parts) > 1 and whole == text[: early[1]])
        assert stopped == bool(ends)
        assert "\N{REPLACEMENT CHARACTER}" not in whole


@pytest.mark.parametrize("text", ["日本語", "🙂 ok", "é"])
def test_single_bytes_never_show_half_a_character(text):
    parts, whole, _ = shown([bytes([byte]) for byte in text.encode()], [])
    assert whole == text
    assert all(part in ("", *text) for part in parts)


def test_a_beginning_of_a_stop_text_is_held_back_and_given_at_the_end():
    out = TextOut(["\n\nQuestion:"])
    assert out.feed(b"12\n\nQues") == "12"
    assert out.feed(b"t") == ""
    assert out.finish() == "\n\nQuest"
    out = TextOut(["\n\nQuestion:"])
    assert [out.feed(piece) for piece in (b"12\n", b"\n", b"no")] == ["12", "", "\n\nno"]


def test_a_cut_character_at_the_end_is_marked():
    assert shown(["日".encode()[:2]], [])[1] == "\N{REPLACEMENT CHARACTER}"
    assert shown([b"a\xff b"], [])[1] == "a\N{REPLACEMENT CHARACTER} b"


def test_nothing_follows_a_stop_text():
    parts, whole, stopped = shown([b"one STOP two", b" three"], ["STOP", ""])
    assert (parts, whole, stopped) == (["one ", ""], "one ", True)
