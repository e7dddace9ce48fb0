"""HumanEval by its own rules: the published example, the estimator, the official files, sampling that repeats."""

import gzip
import json
import subprocess
import sys
from fractions import Fraction
from itertools import combinations

import pytest
from build_gguf import task_pack
from slm_edge.benchmarks.report.report import about_pack, make_report
from slm_edge.benchmarks.report.samples_file import evaluate, read_samples, summary
from slm_edge.benchmarks.report.text import markdown
from slm_edge.benchmarks.scores.cells import Column, Wanted, columns_of, plan
from slm_edge.benchmarks.scores.generate import session_generator
from slm_edge.benchmarks.scores.runner import run_cell
from slm_edge.benchmarks.stats import pass_at_k, problem_value
from slm_edge.benchmarks.tasks import humaneval
from slm_edge.benchmarks.tasks.benchmark import Decoding
from slm_edge.benchmarks.tasks.registry import task
from slm_edge.edge.errors import InputError
from slm_edge.edge.session.session import Session

# The example of openai/human-eval: one problem, six samples, of which the harness passes three
EXAMPLE = {
    "task_id": "test/0",
    "prompt": "def return1():\n",
    "entry_point": "return1",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
COMPLETIONS = [
    "    import subprocess\n    subprocess.check_output('rm -rf tmp')",
    "    import time\n    time.sleep(10)\n    return 1",
    "    return input('enter a number')",
    "    return 1",
    "  return 1",
    "\treturn 1",
]


def write_example(folder):
    (folder / "problems.jsonl").write_text(json.dumps(EXAMPLE) + "\n")
    rows = [{"task_id": "test/0", "completion": text} for text in COMPLETIONS]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "samples.jsonl"


def test_published_example(tmp_path):
    """README of openai/human-eval: pass@1 is 0.4999999999999999."""
    samples = write_example(tmp_path)
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "samples", str(samples)]
    command += ["--problems", str(tmp_path / "problems.jsonl"), "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["n"], found["n_samples"]) == (1, 6)
    assert found["pass@1"]["value"] == pytest.approx(0.49999999, abs=1e-8)
    assert "pass@10" not in found
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl_results.jsonl").read_text().splitlines()]
    assert [row["passed"] for row in rows] == [False, False, False, True, True, True]
    assert [row["completion"] for row in rows] == COMPLETIONS
    assert rows[1]["result"] == "failed: time: clock limit"
    assert rows[3]["result"] == "passed"


def test_samples_that_are_not_ours_to_judge(tmp_path):
    samples = write_example(tmp_path)
    problems = humaneval.read_problems(tmp_path / "problems.jsonl")
    assert len(read_samples(samples, problems)) == 6
    with pytest.raises(InputError) as caught:
        read_samples(samples, {})
    assert caught.value.problems == ("test/0",)
    samples.write_text('{"task_id": "test/0"}\n')
    with pytest.raises(InputError, match="line 1"):
        read_samples(samples, problems)


@pytest.mark.parametrize(("n", "c", "k"), [(6, 3, 1), (12, 3, 10), (10, 0, 5), (10, 10, 3), (5, 4, 2), (7, 1, 7)])
def test_estimator_is_the_share_of_drawn_sets(n, c, k):
    """By its definition: of all sets of k samples, those that hold a right one."""
    drawn = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(map(any, drawn)), len(drawn))), abs=1e-12)
    with pytest.raises(ValueError):
        pass_at_k(n, c, n + 1)


def test_estimator_published_values():
    # n = 200 as in the paper: pass@1 is c / n; pass@100 of one right sample is one half
    assert pass_at_k(200, 37, 1) == pytest.approx(37 / 200)
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert problem_value([1, 0, 0], 1) == pytest.approx(1 / 3)
    assert problem_value([1, 0, 0], 4) is None


PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef add(numbers: List[int]) -> int:\n    '''The sum.'''\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}


