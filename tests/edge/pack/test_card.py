"""Task cards: what may stand in one, from TOML and JSON, and every fault named at once."""

import json

import pytest
from slm_edge.edge.errors import InputError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.written import check_name, did_you_mean

TOML = """
task = "math"
description = "Word problems"
system = "Think in steps."
temperature = 0
max_tokens = 200
stop = ["Question:", "\\n\\n"]
scale = 0.75
licence = "Apache-2.0"
[scores.gsm8k]
exact_match = 0.07
n = 1319
"""


def test_toml_and_json_say_the_same(tmp_path):
    (tmp_path / "card.toml").write_text(TOML)
    card = TaskCard.open(tmp_path / "card.toml")
    assert (card.task, card.temperature, card.stop, card.scale) == ("math", 0, ("Question:", "\n\n"), 0.75)
    assert card.scores["gsm8k"]["n"] == 1319
    assert (card.top_k, card.seed, card.data) == (40, None, "")
    (tmp_path / "card.json").write_text(json.dumps(card.as_dict()))
    assert TaskCard.open(tmp_path / "card.json") == card


def test_all_faults_are_named_at_once():
    with pytest.raises(InputError) as caught:
        TaskCard.of({"sytem": "x", "top_k": 1.5, "scale": 0, "stop": [""], "max_tokens": True, "scores": [1]})
    problems = "\n".join(caught.value.problems)
    for part in ("'sytem' is not known; did you mean 'system'?", "'task' is missing", "top_k", "scale is 0", "stop is"):
        assert part in problems
    assert len(caught.value.problems) == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", 3),
        ("task", " "),
        ("task", "a\0b"),
        ("task", "\ud800"),
        ("system", ["x"]),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "0"),
        ("speculate", True),
        ("speculate", "yes"),
        ("pinned", 1),
        ("temperature", False),
        ("top_p", 1.5),
        ("min_p", -1),
        ("seed", -1),
        ("seed", 1 << 32),
        ("max_tokens", 0),
        ("scale", float("inf")),
        ("scale", None),
        ("stop", "text"),
        ("stop", [1]),
        ("scores", {"x": float("nan")}),
        ("licence", 1),
    ],
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(InputError) as caught:
        TaskCard.of({"task": "x", key: value})
    assert len(caught.value.problems) == 1 and key in caught.value.problems[0]


def test_a_card_made_in_python_is_checked_too():
    with pytest.raises(InputError, match="max_tokens is 0"):
        TaskCard(task="x", max_tokens=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", "task = "), ("a.json", "{"), ("a.json", "[]"), ("a.json", "[" * 100000), ("a.yaml", "task: x")],
)
def test_files_that_are_no_cards(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        TaskCard.open(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        TaskCard.open(tmp_path / "none.toml")


def test_names():
    assert did_you_mean("mth", ["code", "summarize", "math"])[0] == "math"
    assert sorted(did_you_mean("mth", ["code", "summarize", "math"])) == ["code", "math", "summarize"]
    assert check_name("math-2.1_b", "an adapter") == "math-2.1_b"
    for name in ("", "none", "NONE", "auto", "a/b", "../a", "-a", ".a", "a.", "a b", "ä", "x" * 65, "nul.x", "a\n"):
        with pytest.raises(InputError, match="cannot be the name of an adapter"):
            check_name(name, "an adapter")
