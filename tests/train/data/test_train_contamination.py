"""Test items of benchmarks in the training data: found where they stand, and nothing found where they don't."""

import gzip
import json

import pytest
from build_rows import gsm8k_row, mbpp_row, write_jsonl
from slm_edge.edge.errors import InputError
from slm_edge.train.data.contamination import Index, Report, checked, find_benchmarks, words_of
from slm_edge.train.data.examples import Pair
from slm_edge.train.data.task import find_task

LONG = (
    "Mary walks nine miles every single day before her breakfast, and on Sundays she walks twice as far with her dog."
)
SHORT = "How many apples does Ben have after lunch?"
OTHER = "A train leaves the station at noon and arrives three hours later in a town that is two hundred miles away."


def pair(text, answer="x"):
    return Pair([{"role": "user", "content": text}], answer)


@pytest.fixture
def index(tmp_path):
    file = write_jsonl(tmp_path / "tests.jsonl", [{"question": text} for text in (LONG, SHORT, OTHER, "Too short.")])
    return Index(find_benchmarks([file]))


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(index):
    words = LONG.split()
    thirteen = "So: " + " ".join(words[3:16]).upper() + ", they say; nobody knows for sure."
    twelve = "So: " + " ".join(words[3:15]) + ", they say; nobody knows for sure."
    assert len(words_of(" ".join(words[3:16]))) == 13
    assert index.found_in(thirteen) == {("tests.jsonl", 0)}
    assert index.found_in(twelve) == set()


def test_an_item_of_few_words_counts_where_all_of_it_stands(index):
    assert index.found_in(f"Tell me: {SHORT} Then stop.") == {("tests.jsonl", 1)}
    assert index.found_in("How many apples does Ben have after dinner?") == set()
    assert index.found_in("Too short.") == set()


def test_the_answer_is_looked_into_as_well(index):
    report = Report(index)
    assert report.meets(pair("Say something.", LONG)) == {"tests.jsonl"}
    assert report.as_dict()["benchmarks"]["tests.jsonl"] == {"items": 4, "items_met": 1, "rows": 1}


def test_rows_are_reported_dropped_or_refused(tmp_path):
    others = [{"question": f"{n} things"} for n in range(20)]
    only = Index(find_benchmarks([write_jsonl(tmp_path / "u.jsonl", [{"question": LONG}, *others])]))
    rows = [pair(OTHER), pair(SHORT)]
    assert checked(rows, Report(only), "refuse", None) == rows
    leaked = [*rows, pair(f"Listen. {LONG}")]
    report = Report(only)
    assert checked(leaked, report, "report", None) == leaked
    assert report.rows == {"u.jsonl": 1}
    reasons = []
    assert checked(leaked, Report(only), "drop", reasons.append) == rows
    assert reasons == ["overlaps with u.jsonl"]
    with pytest.raises(InputError, match="test items of benchmarks"):
        checked(leaked, Report(only), "refuse", None)


def test_a_whole_test_set_is_refused_whatever_is_chosen_but_drop(tmp_path):
    items = [f"{LONG} Part {n} of the story begins here and says how many of the {n} are left." for n in range(10)]
    index = Index(find_benchmarks([write_jsonl(tmp_path / "t.jsonl", [{"question": item} for item in items])]))
    rows = [pair(OTHER), *(pair(item) for item in items)]
    with pytest.raises(InputError, match="more than 20%"):
        checked(rows, Report(index), "report", None)
    assert checked(rows, Report(index), "drop", lambda reason: None) == rows[:1]


def test_the_standard_layout_is_found_beside_the_data(tmp_path):
    for name in ("gsm8k", "mbpp", "humaneval"):
        (tmp_path / name).mkdir()
    data = write_jsonl(tmp_path / "gsm8k/train.jsonl", [gsm8k_row(1)])
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [gsm8k_row(n) for n in range(5)])
    write_jsonl(tmp_path / "mbpp/mbpp.jsonl", [mbpp_row(n) for n in (9, 10, 11, 510, 511, 700)])
    with gzip.open(tmp_path / "humaneval/HumanEval.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({"task_id": "HumanEval/0", "prompt": 'def f():\n    """Give the answer."""\n'}) + "\n")
    found = {benchmark.name: len(benchmark.items) for benchmark in find_benchmarks([], [data])}
    assert found == {"GSM8K test": 5, "MBPP test": 2, "HumanEval": 1}
    assert {b.name for b in find_benchmarks([tmp_path])} == set(found)
    with pytest.raises(InputError, match="none of the test sets"):
        find_benchmarks([tmp_path / "gsm8k"])


@pytest.mark.reference
def test_real_training_rows_hold_few_real_test_items(shared_data):
    index = Index(find_benchmarks([shared_data]))
    assert {benchmark.name for benchmark in index.benchmarks} >= {"GSM8K test", "MBPP test", "HumanEval"}
    from slm_edge.train.data.examples import read_rows

    for task, file in (("math", "gsm8k/train.jsonl"), ("code", "mbpp/mbpp.jsonl")):
        report = Report(index)
        pairs = list(find_task(task).pairs(read_rows(shared_data / file), lambda reason: None))
        checked(pairs, report, "report", None)
        assert sum(report.rows.values()) < 0.05 * len(pairs)
    test_rows = find_task("math").pairs(read_rows(shared_data / "gsm8k/test.jsonl"), lambda reason: None)
    with pytest.raises(InputError, match="of GSM8K test"):
        checked(test_rows, Report(index), "report", None)
