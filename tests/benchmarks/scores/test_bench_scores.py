"""Extraction and scores on the edge cases of the public harnesses, and on the real data."""

import json

import pytest
from slm_edge.benchmarks.tasks import dolly, gsm8k, mbpp, svamp
from slm_edge.benchmarks.tasks.benchmark import items_sha256
from slm_edge.benchmarks.tasks.code_block import definitions
from slm_edge.benchmarks.tasks.registry import MODULES, task
from slm_edge.edge.datasets.numbers import flexible_answer, normalise, strict_answer
from slm_edge.edge.errors import InputError


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("16 - 3 - 4 = 9\n#### 18", "18", "18"),
        ("#### 1,234", "1234", "1234"),
        ("#### 18.", "18", "18"),
        ("#### -7", "-7", "-7"),
        # The strict rule takes the first mark and no currency sign behind it; the flexible one takes the last number
        ("#### 5\n#### 6", "5", "6"),
        ("#### $18", "[invalid]", "18"),
        ("####18", "[invalid]", "18"),
        ("She makes $1,800.", "[invalid]", "1800"),
        ("It is 18.00", "[invalid]", "18.00"),
        ("The answer is 18. Well...", "[invalid]", ".."),
        ("7", "[invalid]", "7"),
        ("no number", "[invalid]", "[invalid]"),
        ("", "[invalid]", "[invalid]"),
        ("#### 12 apples, 3 left", "12", "3"),
        ("5-3", "[invalid]", "-3"),
    ],
)
def test_gsm8k_extraction(text, strict, flexible):
    assert normalise(strict_answer(text)) == strict
    assert normalise(flexible_answer(text)) == flexible


def test_gsm8k_normalisation_of_a_whole_answer():
    assert normalise("He has $2,125.\nSo\n#### 2,125") == "2125"
    assert normalise("X is YES.") == "x is yes"


def test_gsm8k_score():
    item = gsm8k.Item("test-0", [], {"answer": "1,450,000"})
    assert gsm8k.score(item, "so #### 1450000") == {"strict": 1, "flexible": 1, "boxed": 1}
    assert gsm8k.score(item, "so it is $1,450,000.") == {"strict": 0, "flexible": 1, "boxed": 1}
    assert gsm8k.score(item, "#### 1450000 and 3") == {"strict": 1, "flexible": 0, "boxed": 0}
    assert gsm8k.score(item, r"\boxed{1,450,000.00} dollars in 4 years") == {"strict": 0, "flexible": 0, "boxed": 1}
    assert gsm8k.score(item, r"\boxed{7}, no, \boxed{\text{\$}1450000}") == {"strict": 0, "flexible": 1, "boxed": 1}
    assert gsm8k.score(item, r"1450000, so \boxed{x}") == {"strict": 0, "flexible": 1, "boxed": 0}


def test_svamp_question():
    assert svamp.question("A has 3 apples. ", "How many?") == "A has 3 apples. How many?"
    assert svamp.question("A has 3 apples", "How many?") == "A has 3 apples. How many?"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\ndef f():\n    pass\n```\nIt works.", "def f():\n    pass\n"),
        ("```Python3 \r\nx = 1\r\n```", "x = 1\r\n"),
        ("```python\nx = 1", "x = 1"),
        ("```\nx = 0\n```\n```python\nx = 1\n```\n```python\nx = 2\n```", "x = 1\n"),
        ("```\nx = 0\n```", "x = 0\n"),
        ("def f(): pass", "def f(): pass"),
        ("", ""),
    ],
)
def test_mbpp_code(text, code):
    assert mbpp.code_of(text) == code


