"""Rows become the tokens that they should: prompt, completion, what is left out, and what is never trained on."""

import ast
import itertools
import json
import re
from collections import Counter
from fractions import Fraction

import pytest
from build_gguf import tiny_base
from build_rows import dolly_row, gsm8k_row, mbpp_row, write_jsonl
from slm_edge.edge.datasets.prompts import dolly_held_out, mbpp_messages
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.train.data.arithmetic_drills import arithmetic_drills
from slm_edge.train.data.easy_problems import KINDS, easy_problems
from slm_edge.train.data.easy_templates import TEMPLATES
from slm_edge.train.data.examples import Counts, Example, read_rows, shared_prefix_tokens, split_held_out
from slm_edge.train.data.task import Skip, find_task, task_names
from slm_edge.train.data.tokenize import tokenize
from slm_edge.train.model.bases import completion_end, open_base
from slm_edge.train.run.batches import pack, split_by_tokens, steps


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return open_base(tiny_base(tmp_path_factory.mktemp("base") / "base.gguf"))


def examples_of(base, task, rows, max_tokens=10_000):
    counts = Counts(rows=len(rows))
    pairs = find_task(task).pairs(rows, lambda reason: counts.dropped.update([reason]))
    return tokenize(base, pairs, max_tokens, counts), counts


def test_the_tasks_are_the_files():
    assert task_names() == ["chat", "code", "math", "summarize"]
    with pytest.raises(InputError, match="no task 'poetry'"):
        find_task("poetry")


