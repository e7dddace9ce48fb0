"""Rows that no answer can be compared with are refused with their names: nothing scores because nothing is asked."""

import json

import pytest
from slm_edge.benchmarks.tasks import dolly, gsm8k, humaneval, mbpp
from slm_edge.edge.datasets.numbers import INVALID, same_number, strict_answer
from slm_edge.edge.datasets.prompts import dolly_held_out
from slm_edge.edge.errors import InputError


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("answer", ["18", "####18", "#### $18", "#### +18", "#### .", "#### ,", "#### eighteen", ""])
def test_a_gold_answer_without_a_number_is_refused(tmp_path, answer):
    rows = [{"question": "q", "answer": "#### 1,234"}, {"question": "What is 9 + 9?", "answer": answer}]
    write(tmp_path / "gsm8k" / "test.jsonl", rows)
    with pytest.raises(InputError, match="test-1") as refused:
        gsm8k.load(tmp_path)
    assert "test-0" not in str(refused.value) and "test.jsonl" in str(refused.value)


@pytest.mark.parametrize("text", ["", "no number", "#### .", "#### ,", "####"])
def test_nothing_is_equal_to_nothing(text):
    assert same_number(strict_answer(text), strict_answer(text)) == 0.0
    assert same_number(INVALID, INVALID) == 0.0
    assert same_number("1,234.", "$1234") == 1.0


def test_a_refusal_names_five_rows_and_counts_the_rest(tmp_path):
    write(tmp_path / "gsm8k" / "test.jsonl", [{"question": "q", "answer": "none"}] * 8)
    with pytest.raises(InputError, match="test-4 and 3 more"):
        gsm8k.load(tmp_path)


def test_programs_are_judged_by_an_assert(tmp_path):
    row = {"task_id": 11, "text": "Add.", "test_setup_code": "", "code": ""}
    write(tmp_path / "mbpp" / "mbpp.jsonl", [{**row, "test_list": ["assert f(1) == 2"]}])
    assert len(mbpp.load(tmp_path)) == 1
    write(tmp_path / "mbpp" / "mbpp.jsonl", [{**row, "test_list": ["print(f(1))"]}])
    with pytest.raises(InputError, match="mbpp-11"):
        mbpp.load(tmp_path)
    problem = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f"}
    with pytest.raises(InputError, match="HumanEval/0"):
        path = write(tmp_path / "h.jsonl", [{**problem, "test": "def check(candidate):\n    candidate()\n"}])
        humaneval.judging_problems(path)


def test_a_reference_has_words(tmp_path):
    rows = [{"instruction": f"Ask {n}", "context": f"Passage {n}", "response": "!"} for n in range(64)]
    for name in ("closed_qa", "summarization"):
        write(tmp_path / "dolly" / f"{name}.jsonl", rows)
    assert any(dolly_held_out(row) for row in rows)
    with pytest.raises(InputError, match="a reference without a word"):
        dolly.load(tmp_path)
    assert dolly.token_f1("The", "!") == 0.0
    assert dolly.token_f1("the red cat", "A red dog") == pytest.approx(0.5)
