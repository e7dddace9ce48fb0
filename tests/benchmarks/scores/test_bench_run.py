"""The command on a tiny pack: answers of the runtime, resumed after SIGKILL, counted once, reported."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from build_gguf import task_pack
from slm_edge.benchmarks.report.html import html
from slm_edge.benchmarks.report.report import about_pack, card_scores, choice_matrix, complete_prefix, make_report
from slm_edge.benchmarks.report.text import markdown
from slm_edge.benchmarks.scores.answers import AnswerFile, Record
from slm_edge.benchmarks.scores.cells import Column, Wanted, columns_of, plan
from slm_edge.benchmarks.scores.generate import session_generator
from slm_edge.benchmarks.scores.runner import run_cell
from slm_edge.benchmarks.stats import paired_shares, share
from slm_edge.benchmarks.tasks.registry import task
from slm_edge.edge.errors import DamagedError, InputError
from slm_edge.edge.session.session import Session

N_ITEMS = 300


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return task_pack(tmp_path_factory.mktemp("made"), math=0, code=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "gsm8k").mkdir()
    with (folder / "gsm8k" / "test.jsonl").open("w") as out:
        for i in range(N_ITEMS):
            out.write(json.dumps({"question": f"{i} and {i}?", "answer": f"so\n#### {2 * i}"}) + "\n")
    return folder


def bench(pack, data, out, *more):
    command = [sys.executable, "-m", "slm_edge.edge", "bench", "gsm8k", "--pack", str(pack.folder), "--data", str(data)]
    command += ["--out", str(out), "--threads", "1", "--max-tokens", "48", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rows_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_killed_run_goes_on(pack, data, tmp_path):
    first = bench(pack, data, tmp_path, "--adapter", "math", "--parallel", "4")
    until = time.monotonic() + 60
    while time.monotonic() < until and first.poll() is None:
        files = list((tmp_path / "answers").glob("gsm8k.math.*.jsonl"))
        if files and files[0].read_bytes().count(b"\n") > 20:
            break
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, first.stderr.read()
    [path] = (tmp_path / "answers").glob("gsm8k.math.*.jsonl")
    before = path.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert 20 < whole.count(b"\n") < N_ITEMS
    # The kill may fall into a write: the worst case by hand
    path.write_bytes(whole + b'{"id": "test-0", "te')

    second = bench(pack, data, tmp_path, "--adapter", "math", "--parallel", "16", "--json")
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert path.read_bytes().startswith(whole)
    rows = rows_of(path)[1:]
    assert sorted(row["id"] for row in rows) == sorted(f"test-{i}" for i in range(N_ITEMS))
    assert {row["run"] for row in rows} == {0, 1}
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    [cell] = report["cells"]
    assert (cell["n"], cell["adapter"], cell["own"]) == (N_ITEMS, "math", True)
    assert cell["metrics"]["strict"] == share([row["scores"]["strict"] for row in rows]).as_dict()
    assert cell["n_tokens"] == sum(row["n_tokens"] for row in rows)

    third = bench(pack, data, tmp_path, "--adapter", "math")
    out, err = third.communicate(timeout=60)
    assert third.returncode == 0
    assert b"300 answers, 0 of them new" in err
    assert rows_of(path)[1:] == rows
    assert (tmp_path / "report.md").read_text() == out.decode()[:-1]


def test_ctrl_c_reports_what_there_is(pack, data, tmp_path):
    run = bench(pack, data, tmp_path, "--parallel", "2")
    until = time.monotonic() + 60
    while time.monotonic() < until and run.poll() is None:
        files = list((tmp_path / "answers").glob("*.jsonl"))
        if files and files[0].read_bytes().count(b"\n") > 20:
            break
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out == b""
    assert b"goes on from there" in err
    assert b"Traceback" not in err
    [cell] = json.loads((tmp_path / "report.json").read_text())["cells"]
    assert cell["adapter"] is None
    assert 5 < cell["n"] < N_ITEMS


def test_answers_are_those_of_the_session(pack, data, tmp_path):
    """Scores are of what users get: the batched answers equal `Session.ask`, adapter by adapter."""
    cells = plan([task("gsm8k")], pack, columns_of(pack, ("each",)), data, Wanted(limit=6, max_tokens=12))
    with Session.open(pack, threads=1) as session:
        for cell in cells:
            assert run_cell(cell, tmp_path, session_generator(session, 3)) == 6
        for cell in cells:
            with AnswerFile(tmp_path, cell.identity) as answers:
                assert len(answers.records) == 6
                for item in cell.items[:6]:
                    asked = session.use(cell.adapter_name).ask(item.messages, max_tokens=12)
                    assert answers.records[item.id].text == asked.text
    texts = [AnswerFile(tmp_path, cell.identity).records[cells[0].items[0].id].text for cell in cells]
    assert len(set(texts)) == 3


def test_router_column_is_what_the_router_chooses(pack, data, tmp_path):
    """Its answers are those of the adapters that it chose, taken over where these are measured already."""
    from build_router import small_router
    from slm_edge.edge.pack.pack import Pack
    from slm_edge.edge.router.in_pack import put_router

    folder = tmp_path / "pack"
    shutil.copytree(pack.folder, folder)
    put_router(folder, small_router())
    routed = Pack.open(folder)
    columns = columns_of(routed, ("each", "auto"))
    cells = plan([task("gsm8k")], routed, columns, data, Wanted(limit=12, max_tokens=6))
    assert cells[-1].adapter_name == "auto"
    single = {cell.adapter_name: cell for cell in cells[:-1]}

    def known(_, name):
        # What the adapter code said is not there: its answers are made anew
        return AnswerFile(tmp_path, single[name].identity).records if name != "code" else {}

    with Session.open(routed, threads=1) as session:
        for cell in cells:
            assert run_cell(cell, tmp_path, session_generator(session, 4, known)) == 12
        chosen = {item.id: session.choose(item.messages[-1]["content"]).adapter for item in cells[0].items[:12]}
    auto = AnswerFile(tmp_path, cells[-1].identity).records
    for item_id, name in chosen.items():
        assert auto[item_id].by == (name or "none")
        assert auto[item_id].text == AnswerFile(tmp_path, single[name].identity).records[item_id].text
    report = make_report(cells, tmp_path, about_pack(routed), made_at="2026", command="x")
    assert sum(report["cells"][-1]["by"].values()) == 12
    [row] = report["choice"]
    assert (row["oracle"]["adapter"], row["router"]["n"], row["wrong"]["worst"]["adapter"]) == ("math", 12, "code")
    assert {(one["adapter"], one["against"]) for one in report["comparisons"]} == {
        ("math", None), ("code", None), ("auto", None), ("auto", "math")
    }  # fmt: skip
    assert "| choosing | base | router | oracle (own adapter) | n |" in markdown(report)
    # Of unlike numbers of items, those that base, router and oracle all have
    counted = {
        (cell.task.name, cell.adapter_name): (cell, complete_prefix(cell, AnswerFile(tmp_path, cell.identity)))
        for cell in cells
    }
    counted["gsm8k", "auto"] = cells[-1], counted["gsm8k", "auto"][1][:5]
    [row] = choice_matrix(counted)
    strict = [record.scores["strict"] for record in counted["gsm8k", "math"][1]]
    assert [row[name]["n"] for name in ("base", "router", "oracle")] == [5, 5, 5]
    assert (row["oracle"]["value"], row["wrong"]["n"]) == (sum(strict[:5]) / 5, 12)
    assert "What choosing right is worth" in html(report)
    with pytest.raises(InputError, match="no router"):
        columns_of(pack, ("auto",))


def test_router_column_takes_over_what_another_run_measured(pack, data, tmp_path):
    from build_router import small_router
    from slm_edge.edge.pack.pack import Pack
    from slm_edge.edge.router.in_pack import put_router

    folder = tmp_path / "pack"
    shutil.copytree(pack.folder, folder)
    put_router(folder, small_router())
    routed, out = Pack.open(folder), tmp_path / "out"
    words = ("--limit", "12", "--adapter")
    assert bench(routed, data, out, *words, "each").wait(120) == 0
    # A mark in what was kept tells whether it was taken over
    for path in (out / "answers").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"text": "', '"text": "kept '))
    assert bench(routed, data, out, *words, "auto", "--limit-others", "0").wait(120) == 0
    [path] = (out / "answers").glob("gsm8k.auto.*.jsonl")
    rows = rows_of(path)[1:]
    assert len(rows) == 12 and all(row["text"].startswith("kept ") for row in rows)


def test_plan_takes_own_cells_first_and_names_what_is_wrong(pack, data):
    none = plan([task("gsm8k")], pack, columns_of(pack, ()), data, Wanted(limit=50, limit_others=0))
    assert [(cell.adapter_name, cell.n) for cell in none] == [(None, 50), ("math", 50)]
    cells = plan([task("gsm8k")], pack, columns_of(pack, ()), data, Wanted(limit=50, limit_others=20))
    assert [(cell.adapter_name, cell.n, cell.is_own) for cell in cells] == [
        (None, 50, False),
        ("math", 50, True),
        ("code", 20, False),
    ]
    assert len({json.dumps(cell.identity) for cell in cells}) == 3
    with pytest.raises(InputError, match="no adapter 'mth'") as caught:
        columns_of(pack, ("mth",))
    assert "math" in caught.value.hint.split(",")[0]
    with pytest.raises(InputError) as caught:
        plan([task("dolly"), task("svamp"), task("gsm8k")], pack, [Column(None)], data)
    assert len(caught.value.problems) == 3


def record(item_id, strict, run=0, at_s=1.0):
    return Record(item_id, "text", {"strict": strict, "flexible": strict}, 10, 5, "end", run, at_s)


def test_report_counts_the_whole_beginning_and_pairs(pack, data, tmp_path):
    cells = plan([task("gsm8k")], pack, columns_of(pack, ("none", "math")), data, Wanted(limit=40))
    base, own = cells
    right = [1.0 if i % 3 == 0 else 0.0 for i in range(40)]
    with AnswerFile(tmp_path, base.identity, write=True) as answers:
        for i, item in enumerate(base.items[:40]):
            answers.add(record(item.id, 1.0 if i % 9 == 0 else 0.0, at_s=float(i)))
    with AnswerFile(tmp_path, own.identity, write=True) as answers:
        for i, item in enumerate(own.items[:40]):
            if i != 30:
                answers.add(record(item.id, right[i]))
                answers.add(record(item.id, 1.0))
        assert len(complete_prefix(own, answers)) == 30
    report = make_report(cells, tmp_path, about_pack(pack), made_at="now", command="x")
    assert [(cell["n"], cell["n_wanted"]) for cell in report["cells"]] == [(40, 40), (30, 40)]
    assert report["cells"][0]["wall_s"] == 39
    assert report["cells"][1]["metrics"]["strict"]["value"] == pytest.approx(10 / 30)
    [strict, *_] = report["comparisons"]
    expected = paired_shares([1.0 if i % 9 == 0 else 0.0 for i in range(30)], right[:30])
    assert {key: strict[key] for key in expected.as_dict()} == expected.as_dict()
    json.dumps(report, allow_nan=False)
    scores = card_scores(report)["math"]["gsm8k"]
    assert scores["n"] == 30
    assert scores["strict"] == {"value": 0.3333, "low": 0.1923, "high": 0.5122, "base": 0.125}
    table = markdown(report)
    assert "| **33.3** [19.2, 51.2] n=30 |" in table
    assert "**math** on GSM8K test" in table


def test_answer_files_are_kept_apart_and_checked(pack, data, tmp_path):
    cell = plan([task("gsm8k")], pack, [Column(None)], data, Wanted(limit=3))[0]
    longer = plan([task("gsm8k")], pack, [Column(None)], data, Wanted(limit=3, max_tokens=9))[0]
    with AnswerFile(tmp_path, cell.identity, write=True) as answers:
        answers.add(record("test-1", 1.0))
        path = answers.path
    with AnswerFile(tmp_path, longer.identity) as answers:
        assert answers.records == {}
        assert answers.path != path
    with path.open("ab") as stream:
        stream.write(b'{"id": 3}\n')
    with pytest.raises(DamagedError, match="line 3"):
        AnswerFile(tmp_path, cell.identity)
    os.replace(path, AnswerFile(tmp_path, longer.identity).path)
    with pytest.raises(DamagedError, match="something else"):
        AnswerFile(tmp_path, longer.identity)


def test_what_ended_under_a_smaller_cap_is_taken_over(pack, data, tmp_path):
    columns = columns_of(pack, ("none", "math"))
    small, _ = plan([task("gsm8k")], pack, columns, data, Wanted(limit=3, max_tokens=6))
    large, other = plan([task("gsm8k")], pack, columns, data, Wanted(limit=3, max_tokens=9))
    names = [item.id for item in small.items[:3]]
    ended, cut, stopped = (
        replace(record(name, 1.0), stop_reason=reason, n_tokens=6 if reason == "max_tokens" else 4)
        for name, reason in zip(names, ("end", "max_tokens", "stop"), strict=True)
    )
    with AnswerFile(tmp_path, small.identity, write=True) as answers:
        for one in (ended, cut, stopped):
            answers.add(one)
    report = make_report([small], tmp_path, about_pack(pack), made_at="now", command="x")
    assert "- Answers cut off before their end: gsm8k x base 33 % (at 6 tokens);" in markdown(report)
    with AnswerFile(tmp_path, large.identity) as answers:
        assert answers.records == {}  # reading takes nothing over
    with AnswerFile(tmp_path, large.identity, write=True) as answers:
        assert list(answers.records.values()) == [ended, stopped]
        assert answers.run == 1
        answers.add(replace(cut, text="longer", run=1, stop_reason="end"))
    report = make_report([large], tmp_path, about_pack(pack), made_at="now", command="x")
    assert report["cells"][0]["n"] == 3
    assert "cut off" not in markdown(report)
    with AnswerFile(tmp_path, small.identity, write=True) as answers:
        assert answers.records[cut.id] == cut  # its own file is what a smaller cap goes on with
    with AnswerFile(tmp_path, other.identity, write=True) as answers:
        assert answers.records == {}


def test_packed_answers_are_gone_on_from(pack, data, tmp_path, slm_edge):
    """Archives stand for the files: reported as they are, unpacked by a run that adds to them, never asked again."""
    more = ["--pack", pack.folder, "--data", data, "--threads", 1, "--max-tokens", 6, "--adapter", "math", "--json"]
    first, kept = tmp_path / "first", tmp_path / "kept"
    code, out, _ = slm_edge("bench", "gsm8k", *more, "--out", first, "--limit", 5)
    assert code == 0
    cell = json.loads(out)["cells"][0]
    [plain] = (first / "answers").glob("*.jsonl")
    with plain.open("ab") as stream:
        stream.write(b'{"id": "cut sh')
    assert slm_edge("bench", "pack-answers", first, "-o", kept)[0] == 0
    [archive] = (kept / "answers").iterdir()
    assert archive.name == plain.name + ".xz"
    assert lzma.decompress(archive.read_bytes()) + b'{"id": "cut sh' == plain.read_bytes()
    code, out, _ = slm_edge("bench", "gsm8k", *more, "--out", kept, "--limit", 5, "--report-only")
    assert code == 0
    assert json.loads(out)["cells"][0] == cell
    code, out, err = slm_edge("bench", "gsm8k", *more, "--out", kept, "--limit", 8)
    assert code == 0
    assert "8 answers, 3 of them new" in err
    unpacked = kept / "answers" / plain.name
    assert unpacked.read_bytes().startswith(lzma.decompress(archive.read_bytes()))
    assert len(rows_of(unpacked)) == 9
    # Fewer answers do not replace more
    assert slm_edge("bench", "pack-answers", kept)[0] == 0
    code, _, err = slm_edge("bench", "pack-answers", first, "-o", kept)
    assert (code, "holds 3 answers that" in err) == (2, True)
    code, _, err = slm_edge("bench", "pack-answers", tmp_path)
    assert (code, "no answers" in err) == (2, True)
    unpacked.unlink()
    archive.write_bytes(archive.read_bytes()[:-9])
    code, _, err = slm_edge("bench", "gsm8k", *more, "--out", kept, "--limit", 8)
    assert (code, "not a whole xz file" in err) == (5, True)


def test_answers_are_scored_again_by_todays_rules(pack, data, tmp_path, slm_edge):
    cell = plan([task("gsm8k")], pack, columns_of(pack, ("math",)), data, Wanted(limit=3, max_tokens=6))[0]
    right = cell.items[1]
    (tmp_path / "answers").mkdir()
    with AnswerFile(tmp_path / "answers", cell.identity, write=True) as answers:
        for item in cell.items[:3]:
            text = f"#### {item.truth['answer'] if item is right else 'x'}"
            answers.add(Record(item.id, text, {"strict": 0.0, "flexible": 0.0, "boxed": 0.0}, 10, 5, "end", 0, 1.0))
    command = ["bench", "gsm8k", "--pack", pack.folder, "--data", data, "--adapter", "math", "--max-tokens", 6]
    code, out, err = slm_edge(*command, "--limit", 3, "--out", tmp_path, "--rescore", "--report-only", "--json")
    assert code == 0
    assert "1 answers have other scores now" in err
    assert json.loads(out)["cells"][0]["metrics"]["strict"]["value"] == pytest.approx(1 / 3)
    assert AnswerFile(tmp_path / "answers", cell.identity).records[right.id].scores == {
        "strict": 1,
        "flexible": 1,
        "boxed": 1,
    }