def test_the_loss_is_on_the_completion_token_by_token(base):
    (example,), _ = examples_of(base, "math", [gsm8k_row(4)])
    prompt = (
        "<|im_start|>user\nAnn has 4 pens and buys 5 more. How many pens has she?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(example.ids[: example.n_prompt]) == base.encode(prompt)
    answer = base.encode("She has 4+5 = 9 pens.\n#### 9")
    assert list(example.ids[example.n_prompt :]) == [*answer, *base.encode("<|im_end|>")]
    batch = pack([example], 0)
    assert batch.targets.tolist() == [*answer, *base.encode("<|im_end|>")]
    assert [batch.ids[0, at + 1].item() for at in batch.at.tolist()] == batch.targets.tolist()


def test_targets_of_packed_rows_are_their_own_next_tokens(base):
    examples, _ = examples_of(base, "math", [gsm8k_row(n) for n in (3, 4, 50, 600)])
    prefix = shared_prefix_tokens(examples)
    assert examples[0].ids[:prefix] == tuple(base.encode("<|im_start|>user\nAnn has "))[:prefix]
    batch = pack(examples, prefix)
    assert batch.targets.tolist() == [token for e in examples for token in e.ids[e.n_prompt :]]
    starts = [prefix]
    for example in examples:
        starts.append(starts[-1] + len(example.ids) - prefix)
    rows = [batch.ids[0, a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert rows == [list(e.ids[prefix:]) for e in examples]
    assert batch.positions[0, starts[1] : starts[2]].tolist() == list(range(prefix, len(examples[1].ids)))


def test_the_end_of_turn_is_the_templates_own(base, tmp_path):
    assert completion_end(base) == base.encode("<|im_end|>")
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(UnsupportedError, match="no token that stops"):
        completion_end(open_base(tiny_base(tmp_path / "endless.gguf", chat_template=endless)))


def test_rows_left_out_are_counted(base):
    rows = [gsm8k_row(1), gsm8k_row(1), gsm8k_row(2), {"question": "?", "answer": "no end"}, {"text": "x"}]
    rows.append({"question": "long " * 200, "answer": "x\n#### 1"})
    examples, counts = examples_of(base, "math", rows, max_tokens=200)
    assert len(examples) == 2
    assert counts.as_dict() == {
        "rows": 6,
        "kept": 2,
        "dropped": {"duplicate": 1, "no final line '#### N'": 1, "not a row of GSM8K": 1, "too long": 1},
    }


def test_mbpp_keeps_to_its_training_and_validation_tasks(base):
    rows = [mbpp_row(n) for n in (1, 10, 11, 510, 511, 600, 601, 974)]
    examples, counts = examples_of(base, "code", rows)
    assert len(examples) == 4
    assert sum(counts.dropped.values()) == 4


def test_code_is_answered_in_a_fence_with_plain_line_ends():
    pair = find_task("code").pair(mbpp_row(600))
    assert pair.completion == "```python\ndef add_600(n):\n    return n + 600\n```"
    assert pair.messages == mbpp_messages(mbpp_row(600)["text"], mbpp_row(600)["test_list"])
    assert "assert add_600(1) == 601" in pair.messages[0]["content"]
    assert "add_600(0)" not in pair.messages[0]["content"]


def test_alpaca_rows_are_code_too():
    row = {"instruction": "Sum a list", "input": "[1, 2]", "output": "print(sum([1, 2]))"}
    pair = find_task("code").pair(row)
    assert pair.messages == [{"role": "user", "content": "Sum a list\n[1, 2]"}]
    assert pair.completion == "```python\nprint(sum([1, 2]))\n```"


def test_dolly_rows_that_are_held_out_are_never_trained_on():
    rows = [dolly_row(n) for n in range(400)]
    task = find_task("summarize")
    kept = list(task.pairs(rows, lambda reason: None))
    held_out = [row for row in rows if dolly_held_out(row)]
    assert len(kept) + len(held_out) == 400
    assert 20 < len(held_out) < 90
    texts = {pair.messages[0]["content"] for pair in kept}
    assert not any(f"{row['instruction']}\n\n{row['context']}" in texts for row in held_out)
    with pytest.raises(Skip):
        task.pair(dolly_row(1, category="brainstorming"))


def test_the_same_passage_is_never_on_both_sides():
    for n in range(100):
        other = dolly_row(n) | {"instruction": "Sum it up", "category": "summarization", "response": "Stars."}
        assert dolly_held_out(dolly_row(n)) == dolly_held_out(other)


def test_held_out_examples_do_not_depend_on_the_order():
    examples = [Example((n, n + 1, n + 2), 1) for n in range(50)]
    train, held_out = split_held_out(examples, 8)
    assert len(train) == 42
    assert set(split_held_out(examples[::-1], 8)[1]) == set(held_out)


def test_a_step_can_be_begun_anywhere_and_an_epoch_sees_every_row_once():
    examples = [Example((n, 1, 2), 1) for n in range(20)]
    whole = list(steps(examples, 8, 10, seed=3))
    assert list(steps(examples, 8, 10, seed=3, start=6)) == whole[6:]
    seen = Counter(row.ids[0] for rows in whole for row in rows)
    assert set(seen.values()) == {4}
    first_epoch = [row.ids[0] for rows in whole for row in rows][:20]
    assert sorted(first_epoch) == list(range(20))
    assert list(steps(examples, 8, 10, seed=4)) != whole


def test_passes_hold_all_rows_and_little_more_than_they_may():
    examples = [Example(tuple(range(n)), 2) for n in (30, 50, 10, 44, 21, 90, 12, 13)]
    parts = split_by_tokens(examples, 5, 100)
    assert sorted(len(e.ids) for part in parts for e in part) == sorted(len(e.ids) for e in examples)
    assert len(parts) % 2 == 0
    assert max(5 + sum(len(e.ids) - 5 for e in part) for part in parts) <= 100


def test_easy_problems_are_right_and_the_same_for_the_same_seed():
    rows = list(easy_problems(1500, seed=5))
    assert rows == list(easy_problems(1500, seed=5))
    assert rows != list(easy_problems(1500, seed=6))
    signs = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__, "/": int.__floordiv__}
    for row in rows:
        *lines, last = row["answer"].split("\n")
        for line in lines:
            a, sign, b, result = re.search(r"(\d+) ([-+x/]) (\d+) = (\d+)", line).groups()
            assert signs[sign](int(a), int(b)) == int(result)
            assert sign != "/" or int(a) % int(b) == 0
        assert last == f"#### {result}"
        assert "{" not in row["question"] + row["answer"]


def test_drills_are_right_and_the_same_for_the_same_seed():
    rows = list(arithmetic_drills(800, seed=5))
    assert rows == list(arithmetic_drills(800, seed=5))
    assert rows != list(arithmetic_drills(800, seed=6))
    for row in rows:
        asked = row["question"].split("\n")[1:]
        *lines, last = row["answer"].split("\n")
        for question, line in zip(asked, lines, strict=True):
            left, result = line.replace("$", "").split("=")
            assert line.startswith(question)
            value = Fraction(eval(left.replace("x", "*").replace("% of", " * Fraction(1, 100) *")))
            assert abs(value - Fraction(result.strip())) < Fraction(1, 10**9)
        assert last == f"#### {result.strip()}"


def test_math_makes_problems_and_drills():
    rows = list(find_task("math").made(30, 1))
    assert len(rows) == 30
    assert sum(row in list(arithmetic_drills(10, 1)) for row in rows) == 10


def test_every_kind_of_easy_problem_is_used():
    assert {template.kind for template in TEMPLATES} == set(KINDS)
    assert len({template.question for template in TEMPLATES}) == len(TEMPLATES)


def test_json_lists_and_lines_read_alike(tmp_path):
    rows = [gsm8k_row(n) for n in range(3)]
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(rows, indent=1))
    assert list(read_rows(listed)) == list(read_rows(write_jsonl(tmp_path / "rows.jsonl", rows))) == rows
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(InputError, match="line 2 is not valid JSON"):
        list(read_rows(tmp_path / "bad.jsonl"))


@pytest.mark.reference
def test_real_data_sets_give_what_is_known_of_them(shared_data, base):
    dolly = [row for name in ("closed_qa", "summarization") for row in read_rows(shared_data / f"dolly/{name}.jsonl")]
    assert sum(map(dolly_held_out, dolly)) >= 300
    mbpp = list(find_task("code").pairs(read_rows(shared_data / "mbpp/mbpp.jsonl"), lambda reason: None))
    assert len(mbpp) == 464
    for pair in mbpp:
        ast.parse(pair.completion.removeprefix("```python\n").removesuffix("\n```"))
    gsm8k = list(find_task("math").pairs(read_rows(shared_data / "gsm8k/train.jsonl"), lambda reason: None))
    assert len(gsm8k) == 7473
    assert not any("<<" in pair.completion for pair in gsm8k)


@pytest.mark.reference
def test_easy_problems_share_no_question_with_the_test_sets(shared_data):
    svamp = json.loads((shared_data / "svamp/SVAMP.json").read_text())
    asked = {f"{row['Body'].strip()} {row['Question'].strip()}" for row in svamp}
    asked |= {row["question"] for row in read_rows(shared_data / "gsm8k/test.jsonl")}

    def grams(text):
        words = re.findall(r"[a-z]+|\d+", text.lower())
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    known = set().union(*map(grams, asked))
    shared = [row for row in easy_problems(1500, seed=1) if grams(row["question"]) & known]
    assert not shared
