"""`bench --part` and `join-answers`: several processes measure one matrix, and it is that of one process."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from build_gguf import task_pack
from build_rows import gsm8k_row, write_jsonl
from slm_edge.benchmarks.scores.answers import AnswerFile, Record, joined
from slm_edge.benchmarks.scores.cells import Cell
from slm_edge.benchmarks.tasks.benchmark import Decoding, Item, sampled
from slm_edge.benchmarks.tasks.registry import task


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return task_pack(tmp_path_factory.mktemp("made"), math=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "gsm8k").mkdir()
    write_jsonl(folder / "gsm8k" / "test.jsonl", [gsm8k_row(n) for n in range(30)])
    return folder


def command(pack, data, out, *more):
    words = ["bench", "gsm8k", "--pack", pack.folder, "--data", data, "--out", out, "--threads", 1, "--max-tokens", 8]
    return [*words, "--parallel", 1, "--limit", 11, *more]


def test_parts_measured_side_by_side_are_the_whole(pack, data, tmp_path, slm_edge):
    """Three processes at once; joined, their answers and scores are those of one process."""
    words = [sys.executable, "-m", "slm_edge.edge"]
    parts = [
        subprocess.Popen(
            [*words, *map(str, command(pack, data, tmp_path / f"part{k}", "--part", f"{k}/3"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in (1, 2, 3)
    ]
    for k, part in enumerate(parts, 1):
        out, err = part.communicate(timeout=120)
        assert part.returncode == 0, err
        assert out.startswith(f"part {k} of 3 is in ")
        assert f"gsm8k x math: {[4, 4, 3][k - 1]} answers, {[4, 4, 3][k - 1]} of them new" in err
        # A report would count a third of a third: what stands before the first item that another part has
        assert not (tmp_path / f"part{k}" / "report.md").exists()
    # One of them comes packed, as from another machine
    assert slm_edge("bench", "pack-answers", tmp_path / "part2")[0] == 0
    for path in (tmp_path / "part2" / "answers").glob("*.jsonl"):
        path.unlink()
    code, out, _ = slm_edge(
        "bench", "join-answers", *(tmp_path / f"part{k}" for k in (3, 1, 2)), "-o", tmp_path / "all", "--json"
    )
    assert code == 0
    assert {(row["adapter"], row["n"], row["n_joined"]) for row in json.loads(out)["files"]} == {
        (None, 11, 11),
        ("math", 11, 11),
    }
    code, out, err = slm_edge(*command(pack, data, tmp_path / "all", "--json"))
    assert (code, err.count("11 answers, 0 of them new")) == (0, 2)
    there = json.loads(out)
    code, out, _ = slm_edge(*command(pack, data, tmp_path / "one", "--json"))
    assert code == 0
    for ours, theirs in zip(there["cells"], json.loads(out)["cells"], strict=True):
        for key in ("adapter", "n", "metrics", "n_tokens", "n_prompt_tokens", "identity_sha256"):
            assert ours[key] == theirs[key]

    # Joined once more nothing is new, and nothing is written
    before = {path: path.read_bytes() for path in (tmp_path / "all" / "answers").glob("*.jsonl")}
    code, out, _ = slm_edge("bench", "join-answers", tmp_path / "part1", tmp_path / "all", "-o", tmp_path / "all")
    assert (code, out.count("11 answers, 0 of them joined now")) == (0, 2)
    assert before == {path: path.read_bytes() for path in (tmp_path / "all" / "answers").glob("*.jsonl")}


def record(name, run, at_s, text="x"):
    return Record(name, text, {"strict": 1.0}, 3, 2, "end", run, at_s)


def test_joined_runs_stay_apart(tmp_path):
    """Seconds and joules are counted by run, so runs of two processes must not become one."""
    first = [record("a", 0, 5.0), record("b", 1, 2.0)]
    second = [record("c", 0, 4.0), record("a", 0, 9.0, "late"), record("d", 2, 1.0)]
    found = joined(first, second)
    assert found == [*first, replace(second[0], run=2), replace(second[2], run=4)]
    identity = {"task": "gsm8k", "adapter": None}
    with AnswerFile(tmp_path, identity) as answers:
        answers.replace(found)
        assert answers.wall_s() == 5.0 + 2.0 + 4.0 + 1.0
    with AnswerFile(tmp_path, identity, write=True) as answers:
        assert (answers.run, list(answers.records)) == (5, ["a", "b", "c", "d"])


def test_samples_of_a_problem_stay_in_one_part():
    items = sampled([Item(f"p{i}", [], {}) for i in range(5)], 3)
    cell = Cell(task("humaneval"), None, items, 12, 8, {}, Decoding(3, 0.5))
    parts = [replace(cell, part=(k, 3)).wanted for k in (1, 2, 3)]
    assert [sorted({item.problem for item in part}) for part in parts] == [["p0", "p3"], ["p1"], ["p2"]]
    assert [len(part) for part in parts] == [6, 3, 3]
    assert cell.wanted == items[:12]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--part", "3/2"], "'3/2' is not like 2/3"),
        (["--part", "0/2"], "'0/2' is not like 2/3"),
        (["--part", "half"], "'half' is not like 2/3"),
        (["--part", "1/2", "--report-only"], "--part measures"),
    ],
)
def test_wrong_parts_are_refused(pack, data, tmp_path, slm_edge, more, said):
    code, out, err = slm_edge(*command(pack, data, tmp_path / "out", *more))
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_joining_says_what_is_wrong_and_writes_nothing(tmp_path, slm_edge):
    (tmp_path / "empty").mkdir()
    code, _, err = slm_edge("bench", "join-answers", tmp_path / "empty", "-o", tmp_path / "all")
    assert (code, "there are no answers" in err) == (2, True)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    with AnswerFile(good, {"task": "gsm8k", "adapter": None}, write=True) as answers:
        answers.add(record("a", 0, 1.0))
    bad.mkdir()
    (bad / "gsm8k.base.0.jsonl").write_text('{"identity": {"task": "gsm8k", "adapter": null}}\n{"id": 3}\n')
    code, _, err = slm_edge("bench", "join-answers", good, bad, "-o", tmp_path / "all")
    assert (code, "line 2 is not an answer" in err) == (5, True)
    assert not (tmp_path / "all").exists()