GOOD = "def add(numbers):\n    return sum(numbers)\n"


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("```python\ndef add(numbers: List[int]) -> int:\n    return sum(numbers)\n```", True),
        ("Sure:\n```python\ndef add(numbers):\n    return sum(numbers)\n```\nDone.", True),
        ("```python\n    return sum(numbers)\n```", True),
        ("    return sum(numbers)\n", True),
        ("def add(numbers):\n    return sum(numbers)", True),
        ("```python\ndef plus(numbers):\n    return sum(numbers)\n```", False),
        ("```python\ndef add(numbers):\n    return 3\n```", False),
        (
            "```python\ndef add(numbers):\n    return sum(numbers)\n\nassert add([1]) == 2\n```",
            True,
        ),  # its own trial is wrong
        ("```python\ndef add(numbers):\n    return sum(numbers)\n\nprint(add([1, 2", True),  # cut off in a trial
        (f"Here is the function:\n\n{GOOD}", True),
        (f"{GOOD}```\nThis is the function.", True),
        (f"```python\nprint(add([1, 2]))\n```\nThe function:\n```python\n{GOOD}```", True),
        (f"```json\n[1]\n```\nThe function:\n```\n{GOOD}```", True),
        ("```python\ndef total(xs):\n    return sum(xs)\n\nadd = total\n```", True),
        ("```python\nadd = lambda xs: sum(xs)\n```", True),
        (f"<think>maybe\n```python\ndef add(xs):\n    return 0\n```\nno</think>\n```python\n{GOOD}```", True),
        (f"```python\ndef add(xs):\n    return 0\n```\nno</think>\n{GOOD}", True),
        (f"<think>\n```python\n{GOOD}```", False),  # cut off before it answered
        ("1. Here:\n   ```python\n   def add(xs):\n       return sum(xs)\n   ```", True),
        (
            '```python\ndef add(xs):\n    """Use:\n    ```\n    add([1])\n    ```\n    """\n    return sum(xs)\n```',
            True,
        ),
        ("```python\nadd = lambda xs: 3\n```", False),
        ("I cannot.", False),
        ("", False),
    ],
)
def test_answers_become_completions(answer, passed):
    completion = humaneval.completion_of(PROBLEM, answer)
    assert humaneval.check(PROBLEM, completion).passed is passed


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return task_pack(tmp_path_factory.mktemp("made"), code=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "humaneval").mkdir()
    rows = [{**PROBLEM, "task_id": f"HumanEval/{i}", "prompt": PROBLEM["prompt"] + f"    # {i}\n"} for i in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "humaneval" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def texts_of(cells, folder, session, n_parallel):
    from slm_edge.benchmarks.scores.answers import AnswerFile

    for cell in cells:
        run_cell(cell, folder, session_generator(session, n_parallel))
    return [{k: r.text for k, r in AnswerFile(folder, cell.identity).records.items()} for cell in cells]


def test_sampling_repeats_by_seed_whatever_the_order(pack, data, tmp_path, monkeypatch):
    monkeypatch.setattr(humaneval, "check", lambda *a: type("V", (), {"passed": False})())
    wanted = Wanted(max_tokens=8, decoding=Decoding(4, 1.0, 0.95), seed=5)
    with Session.open(pack, threads=1) as session:
        cells = plan([task("humaneval")], pack, [Column(None)], data, wanted)
        [first] = texts_of(cells, tmp_path / "a", session, 4)
        [again] = texts_of(cells, tmp_path / "b", session, 3)
        other = plan([task("humaneval")], pack, [Column(None)], data, Wanted(None, None, 8, wanted.decoding, seed=6))
        [changed] = texts_of(other, tmp_path / "a", session, 4)
    assert first == again
    assert len(first) == 12
    assert first != changed
    assert len(set(first.values())) > 6
    assert cells[0].identity != other[0].identity
    one, more = (
        plan([task("humaneval")], pack, [Column(None)], data, Wanted(decoding=Decoding(n, 1.0, 0.95)))[0]
        for n in (1, 9)
    )
    assert one.identity == more.identity


def test_whole_run_with_report_and_official_files(pack, data, tmp_path):
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "humaneval", "humaneval-raw", "--pack", str(pack.folder)]
    command += ["--data", str(data), "--out", str(tmp_path), "--threads", "1", "--max-tokens", "4", "--samples", "3"]
    command += ["--temperature", "0.5", "--limit", "2", "--adapter", "code", "--adapter", "none"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {(row["task"], row["adapter"], row["n"], row["n_samples"]) for row in report["cells"]} == {
        (name, adapter, 2, 3) for name in ("humaneval", "humaneval-raw") for adapter in (None, "code")
    }
    for row in report["cells"]:
        assert list(row["metrics"]) == ["pass@1"]
        assert row["decoding"] == {"temperature": 0.5, "top_p": 0.95, "seed": 0}
        assert row["wall_s"] > 0 and row["n_tokens"] > 0
    assert len(report["chat_template_sha256"]) == 64
    assert "3 samples of each problem, temperature 0.5, top-p 0.95, seed 0" in run.stdout
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http-equiv", "")
    rows = [json.loads(line) for line in (tmp_path / "samples" / "humaneval.code.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    problems = humaneval.read_problems(data / "humaneval" / "HumanEval.jsonl.gz")
    judged = summary(evaluate(rows, problems, workers=2))
    own = next(row for row in report["cells"] if row["task"] == "humaneval" and row["adapter"] == "code")
    assert judged["pass@1"]["value"] == own["metrics"]["pass@1"]["value"]


def test_pass_at_k_in_the_report_is_by_problem(pack, data, tmp_path):
    from slm_edge.benchmarks.scores.answers import AnswerFile, Record

    [cell] = plan(
        [task("humaneval")], pack, columns_of(pack, ("code",)), data, Wanted(decoding=Decoding(12, 0.8, 0.95))
    )
    right = {0: 12, 1: 3, 2: 0}
    with AnswerFile(tmp_path, cell.identity, write=True) as answers:
        for at, item in enumerate(cell.items[:-1]):
            passed = float(at % 12 < right[at // 12])
            answers.add(Record(item.id, "x", {"passed": passed}, 1, 1, "end", 0, 1.0))
    report = make_report([cell], tmp_path, about_pack(pack), made_at="2026", command="x")
    [row] = report["cells"]
    # The last problem lacks a sample, and is left out whole
    assert (row["n"], row["n_wanted"]) == (2, 3)
    assert row["metrics"]["pass@1"]["value"] == pytest.approx((1 + 3 / 12) / 2)
    assert row["metrics"]["pass@10"]["value"] == pytest.approx((1 + pass_at_k(12, 3, 10)) / 2)
    assert "bootstrap" in row["metrics"]["pass@1"]["method"]
    assert "n=2x12" in markdown(report)


def test_ways_of_drawing_that_make_no_sense(pack, data):
    with pytest.raises(InputError, match="3 samples at temperature 0"):
        Decoding(samples=3, temperature=0)
    with pytest.raises(InputError, match="samples are asked"):
        plan([task("gsm8k")], pack, [Column(None)], data, Wanted(decoding=Decoding(2, 0.5, 1)))


@pytest.mark.reference
def test_canonical_solutions_pass(shared_data):
    """The data set's own solutions, every fourth: our judge is no stricter than the official one."""
    problems = list(humaneval.read_problems(shared_data / "humaneval" / "HumanEval.jsonl.gz").values())
    assert len(problems) == 164
    chosen = problems[::4] + [problems[i] for i in (10, 32, 38, 50)]
    rows = [{"task_id": p["task_id"], "completion": p["canonical_solution"]} for p in chosen]
    results = evaluate(rows, {p["task_id"]: p for p in problems})
    assert [row["task_id"] for row in results if not row["passed"]] == []