FUNCTION = "def f(x):\n    return x + ONE\n"


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("ONE = 1\n" + FUNCTION, "ONE = 1\n" + FUNCTION),
        (
            "import os\nONE = 1\n" + FUNCTION + "\n# a trial\nassert f(1) == 3\nprint(f(1))\n",
            "import os\nONE = 1\n" + FUNCTION,
        ),
        ("ONE = 1\n" + FUNCTION + "found = f('x')\n", "ONE = 1\n" + FUNCTION),  # a variable that nothing uses
        ("TWO = 2\nONE = TWO - 1\n" + FUNCTION, "TWO = 2\nONE = TWO - 1\n" + FUNCTION),
        (FUNCTION + "if __name__ == '__main__':\n    f(1)\n", FUNCTION),
        ("@cache\n" + FUNCTION + "f(", "@cache\n" + FUNCTION),  # cut off in a trial
        ("class A:\n    pass\nfor x in []:\n    f(x)\n", "class A:\n    pass\n"),
        (
            "try:\n    import re\nexcept ImportError:\n    re = None\n",
            "try:\n    import re\nexcept ImportError:\n    re = None\n",
        ),
        ("I cannot.", "I cannot."),
        ("    return 1\n", "    return 1\n"),
        ("# nothing\n", "# nothing\n"),
        ("", ""),
    ],
)
def test_a_program_is_what_it_defines(code, kept):
    assert definitions(code) == kept


def test_a_models_own_wrong_trial_judges_nothing():
    item = mbpp.Item("mbpp-11", [], {"tests": ["assert f(1) == 2"], "setup": ""})
    answer = "```python\ndef f(x):\n    return x + 1\n\nassert f(1) == 3\n```"
    assert mbpp.score(item, answer) == {"pass@1": 1.0}


def test_mbpp_score_runs_every_assert_and_the_setup_after_the_program():
    tests = ["assert size(tree) == 2", "assert size(None) == 0", "assert size(Node(1)) == 1"]
    item = mbpp.Item("x", [], {"tests": tests, "setup": "tree = Node(1)\ntree.left = Node(2)"})
    program = (
        "class Node:\n    def __init__(self, value):\n        self.left = None\n"
        "def size(node):\n    return 0 if node is None else 1 + size(node.left)\n"
    )
    assert mbpp.score(item, f"```python\n{program}```") == {"pass@1": 1}
    assert mbpp.score(item, program.replace("1 + size(node.left)", "2")) == {"pass@1": 0}
    assert mbpp.score(item, "I don't know") == {"pass@1": 0}


def test_rouge_of_other_writings_counts_their_words():
    assert dolly.rouge1("Привет, мир!", "привет мир") == 1
    assert dolly.rouge1("Привет мир", "Прощай мир") == 1 / 2
    assert dolly.rouge1("今天天气很好", "今天天气不好") == pytest.approx(5 / 6)
    assert dolly.rouge1("नमस्ते दुनिया", "नमस्ते") == pytest.approx(2 / 3)
    assert dolly.rouge1("Привет", "") == 0


@pytest.mark.parametrize(
    "truth", ["The naïve café's 3 cats", "Die größte Stadt Österreichs", "", "!", "Paris (巴黎) is big"]
)
def test_rouge_of_latin_writings_is_rouge_scores_own(truth):
    from rouge_score.rouge_scorer import RougeScorer

    for answer in ("cats of a naïve café", "größte Stadt", "巴黎", ""):
        wanted = RougeScorer(["rouge1"], use_stemmer=True).score(truth, answer)["rouge1"].fmeasure
        assert dolly.rouge1(truth, answer) == wanted


def test_rouge_published():
    # google-research/rouge, rouge_scorer_test.py
    assert dolly.rouge1("testing one two", "testing") == pytest.approx(1 / 2)
    assert dolly.rouge1("testing one two", "testing one") == pytest.approx(4 / 5)
    assert dolly.rouge1("testing one two", "") == 0
    assert dolly.rouge1("", "testing") == 0
    assert dolly.rouge1("He was testing, ONE apples!", "test one apple") == pytest.approx(2 * 3 / (5 + 3))


def test_dolly_score():
    item = dolly.Item("x", [], {"answer": "one two"})
    assert dolly.score(item, "one two three") == {"rouge1": pytest.approx(0.8), "f1": pytest.approx(0.8), "words": 3}


