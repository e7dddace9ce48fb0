"""Rows with cells of any kind: training leaves them out and counts them, benchmarks refuse them with their number."""

import itertools
import json

import pytest
from slm_edge.benchmarks.router.sets import public_sets, written_sets
from slm_edge.benchmarks.tasks import humaneval
from slm_edge.benchmarks.tasks.registry import task as benchmark
from slm_edge.edge.errors import InputError
from slm_edge.train.data.contamination import find_benchmarks
from slm_edge.train.data.replay import drawn
from slm_edge.train.data.task import find_task
from slm_edge.train.drawn.own_answers import prompt_of
from slm_edge.train.router.prompts import public_prompts

ODD = (None, 42, 1.5, True, [], ["a", None], {}, {"a": 1}, "", "smile \ud83d", "\udc00")
ROWS = {
    "code": [
        {"instruction": "Add.", "input": "1 and 2", "output": "print(3)"},
        {"text": "Add.", "code": "a = 1", "test_list": ["assert a == 1"], "task_id": 600},
    ],
    "math": [{"question": "Two?", "answer": "It is 2.\n#### 2"}],
    "summarize": [{"instruction": "When?", "context": "At 9.", "response": "At 9.", "category": "closed_qa"}],
    "chat": [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}],
}
OPTIONAL = {"input", "category"}


@pytest.mark.parametrize("task", ROWS)
def test_odd_rows_are_left_out_and_counted(task):
    for good in ROWS[task]:
        for key, value in itertools.product(good, ODD):
            reasons = []
            pairs = list(find_task(task).pairs([good, {**good, key: value}, good], reasons.append))
            assert len(pairs) + len(reasons) == 3, (key, value)
            assert len(reasons) == 1 or key in OPTIONAL or value in ("", ["a", None]), (key, value)
            for pair in pairs:
                pair.completion.encode()
                for message in pair.messages:
                    message["content"].encode()


@pytest.mark.parametrize("role", ODD)
def test_odd_messages(role):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": role, "content": "Hello"}]}
    assert list(find_task("chat").pairs([row, {"messages": role}, {"messages": [role]}], lambda reason: None)) == []


def test_replay_rows_name_their_row():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}]
    with pytest.raises(InputError, match="row 2 of replay_data: the cell 'prompt' is no text"):
        drawn(rows, 0.5, 2, 0)
    for key, value in itertools.product(("messages", "prompt", "instruction", "context"), ODD):
        row = {"instruction": "a", "context": "b", key: value}
        try:
            prompt_of(row)
        except InputError:
            continue
        assert value in ([], {}, "", None, 42, 1.5, True), (key, value)


MBPP = {"text": "t", "task_id": 11, "test_list": ["assert True"], "test_setup_code": "", "code": "c"}
HUMANEVAL = {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c() == 1"}
SETS = {
    "gsm8k": ("gsm8k/test.jsonl", {"question": "Two?", "answer": "x\n#### 2"}),
    "mbpp": ("mbpp/mbpp.jsonl", MBPP),
    "hellaswag": ("hellaswag/hellaswag_val.jsonl", {"query": "q", "choices": ["a", "b", "c", "d"], "label": 1}),
    "svamp": ("svamp/SVAMP.json", {"ID": "1", "Body": "b", "Question": "q", "Answer": 2.0}),
    "dolly": ("dolly/closed_qa.jsonl", {"instruction": "i", "context": "c", "response": "r", "category": "closed_qa"}),
}


@pytest.mark.parametrize("name", SETS)
def test_odd_rows_of_benchmarks_are_refused_with_their_number(tmp_path, name):
    file, good = SETS[name]
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    for other in benchmark(name).files:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("")
    n_refused = 0
    for key, value in itertools.product(good, ODD):
        odd = {**good, key: value}
        path.write_text("".join(json.dumps(row) + "\n" for row in (good, odd)))
        try:
            benchmark(name).load(tmp_path)
        except InputError as error:
            n_refused += 1
            assert error.where == str(path)
        else:
            assert value in ("", 1, 42, True) or key in ("category", "code"), (key, value)
        try:
            public_sets(tmp_path)
        except InputError as error:
            assert "row 2" in str(error)
    assert n_refused > len(ODD)
    for data in (b'{"question": "Gr\xf6\xdfe"}\n', b"[" * 100_000, b"[1]", b"null\n", b'"a"\n', b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(InputError):
            benchmark(name).load(tmp_path)
        with pytest.raises(InputError):
            find_benchmarks([path])


def test_problems_of_humaneval(tmp_path):
    path = tmp_path / "HumanEval.jsonl"
    text = json.dumps({**HUMANEVAL, "prompt": 'def f():\n    """x\u2028y\x85z"""\n'}, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    assert list(humaneval.read_problems(path)) == ["a"]
    for key, value in itertools.product(HUMANEVAL, (*ODD[:8], "\ud83d")):
        path.write_text(json.dumps({**HUMANEVAL, key: value}) + "\n")
        with pytest.raises(InputError, match="line 1 is not a row"):
            humaneval.read_problems(path)


def test_written_sets_are_cut_at_lf_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one | math | a\u2028b\x0cc\n", encoding="utf-8")
    assert written_sets(tmp_path / "a.txt") == {"one": [("a\u2028b\x0cc", "math")]}


def test_public_training_sets_of_a_router_name_the_row(tmp_path):
    path = tmp_path / "gsm8k" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"question": "a"}\n{"question": null}\n')
    with pytest.raises(InputError, match="row 2: the cell 'question' is no text"):
        public_prompts(tmp_path)