def test_token_f1_as_squad():
    # SQuAD's normalisation: lower case, punctuation and articles away; 2 shared of 3 and 2 words
    assert dolly.token_f1("The cat sat.", "a cat, sat down") == pytest.approx(2 * 2 / (2 + 3))
    assert dolly.token_f1("Paris", "paris!") == 1
    assert dolly.token_f1("Paris", "Rome") == 0
    assert dolly.token_f1("the", "") == 0  # no words, nothing shared
    assert dolly.token_f1("one one two", "one two two") == pytest.approx(2 / 3)


def test_gsm8k_in_four_ways(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"q{i}? ", "answer": f"<<{i}+0={i}>>{i}\n#### {i}"} for i in range(12)]
    for name in ("test", "train"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_name = {name: {item.id: item for item in task(name).items(tmp_path)} for name in MODULES if "gsm8k" in name}
    assert {item.truth["answer"] for item in by_name["gsm8k-8shot"].values()} == {str(i) for i in range(12)}
    assert by_name["gsm8k"]["test-9"].messages == [{"role": "user", "content": "q9?"}]
    assert by_name["gsm8k-raw"]["test-9"].raw == "Question: q9?\nAnswer:"
    turns = by_name["gsm8k-8shot"]["test-9"].messages
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 8 + ["user"]
    assert (turns[2]["content"], turns[3]["content"], turns[-1]["content"]) == ("q1?", "1\n#### 1", "q9?")
    raw = by_name["gsm8k-8shot-raw"]["test-9"].raw
    assert raw.startswith("Question: q0?\nAnswer: 0\n#### 0\n\nQuestion: q1?\nAnswer: 1\n#### 1\n\n")
    assert raw.endswith("Question: q7?\nAnswer: 7\n#### 7\n\nQuestion: q9?\nAnswer:")
    assert task("gsm8k-8shot-raw").stop == ("Question:",)
    assert task("gsm8k-8shot").stop is None
    assert len({items_sha256(list(items.values())) for items in by_name.values()}) == 4
    (tmp_path / "gsm8k" / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(InputError, match="8 are needed"):
        task("gsm8k-8shot").items(tmp_path)


def test_missing_data_names_every_file(tmp_path):
    with pytest.raises(InputError) as caught:
        task("dolly").items(tmp_path)
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="gsm8k"):
        task("gsm9k")


def test_damaged_line_is_named(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": "q"}\n')
    with pytest.raises(InputError, match="line 2"):
        task("gsm8k").items(tmp_path)


@pytest.mark.reference
def test_real_data_counts_and_order(shared_data):
    counts = {name: len(task(name).items(shared_data)) for name in MODULES}
    assert counts["gsm8k"] == 1319
    assert counts["mbpp"] == 500
    assert counts["svamp"] == 1000
    assert counts["dolly"] >= 300
    items = task("gsm8k").items(shared_data)
    assert items_sha256(items) == items_sha256(task("gsm8k").items(shared_data))
    assert [item.id for item in items[:3]] != ["test-0", "test-1", "test-2"]
    assert all(normalise(item.truth["answer"]).lstrip("-").isdigit() for item in items)


@pytest.mark.reference
def test_real_answers_score_full(shared_data):
    rows = [json.loads(line) for line in (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()]
    by_id = {f"test-{number}": row["answer"] for number, row in enumerate(rows)}
    for item in task("gsm8k").items(shared_data):
        assert gsm8k.score(item, by_id[item.id]) == {"strict": 1, "flexible": 1, "boxed": 1}
    for item in task("dolly").items(shared_data)[:40]:
        assert dolly.score(item, item.truth["answer"])["rouge1"] == pytest.approx(1)
    codes = {}
    for line in (shared_data / "mbpp" / "mbpp.jsonl").read_text().splitlines():
        row = json.loads(line)
        codes[f"mbpp-{row['task_id']}"] = row["code"]
    items = task("mbpp").items(shared_data)
    chosen = [item for item in items if item.truth["setup"]] + items[:40]
    for item in chosen:
        assert mbpp.score(item, f"```python\n{codes[item.id]}\n```") == {"pass@1": 1}, item.id
